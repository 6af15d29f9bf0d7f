"""Attention over the cache as a tile program: slices of the context, merged into a running softmax.

Slices begin at absolute multiples of `SLICE` positions, and inside a slice everything is summed in a fixed
order, so decode, prefill chunks and mixed batches give the same bits. One instance serves one query block
(consecutive tokens of one sequence) and the query heads of one KV head. Online softmax: "Online normalizer
calculation for softmax"; tiling: "FlashAttention". Sinks are an extra logit in the denominator (attention
sinks as in gpt-oss); ALiBi: "Train Short, Test Long".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.backends.base import CachedAttention
from tilewright.ir.affine import Affine
from tilewright.ir.plan.step import SLICE
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import Buffer, Span
from tilewright.passes.lower.attention_integer import IntegerQueries
from tilewright.passes.lower.attention_phases import (
    NEG,
    CachedHead,
    First,
    Mask,
    SliceMemory,
    add_values,
    phase_loops,
    prepare_queries,
    slice_memory,
    slice_scores,
    slice_weights,
    value_slices,
)
from tilewright.passes.lower.cached_rows import CHUNK
from tilewright.passes.lower.dims import CannotEmit
from tilewright.passes.lower.listed_rows import Listed


@dataclass(frozen=True)
class Attention:
    """Shape and variant of one attention: `rows` consecutive tokens are computed by one instance."""

    heads: int
    kv_heads: int
    dim: int
    v_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    alibi: bool = False

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.heads // self.kv_heads

    @property
    def heads_per_tile(self) -> int:
        """Query heads of one instance: a divisor of the group, at most 16."""
        return max(g for g in range(1, min(self.group, 16) + 1) if self.group % g == 0)


@dataclass(frozen=True)
class Buffers:
    """Parameters: q[T, H, D] f32, blocks[NB, 4] i32, k/v caches [slots, HK, C, D], home[slots, C/256] i32,
    o[T, H, DV], sinks/slopes [H] f32; lse[T, H] f32, the logarithms of the denominators. Of caches that lose
    rows: `gone`[slots, HK] i32, and `pos`[slots, HK, C] i32 where scores depend on positions. `listed`:
    single tokens may read parts of it."""

    q: Buffer
    blocks: Buffer
    k: Buffer
    v: Buffer
    home: Buffer
    o: Buffer
    sinks: Buffer | None = None
    slopes: Buffer | None = None
    lse: Buffer | None = None
    gone: Buffer | None = None
    pos: Buffer | None = None
    carry: Carry | None = None
    listed: Listed | None = None
    recent: Recent | None = None


@dataclass(frozen=True)
class Recent:
    """Rows k/v[slots, HK, C, D] in bf16 of at least the last `rows` positions of each sequence."""

    k: Buffer
    v: Buffer
    rows: int

    def chunk(self, b: KernelBuilder, pos: Tile) -> Tile:
        """i32: the first row that the queries at `pos` read here, in chunks of rows: `first_recent` of
        `ir.plan.step`."""
        return b.op("max", ((pos + 1) >> CHUNK.bit_length() - 1) - self.rows // CHUNK, b.const(0, "i32"))


@dataclass(frozen=True)
class Positions:
    """Where m rows of queries stand, [m, 1] i32: `row` as rows of the cache, `token` as positions. They are
    equal unless the cache has lost rows; the positions of keys are then in `keys`, at the leading indices
    `at`."""

    row: Tile
    token: Tile
    keys: Buffer | None
    at: tuple[object, ...]

    def of_keys(self, b: KernelBuilder, first: Affine, where: Tile) -> Tile:
        """The positions [1, CHUNK] of the keys in the rows `where`, from `first` on."""
        if self.keys is None:
            return where
        return b.expand(b.load(self.keys, *self.at, Span(first, CHUNK)), 0)


def tokens_per_tile(a: Attention, single: bool) -> int:
    """Query tokens that share one pass over the keys: as many as fill 8 rows together with the heads of a
    tile."""
    return 1 if single else max(t for t in (1, 2, 4, 8) if t * a.heads_per_tile <= max(8, a.heads_per_tile))


def build_attention(b: KernelBuilder, a: Attention, p: Buffers, single: bool) -> CachedAttention:
    """Emit the whole kernel; returns its description for schedules. `single`: every block has one row (pure
    decode)."""
    gh, bt = a.heads_per_tile, tokens_per_tile(a, single)
    if p.k.dims[2].as_int() % SLICE:
        raise CannotEmit(f"a context of {p.k.dims[2]} positions: expected a multiple of {SLICE}")
    tiles = a.heads // gh
    n, h = b.grid("n", p.blocks.dims[0], 1), b.grid("h", tiles, 1)
    block = [b.load(p.blocks, n, c) for c in range(4)]
    row0, count, slot, first = (t.index() for t in block)
    if bt == 1 and single:
        _rows(b, a, p, n, h, row0, first, slot, None, bt)
    else:
        with b.loop("r", 0, count, bt) as loop:
            _rows(b, a, p, n, h, row0 + loop.var, first + loop.var, slot, count - loop.var, bt)
            loop.yield_()
    ahead = single and p.listed is None  # of a list, the next slice is elsewhere
    return CachedAttention(ahead, phase_loops(p.v, a.v_dim, gh), SLICE // CHUNK)


@dataclass(frozen=True)
class QueryTile:
    """m rows of queries of one KV head, and what the fold over slices of its cache needs: `state` is the
    running maximum and sum, [m, 1], and the weighted values by group of `slices`, [m, width]."""

    b: KernelBuilder
    a: Attention
    k: Buffer
    v: Buffer
    m: int
    qs: Buffer | IntegerQueries
    memory: SliceMemory
    slices: list[tuple[int, int]]

    def start(self) -> list[Tile]:
        b, m = self.b, self.m
        values = [b.const(0, "f32", (m, w)) for _, w in self.slices]
        return [b.const(NEG, "f32", (m, 1)), b.const(0, "f32", (m, 1)), *values]

    def fold(
        self, state: Sequence[Tile], at: tuple[object, ...], c: Affine, n: Affine, masked: Mask,
        first: First = 0,
    ) -> list[Tile]:  # fmt: skip
        """The state after `n` rows of the cache from `c` on, without those before `first`, which lie at the
        leading indices `at`."""
        b, (top, total, *acc) = self.b, state
        cached = CachedHead(self.k, self.v, at, self.a.dim, self.a.v_dim)
        largest = slice_scores(b, cached, self.memory, self.qs, c, n, self.a.scale, masked, first)
        new_top = b.op("max", top, b.reduce("max", largest, 1))
        safe = b.op("max", new_top, -1e30)  # a row with no key yet: exp(-inf - finite) = 0, never inf - inf
        weights = slice_weights(b, cached, self.memory, safe, c, n, first)
        shrink = b.op("exp", top - safe)
        new_total = b.op("fma", total, shrink, b.reduce("add", weights.totals, 1))
        return [
            new_top,
            new_total,
            *add_values(b, cached, self.memory, weights, [x * shrink for x in acc], self.slices, c, n, first),
        ]


def query_tile(
    b: KernelBuilder, a: Attention, q: Buffer, k: Buffer, v: Buffer, h: Affine, row: Affine, bt: int
) -> QueryTile:
    """bt tokens x heads_per_tile heads from `row` and head tile `h` on: rows m = token * heads + head."""
    x = _query_rows(b, a, q, h, row, bt)
    m, qs = bt * a.heads_per_tile, prepare_queries(b, k, x, a.scale)
    return QueryTile(b, a, k, v, m, qs, slice_memory(b, v, a.v_dim, m), value_slices(v, a.v_dim, m))


def _query_rows(b: KernelBuilder, a: Attention, q: Buffer, h: Affine, row: Affine, bt: int) -> Tile:
    gh = a.heads_per_tile
    heads = Span(h * gh, gh)
    return b.reshape(b.load(q, Span(row, bt), heads, Span(Affine(), a.dim)), bt * gh, a.dim)


def _rows(
    b: KernelBuilder, a: Attention, p: Buffers, n: Affine, h: Affine, row: Affine, pos: Affine, slot: Affine,
    left: Affine | None, bt: int,
) -> None:  # fmt: skip
    gh = a.heads_per_tile
    tile = query_tile(b, a, p.q, p.k, p.v, h, row, bt)
    token, head_at = pos, (slot, kv_head(b, h, a.group // gh))
    if p.gone is not None:  # in rows of the cache
        pos = pos - b.load(p.gone, *head_at).index()
    last = pos + bt if left is None else pos + b.op("min", b.index_value(left), b.const(bt, "i32")).index()
    at_row = _row_positions(b, pos, bt, gh)
    at_token = at_row if p.pos is None else _row_positions(b, token, bt, gh)
    shift = b.const(SLICE.bit_length() - 1, "i32")
    slices_of_context = p.k.dims[2].as_int() // SLICE
    newest, stop, read_row = None, last, at_row  # of the rows that are read as they are encoded
    if p.recent is not None:
        newest = _newest(b, p.recent, tile, _query_rows(b, a, p.q, h, row, bt), pos, at_row, last)
        stop, read_row = newest.end, newest.first - 1
    high = b.op(
        "min", b.op("shr", b.index_value(stop + (SLICE - 1)), shift), b.const(slices_of_context, "i32")
    ).index()
    low: int | Affine = _first_slice(b, a.window, pos, shift) if a.window else 0
    head = h * gh
    slopes = _per_row(b, p.slopes, head, bt, gh) if p.slopes is not None else None
    state = tile.start()
    if p.carry is not None and left is None:
        low, state = resumed(tile, p.carry, slot, head)

    def folded(
        state: Sequence[Tile], s: Affine, left: Callable[[Affine], Tile], first: First = 0
    ) -> list[Tile]:
        """The state after the rows of slice s from `first` on; `left`: how many there are from a row on."""
        held = (b.load(p.home, slot, s).index(), head_at[1])
        where, c = Positions(read_row, at_token, p.pos, held), s * SLICE
        here = b.op("min", left(c), b.const(SLICE, "i32")).index()
        return tile.fold(state, held, c, here, lambda x, at: masked_scores(b, a, x, at, where, slopes), first)

    if p.listed is not None:
        high = p.listed.high(b, row, head_at, high)
    with b.loop("s", low, high, 1, state) as loop:
        if p.listed is None:
            loop.yield_(*folded(loop.carried, loop.var, lambda c: b.index_value(stop - c)))
        else:
            s, first, end = p.listed.run(b, row, head_at, loop.var, last, slices_of_context)
            with b.loop("c", s, s + 1, 1, loop.carried) as once:
                once.yield_(*folded(once.carried, once.var, lambda c: end - b.index_value(c), first))
            loop.yield_(*once.results)
    top, total, *acc = loop.results
    if newest is not None:
        where = Positions(at_row, at_token, None, (slot, head_at[1]))
        top, total, *acc = newest.fold(b, loop.results, where, slopes)
    if p.sinks is not None:
        top, total, acc = _with_sinks(b, _per_row(b, p.sinks, head, bt, gh), top, total, acc)
    if p.lse is not None:
        _store_rows(b, p.lse, h, row, left, bt, gh, (), top + b.op("log", total))
    for (d, w), x in zip(tile.slices, acc, strict=True):
        _store_rows(b, p.o, h, row, left, bt, gh, (Span(Affine.of(d), w),), x / total)


@dataclass(frozen=True)
class Newest:
    """The rows that m queries read in bf16, which come after all slices: those before row `last`, of which
    each query reads those from `first` [m, 1] on. `chunk`: where they begin, in chunks of rows. What is read
    as it is encoded ends at row `end`."""

    tile: QueryTile
    first: Tile
    chunk: Tile
    last: Affine
    end: Affine

    def fold(
        self, b: KernelBuilder, state: Sequence[Tile], where: Positions, slopes: Tile | None
    ) -> list[Tile]:
        """The state after these rows: one pass of a loop, whose range says where they can begin."""

        def masked(s: Tile, at: Affine) -> Tile:
            rows = b.expand(b.iota(CHUNK) + b.index_value(at), 0)
            s = masked_scores(b, self.tile.a, s, at, where, slopes)
            return b.select(b.op("le", self.first, rows), s, NEG)

        chunks = self.tile.k.dims[2].as_int() // CHUNK - SLICE // CHUNK  # before the last slice
        low = b.op("min", self.chunk, b.const(chunks, "i32"))
        high = b.op("min", low + 1, b.const(chunks + 1, "i32"))
        with b.loop("t", low.index(), high.index(), 1, state) as loop:
            c = loop.var * CHUNK
            n = b.op("min", b.index_value(self.last - c), b.const(SLICE, "i32")).index()
            loop.yield_(*self.tile.fold(loop.carried, where.at, c, n, masked))
        return list(loop.results)


def _newest(
    b: KernelBuilder, r: Recent, tile: QueryTile, x: Tile, pos: Affine, at_row: Tile, last: Affine
) -> Newest:
    """Of the queries `x` of a tile, which are at the rows `pos` to `last` (exclusive) of the cache, each at
    `at_row`."""
    a = tile.a
    queries = prepare_queries(b, r.k, x, a.scale, "recent_")
    memory = slice_memory(b, r.v, a.v_dim, tile.m, "recent_")
    newest = QueryTile(b, a, r.k, r.v, tile.m, queries, memory, tile.slices)
    end = (r.chunk(b, b.index_value(last - 1)) * CHUNK).index()
    return Newest(newest, r.chunk(b, at_row) * CHUNK, r.chunk(b, b.index_value(pos)), last, end)


@dataclass(frozen=True)
class Carry:
    """States that rows of a stacked prefix left for their sequences: `skip`[slots, 1] i32, how many slices
    they cover (0: none), and `state`[slots, H, DV + 2] f32, values, then maximum and sum."""

    skip: Buffer
    state: Buffer


def resumed(tile: QueryTile, carry: Carry, slot: Affine, head: Affine) -> tuple[Affine, list[Tile]]:
    """The first slice that is left, and the state before it: loaded only if there is one."""
    b, heads = tile.b, Span(head, tile.a.heads_per_tile)
    skip = b.load(carry.skip, slot, 0)
    once = b.op("min", skip, b.const(1, "i32")).index()
    places = [(tile.a.v_dim, 1), (tile.a.v_dim + 1, 1), *tile.slices]
    with b.loop("p", 0, once, 1, tile.start()) as loop:
        loop.yield_(*(b.load(carry.state, slot, heads, Span(Affine.of(d), w)) for d, w in places))
    return b.op("max", skip, b.const(0, "i32")).index(), list(loop.results)


def masked_scores(
    b: KernelBuilder, a: Attention, s: Tile, first: Affine, at: Positions, slopes: Tile | None
) -> Tile:
    """Scores of the CHUNK rows of the cache from `first` on, capped and biased; NEG where a query may not
    attend."""
    if a.softcap:
        s = softcapped(b, s, a.softcap)
    where = b.expand(b.iota(CHUNK) + b.index_value(first), 0)
    position = at.of_keys(b, first, where)
    if slopes is not None:
        s = b.op("fma", slopes, b.cast("f32", position - at.token), s)
    s = b.select(b.op("le", where, at.row), s, NEG)
    return b.select(b.op("lt", at.token - a.window, position), s, NEG) if a.window else s


def _first_slice(b: KernelBuilder, window: int, pos: Affine, shift: Tile) -> int | Affine:
    """The first slice that contains a position of the window."""
    oldest = b.op("max", b.index_value(pos - (window - 1)), b.const(0, "i32"))
    return b.op("shr", oldest, shift).index()


def _with_sinks(
    b: KernelBuilder, sink: Tile, top: Tile, total: Tile, acc: list[Tile]
) -> tuple[Tile, Tile, list[Tile]]:
    """Maximum, sum and weighted values with the sink as one more score, which has no value."""
    peak = b.op("max", top, sink)
    shrink = b.op("exp", top - peak)
    return peak, b.op("fma", total, shrink, b.op("exp", sink - peak)), [x * shrink for x in acc]


def _row_positions(b: KernelBuilder, pos: Affine, bt: int, gh: int) -> Tile:
    """[m, 1] i32: the position of each row's token."""
    if bt == 1:
        return b.index_value(pos) + b.const(0, "i32", (gh, 1))
    tokens = b.iota(bt) + b.index_value(pos)
    return b.reshape(b.expand(tokens, 1) + b.const(0, "i32", (bt, gh)), bt * gh, 1)


