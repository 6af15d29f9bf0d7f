"""What attention looked at: the softmax weights that some queries of a step give to each row of a cache.

In: queries, the logarithms of their softmax denominators, a table of runs of queries. Out: a kernel that adds
the weights to the rows' scores. Weights are computed again from the keys, one query token after the other, so
a row's sum does not depend on how tokens were divided into steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.affine import Affine
from tilewright.ir.plan.step import SLICE
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import Buffer, Span
from tilewright.passes.lower.attention import Attention, Positions, masked_scores
from tilewright.passes.lower.attention_phases import read_cache, read_dtype
from tilewright.passes.lower.cached_rows import CHUNK


@dataclass(frozen=True)
class Observed:
    """Parameters: q[T, H, D], lse[T, H] f32, runs[NR, 4] i32 (first row, rows, sequence, first position), the
    cache's k, home and score[slots, HK, C] f32; slopes, gone and pos as for attention."""

    q: Buffer
    lse: Buffer
    runs: Buffer
    k: Buffer
    home: Buffer
    score: Buffer
    slopes: Buffer | None = None
    gone: Buffer | None = None
    pos: Buffer | None = None


def build_observation(b: KernelBuilder, a: Attention, p: Observed) -> None:
    """Emit the whole kernel: one instance serves a run, a KV head and a slice of the cache."""
    n, h = b.grid("n", p.runs.dims[0], 1), b.grid("h", a.kv_heads, 1)
    piece = b.grid("s", p.k.dims[2].as_int() // SLICE, 1)
    row, count, slot, token = (b.load(p.runs, n, c).index() for c in range(4))
    first = token if p.gone is None else token - b.load(p.gone, slot, h).index()  # a row of the cache
    base, held = piece * SLICE, (b.load(p.home, slot, piece).index(), h)
    here = b.op("min", b.index_value(first + count - base), b.const(SLICE, "i32")).index()
    with b.loop("u", 0, here, CHUNK) as chunk:
        rows = Span(base + chunk.var, CHUNK)
        seen = b.load(p.score, slot, h, rows)
        later = b.op("max", b.index_value(rows.start - first), b.const(0, "i32")).index()
        with b.loop("r", later, count, 1, [seen]) as queries:
            r = queries.var
            at = Positions(_tile(b, first + r), _tile(b, token + r), p.pos, held)
            queries.yield_(queries.carried[0] + _weights(b, a, p, at, h, row + r, rows))
        b.store(p.score, (slot, h, rows), queries.results[0], disjoint=True)
        chunk.yield_()


def _weights(
    b: KernelBuilder, a: Attention, p: Observed, at: Positions, h: Affine, row: Affine, rows: Span
) -> Tile:
    """[CHUNK]: what one query token gives to rows of the cache, summed over the query heads of KV head h."""
    gh, total = a.heads_per_tile, None
    for part in range(a.group // gh):
        heads = Span(h * a.group + part * gh, gh)
        q = b.reshape(b.load(p.q, Span(row, 1), heads, Span(Affine(), a.dim)), gh, a.dim)
        keys = read_cache(b, p.k, (*at.at, rows, Span(Affine(), a.dim)))
        s = b.dot(b.const(0, "f32", (gh, CHUNK)), b.cast(read_dtype(p.k), q), keys) * a.scale
        slopes = None if p.slopes is None else b.expand(b.load(p.slopes, heads), 1)
        s = masked_scores(b, a, s, rows.start, at, slopes)
        lse = b.reshape(b.load(p.lse, Span(row, 1), heads), gh, 1)
        found = b.reshape(b.reduce("add", b.op("exp", s - lse), 0), CHUNK)
        total = found if total is None else total + found
    assert total is not None
    return total


def _tile(b: KernelBuilder, x: Affine) -> Tile:
    return b.index_value(x) + b.const(0, "i32", (1, 1))
