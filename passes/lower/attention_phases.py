"""The phases of one slice of attention over a cache: queries prepared, scores, exponentials, weighted values.

In: query rows, and where the keys and values of one KV head lie. Out: rolled loops over the slice's chunks of
`CHUNK` positions, which sum in a fixed order. Which slices there are, masks and outputs are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tilewright.ir.affine import Affine
from tilewright.ir.plan.step import SLICE
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import Buffer, Span
from tilewright.passes.lower.attention_integer import (
    IntegerQueries,
    IntegerWeights,
    WeightMemory,
    integer_products,
    integer_queries,
    integer_scores,
    integer_weights,
    weight_memory,
)
from tilewright.passes.lower.cached_rows import CHUNK, CachedRows, cache_form

NEG = float("-inf")
#: channels of keys, and positions of values, that one iteration multiplies: enough to keep the processor busy
CHANNELS, TOKENS = 16, 8
#: scores [m, CHUNK] and the first of their positions -> scores, NEG where a row may not attend
Mask = Callable[[Tile, Affine], Tile]
#: the first row of a slice that is read, a multiple of CHUNK
First = int | Affine


@dataclass(frozen=True)
class CachedHead:
    """Where the keys and values of one KV head of one sequence lie: `at`, the leading indices of the caches
    k[.., C, dim] and v[.., C, v_dim]."""

    k: Buffer
    v: Buffer
    at: tuple[object, ...]
    dim: int
    v_dim: int


@dataclass(frozen=True)
class SliceMemory:
    """Locals of one slice for m rows: scores f32 [m, SLICE]; weights [m, SLICE], or what integers need."""

    scores: Buffer
    probs: Buffer | WeightMemory
    m: int


@dataclass(frozen=True)
class SliceWeights:
    """What multiplies the values of a slice, stored as `probs`. `totals` [m, CHUNK]: sums of exponentials
    over chunks. `whole`: the weights in integers."""

    totals: Tile
    whole: IntegerWeights | None = None


def slice_memory(b: KernelBuilder, v: Buffer, v_dim: int, m: int, prefix: str = "") -> SliceMemory:
    """`prefix`: of the locals' names."""
    scores, values = b.local(f"{prefix}scores", "f32", (m, SLICE)), _rows(b, v, (), v_dim)
    if values is not None:
        return SliceMemory(scores, weight_memory(b, values, m), m)
    return SliceMemory(scores, b.local(f"{prefix}probs", read_dtype(v), (m, SLICE)), m)


def prepare_queries(
    b: KernelBuilder, k: Buffer, q: Tile, scale: float, prefix: str = ""
) -> Buffer | IntegerQueries:
    """Query rows [m, dim] in the type of the keys, in a local whose name begins with `prefix`; `scale`: the
    factor of scores."""
    form, (m, dim) = cache_form(k), (int(n) for n in q.shape)
    if form is not None:
        return integer_queries(b, form, q, scale)
    queries = b.local(f"{prefix}queries", read_dtype(k), (m, dim))
    b.store(queries, (slice(0, m), slice(0, dim)), b.cast(queries.dtype, q))
    return queries


def slice_scores(
    b: KernelBuilder, head: CachedHead, memory: SliceMemory, qs: Buffer | IntegerQueries, c: Affine,
    n: Affine, scale: float, masked: Mask, first: First = 0,
) -> Tile:  # fmt: skip
    """Store the scores of the `n` positions from `c` on, those before `first` left out; returns [m, CHUNK],
    the largest of each column of chunks."""
    m, keys = memory.m, _rows(b, head.k, head.at, head.dim)
    with b.loop("u", first, n, CHUNK, [b.const(NEG, "f32", (m, CHUNK))]) as phase:
        here = c + phase.var
        if keys is not None:
            assert isinstance(qs, IntegerQueries)
            s = integer_scores(b, keys, qs, here)
        else:
            assert isinstance(qs, Buffer)
            s = _float_scores(b, head, qs, here) * scale
        s = masked(s, here)
        b.store(memory.scores, (slice(0, m), slice(phase.var, CHUNK)), s)
        phase.yield_(b.op("max", phase.carried[0], s))
    return phase.results[0]