def _per_row(b: KernelBuilder, x: Buffer, head: Affine, bt: int, gh: int) -> Tile:
    """[m, 1]: a per-head number, repeated for every token of the tile."""
    heads = b.load(x, Span(head, gh))
    if bt == 1:
        return b.expand(heads, 1)
    return b.reshape(heads + b.const(0, "f32", (bt, gh)), bt * gh, 1)


def kv_head(b: KernelBuilder, h: Affine, tiles_per_head: int) -> Affine:
    if tiles_per_head == 1:
        return h
    return b.op("div", b.index_value(h), b.const(tiles_per_head, "i32")).index()


def softcapped(b: KernelBuilder, s: Tile, cap: float) -> Tile:
    """cap * tanh(s / cap), with tanh(x) = 1 - 2 / (exp(2x) + 1)."""
    e = b.op("exp", s * (2.0 / cap))
    return (1.0 - 2.0 / (e + 1.0)) * cap


def _store_rows(
    b: KernelBuilder, y: Buffer, h: Affine, row: Affine, left: Affine | None, bt: int, gh: int,
    last: tuple[Span, ...], x: Tile,
) -> None:  # fmt: skip
    """Store x[m, w], or x[m, 1] if `last` is empty, for the tokens of a tile that exist and its heads."""
    tile = b.cast(y.dtype, b.reshape(x, bt, gh, *(s.size for s in last)))
    heads = Span(h * gh, gh)
    if bt == 1 and left is None:
        b.store(y, (Span(row, 1), heads, *last), tile, disjoint=True)
        return
    assert left is not None
    lane = b.iota(bt)
    rows = b.select(b.op("lt", lane, b.index_value(left)), lane + b.index_value(row), b.const(-1, "i32"))
    b.store(y, (rows, heads, *last), tile, disjoint=True)
