"""The phases of one slice of attention over a cache: queries prepared, scores, exponentials, weighted values.

In: query rows, and where the keys and values of one KV head lie. Out: rolled loops over the slice's chunks of
`CHUNK` positions, which sum in a fixed order. Which slices there are, masks and outputs are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tilewright.ir.affine import Affine
from tilewright.ir.plan.step import SLICE
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import Buffer, Span

CHUNK = 16
NEG = float("-inf")
#: scores [m, CHUNK] and the first of their positions -> scores, NEG where a row may not attend
Mask = Callable[[Tile, Affine], Tile]


@dataclass(frozen=True)
class CachedHead:
    """Where the keys and values of one KV head of one sequence lie: `at`, the leading indices of the caches
    k[.., C, dim] and v[.., C, DV]."""

    k: Buffer
    v: Buffer
    at: tuple[object, ...]
    dim: int


@dataclass(frozen=True)
class SliceMemory:
    """Locals of one slice for m rows: scores f32 and probabilities, [m, SLICE]."""

    scores: Buffer
    probs: Buffer
    m: int


def slice_memory(b: KernelBuilder, v: Buffer, m: int) -> SliceMemory:
    return SliceMemory(b.local("scores", "f32", (m, SLICE)), b.local("probs", read_dtype(v), (m, SLICE)), m)


def prepare_queries(b: KernelBuilder, k: Buffer, q: Tile) -> Tile:
    """Query rows [m, dim] in the type of the keys."""
    return b.cast(read_dtype(k), q)


def slice_scores(
    b: KernelBuilder, head: CachedHead, memory: SliceMemory, qs: Tile, c: Affine, n: Affine, scale: float,
    masked: Mask,
) -> Tile:  # fmt: skip
    """Store the scores of the `n` positions from `c` on; returns [m, CHUNK], the largest of each column of
    chunks."""
    m = memory.m
    with b.loop("u", 0, n, CHUNK, [b.const(NEG, "f32", (m, CHUNK))]) as phase:
        keys = read_cache(b, head.k, (*head.at, Span(c + phase.var, CHUNK), Span(Affine(), head.dim)))
        s = masked(b.dot(b.const(0, "f32", (m, CHUNK)), qs, keys) * scale, c + phase.var)
        b.store(memory.scores, (slice(0, m), slice(phase.var, CHUNK)), s)
        phase.yield_(b.op("max", phase.carried[0], s))
    return phase.results[0]


def slice_exponentials(b: KernelBuilder, memory: SliceMemory, top: Tile, n: Affine) -> Tile:
    """Store exp(score - top) of `n` positions as probabilities; returns [m, CHUNK], sums over chunks."""
    m = memory.m
    with b.loop("e", 0, n, CHUNK, [b.const(0, "f32", (m, CHUNK))]) as phase:
        e = b.op("exp", b.load(memory.scores, slice(0, m), slice(phase.var, CHUNK)) - top)
        b.store(memory.probs, (slice(0, m), slice(phase.var, CHUNK)), b.cast(memory.probs.dtype, e))
        phase.yield_(phase.carried[0] + e)
    return phase.results[0]


def add_values(
    b: KernelBuilder, head: CachedHead, memory: SliceMemory, acc: list[Tile], c: Affine, n: Affine, v_dim: int
) -> list[Tile]:
    """Accumulators, by group of `value_slices`, plus the weighted values of `n` positions from `c` on."""
    m, sums = memory.m, []
    for k, (d, w) in enumerate(value_slices(v_dim, m)):
        with b.loop(f"v{k}", 0, n, CHUNK, [acc[k]]) as phase:
            part = b.load(memory.probs, slice(0, m), slice(phase.var, CHUNK))
            vals = read_cache(b, head.v, (*head.at, Span(c + phase.var, CHUNK), Span(Affine.of(d), w)))
            # memory that was not written may be NaN, which a weight of 0 lets through
            vals = b.within(vals, phase.var, 0, 0.0)
            phase.yield_(b.dot(phase.carried[0], part, b.transpose(vals)))
        sums.append(phase.results[0])
    return sums


def value_slices(v_dim: int, m: int) -> list[tuple[int, int]]:
    """(first channel, width) of the groups of value columns that are accumulated at once for m rows, as
    registers allow."""
    width = 32 if m <= 8 else 16
    return [(d, min(width, v_dim - d)) for d in range(0, v_dim, width)]


def phase_loops(v_dim: int, m: int) -> tuple[str, ...]:
    """The loops that read the caches: keys, then each group of value columns."""
    return ("u", *(f"v{k}" for k in range(len(value_slices(v_dim, m)))))


def read_dtype(cache: Buffer) -> str:
    """The type in which attention reads a cache: that of its elements, or f32 where they are decoded."""
    return cache.dtype if cache.encoding is None else cache.encoding.element or "f32"


def read_cache(b: KernelBuilder, cache: Buffer, at: tuple[object, ...]) -> Tile:
    if cache.encoding is None:
        return b.load(cache, *at)
    tile: Tile = cache.encoding.tile_read(b, cache, at)
    return tile