def _float_scores(b: KernelBuilder, head: CachedHead, queries: Buffer, first: Affine) -> Tile:
    """Products [m, CHUNK] with the keys from `first` on: a loop over channels, so that a wide head is no more
    text than a narrow one."""
    m = queries.dims[0].as_int()
    step = CHANNELS if head.dim % CHANNELS == 0 else head.dim
    with b.loop("d", 0, head.dim, step, [b.const(0, "f32", (m, CHUNK))]) as loop:
        channels = Span(loop.var, step)
        keys = read_cache(b, head.k, (*head.at, Span(first, CHUNK), channels))
        loop.yield_(b.dot(loop.carried[0], b.load(queries, slice(0, m), channels), keys))
    return loop.results[0]


def slice_weights(
    b: KernelBuilder, head: CachedHead, memory: SliceMemory, top: Tile, c: Affine, n: Affine, first: First = 0
) -> SliceWeights:
    """Store exp(score - top) of the `n` positions from `c` on, without those before `first`, as weights."""
    m, values = memory.m, _rows(b, head.v, head.at, head.v_dim)
    if isinstance(memory.probs, WeightMemory):
        assert values is not None
        return SliceWeights(*integer_weights(b, values, memory.scores, memory.probs, top, c, n, first))
    probs = memory.probs
    with b.loop("e", first, n, CHUNK, [b.const(0, "f32", (m, CHUNK))]) as phase:
        e = b.op("exp", b.load(memory.scores, slice(0, m), slice(phase.var, CHUNK)) - top)
        b.store(probs, (slice(0, m), slice(phase.var, CHUNK)), b.cast(probs.dtype, e))
        phase.yield_(phase.carried[0] + e)
    return SliceWeights(phase.results[0])


def add_values(
    b: KernelBuilder, head: CachedHead, memory: SliceMemory, weights: SliceWeights, acc: list[Tile],
    slices: list[tuple[int, int]], c: Affine, n: Affine, first: First = 0,
) -> list[Tile]:  # fmt: skip
    """Accumulators, by group of value columns in `slices`, plus the weighted values of `n` positions from `c`
    on, without those before `first`."""
    values, sums = _rows(b, head.v, head.at, head.v_dim), []
    for k, (d, w) in enumerate(slices):
        channels = Span(Affine.of(d), w)
        if values is None or weights.whole is None:
            assert isinstance(memory.probs, Buffer)
            sums.append(_float_products(b, head, memory.probs, f"v{k}", channels, acc[k], c, n, first))
        else:
            part = integer_products(b, values, weights.whole, f"v{k}", channels, c, n, first)
            sums.append(acc[k] + part)
    return sums


def _float_products(
    b: KernelBuilder, head: CachedHead, probs: Buffer, loop: str, channels: Span, acc: Tile, c: Affine,
    n: Affine, first: First,
) -> Tile:  # fmt: skip
    with b.loop(loop, first, n, TOKENS, [acc]) as phase:
        part = b.load(probs, slice(0, probs.dims[0].as_int()), slice(phase.var, TOKENS))
        vals = read_cache(b, head.v, (*head.at, Span(c + phase.var, TOKENS), channels))
        # memory that was not written may be NaN, which a weight of 0 lets through
        vals = b.within(vals, phase.var, 0, 0.0)
        phase.yield_(b.dot(phase.carried[0], part, b.transpose(vals)))
    return phase.results[0]


def value_slices(v: Buffer, v_dim: int, m: int) -> list[tuple[int, int]]:
    """(first channel, width) of the groups of value columns that are accumulated at once for m rows, as
    registers and blocks of channels allow."""
    form, width = cache_form(v), 32 if m <= 8 else 16
    if form is not None and form.block:
        width = math.gcd(width, form.block)
    return [(d, min(width, v_dim - d)) for d in range(0, v_dim, width)]


def phase_loops(v: Buffer, v_dim: int, m: int) -> tuple[str, ...]:
    """The loops that read the caches: keys, then each group of value columns."""
    return ("u", *(f"v{k}" for k in range(len(value_slices(v, v_dim, m)))))


def _rows(b: KernelBuilder, cache: Buffer, at: tuple[object, ...], width: int) -> CachedRows | None:
    """The cache as integer dots read it; None: as floats."""
    form = cache_form(cache)
    return None if form is None else CachedRows(b, cache, form, at, width)


def read_dtype(cache: Buffer) -> str:
    """The type in which attention reads a cache: that of its elements, or f32 where they are decoded."""
    return cache.dtype if cache.encoding is None else cache.encoding.element or "f32"


def read_cache(b: KernelBuilder, cache: Buffer, at: tuple[object, ...]) -> Tile:
    if cache.encoding is None:
        return b.load(cache, *at)
    tile: Tile = cache.encoding.tile_read(b, cache, at)
    return tile
