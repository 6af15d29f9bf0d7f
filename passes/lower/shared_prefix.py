"""Attention of many sequences over the beginning that they share: its keys and values are read once for all.

In: a step of single tokens, groups of consecutive ones whose sequences hold their first slices in common.
Out: a kernel that folds these slices for all rows of a group together and leaves each sequence the state of
its softmax, from which attention goes on. Slices are folded in the same order as without it, so results keep
their bits. Source: "Hydragen: High-Throughput LLM Inference with Shared Prefixes".
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.backends.base import CachedAttention
from tilewright.ir.affine import Affine
from tilewright.ir.plan.step import SLICE
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import Buffer, Span
from tilewright.passes.lower.attention import Attention, Carry, kv_head, query_tile, softcapped
from tilewright.passes.lower.attention_phases import phase_loops
from tilewright.passes.lower.cached_rows import CHUNK

#: rows of queries that are folded together: more would leave no registers for their sums
ROWS = 8


@dataclass(frozen=True)
class Prefix:
    """Parameters: q[T, H, D], seq[T] i32, groups[NG, 4] i32 (first row, rows, a sequence that holds the
    slices, slices), the cache's k, v and home, and where states go."""

    q: Buffer
    seq: Buffer
    groups: Buffer
    k: Buffer
    v: Buffer
    home: Buffer
    carry: Carry


def build_prefix(b: KernelBuilder, a: Attention, p: Prefix) -> CachedAttention:
    """Emit the whole kernel; returns its description for schedules."""
    gh = a.heads_per_tile
    bt = max(t for t in (1, 2, 4, 8) if t * gh <= max(ROWS, gh))
    n, h = b.grid("n", p.groups.dims[0], 1), b.grid("h", a.heads // gh, 1)
    first, count, slot = (b.load(p.groups, n, c).index() for c in range(3))
    most = b.const(p.k.dims[2].as_int() // SLICE, "i32")
    slices = b.op("min", b.load(p.groups, n, 3), most).index()
    whole = b.const(SLICE, "i32").index()
    with b.loop("r", 0, count, bt) as rows:
        tile = query_tile(b, a, p.q, p.k, p.v, h, first + rows.var, bt)

        def capped(s: Tile, at: Affine) -> Tile:
            return softcapped(b, s, a.softcap) if a.softcap else s

        with b.loop("s", 0, slices, 1, tile.start()) as loop:
            held = (b.load(p.home, slot, loop.var).index(), kv_head(b, h, a.group // gh))
            loop.yield_(*tile.fold(loop.carried, held, loop.var * SLICE, whole, capped))
        top, total, *acc = loop.results
        lane = b.iota(bt)
        here = b.op("lt", lane, b.index_value(count - rows.var))
        to = b.select(here, b.load(p.seq, Span(first + rows.var, bt)), b.const(-1, "i32"))
        places = [(a.v_dim, 1), (a.v_dim + 1, 1), *tile.slices]
        for (d, w), x in zip(places, (top, total, *acc), strict=True):
            at = (to, Span(h * gh, gh), Span(Affine.of(d), w))
            b.store(p.carry.state, at, b.reshape(x, bt, gh, w), disjoint=True)
        rows.yield_()
    return CachedAttention(False, phase_loops(p.v, a.v_dim, gh), SLICE // CHUNK)
