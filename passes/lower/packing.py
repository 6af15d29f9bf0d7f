"""Packed rows: leading rows, rows put back in their places, attention of sequences side by side.

In: a region. Out: kernels. An instance of attention computes 16 rows of queries of one head, which are lanes
throughout: scores are [keys, queries] and results [channels, queries], so that keys and values are read as
they lie and softmax never works across lanes. The rows may belong to several sequences, which are passed one
after the other; each begins at its own first key, so that its neighbours change no bit of its results.
Online softmax: "Online normalizer calculation for softmax"; no padding: "ByteTransformer: A High-Performance
Transformer Boosted for Variable-Length Inputs".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Buffer, Span
from tilewright.passes.lower.attention import kv_head, softcapped
from tilewright.passes.lower.dims import affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.gather import picked
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, register_lowering

#: rows of queries of one instance; keys whose scores are computed together
ROWS, KEYS = 16, 16
#: keys whose scores are kept; channels of results that are accumulated together
SLICE, WIDTH = 256, 16
#: rows that one instance of `leading_rows` copies
COPIED = 64
NEG = float("-inf")


# ------------------------------------------------------------------ leading_rows, place_rows
def _leading_rows(job: Job, op: Op) -> list[Built]:
    job.alone(op)
    e = job.emitter("leading_rows")
    y = e.buffer("%" + op.result.name, "y")
    at = (Span(e.b.grid("i", affine_dim(op.result.type.shape[0]), COPIED), COPIED),)
    e.store(y, op.operands[0], at)
    return [job.finish(e)]


def _place_rows(e: Emitter, op: Op, at: Coords) -> Tile:
    x, slots = op.operands
    rank = len(e.shapes(slots))
    return picked(e, x, (), e.emit(slots, at[:rank]), at[rank:])


# ------------------------------------------------------------------ attention
@dataclass(frozen=True)
class _Heads:
    """One head of the operands of an attention: `at` is the row tile of queries, `head` and `kv` the indices
    of the head. `dtype`: of scores and sums."""

    e: Emitter
    op: Op
    head: Affine
    kv: Affine
    dtype: str

    @property
    def dim(self) -> int:
        return int(str(self.e.shapes(self.op.operands[0])[2]))

    @property
    def v_dim(self) -> int:
        return int(str(self.e.shapes(self.op.operands[2])[2]))

    def queries(self, rows: Span, channels: Span) -> Tile:
        return self._read(0, rows, self.head, channels)

    def keys(self, rows: Span, channels: Span) -> Tile:
        return self._read(1, rows, self.kv, channels)

    def values(self, rows: Span, channels: Span) -> Tile:
        return self._read(2, rows, self.kv, channels)

    def _read(self, operand: int, rows: Span, head: Affine, channels: Span) -> Tile:
        return self.e.b.cast(self.dtype, self.e.emit(self.op.operands[operand], (rows, At(head), channels)))


@dataclass(frozen=True)
class _Memory:
    """Locals of one slice of keys: keys and values [keys, channels] in the type of sums, zero up to the next
    multiple of KEYS; scores and their exponentials [keys, rows]."""

    keys: Buffer
    values: Buffer
    scores: Buffer
    weights: Buffer

    @staticmethod
    def of(head: _Heads) -> _Memory:
        widths = {"keys": head.dim, "values": head.v_dim, "scores": ROWS, "weights": ROWS}
        return _Memory(*(head.e.b.local(name, head.dtype, (SLICE, w)) for name, w in widths.items()))


def _attend_packed(job: Job, op: Op) -> list[Built]:
    job.alone(op)
    e = job.emitter("attend_packed")
    _, _, _, seq, starts = op.operands
    n, heads = job.shape(op.operands[0])[0], int(str(op.attr("heads")))
    i, h = e.b.grid("i", affine_dim(n), ROWS), e.b.grid("h", heads, 1)
    dtype = "f64" if e.type_of(op.operands[0]).dtype == "f64" else "f32"
    head = _Heads(e, op, h, kv_head(e.b, h, heads // int(str(op.attr("kv_heads")))), dtype)
    y = e.buffer("%" + op.result.name, "y")
    queries = _turned_queries(head, Span(i, ROWS))
    memory = _Memory.of(head)
    own, first, last = _sequences(e, seq, i, Affine.of(affine_dim(n)))
    bounds = e.in_memory(starts, "starts")
    with e.loop("s", first, last + 1, 1, _empty(head)) as loop:
        start, stop = (e.b.load(bounds, loop.var + k).index() for k in (0, 1))
        state = _sequence(head, queries, memory, loop.carried, start, stop)
        here = e.b.op("eq", own, e.b.index_value(loop.var))
        loop.yield_(*(e.b.select(here, new, old) for new, old in zip(state, loop.carried, strict=True)))
    _, total, *sums = loop.results
    for (d, w), x in zip(_slices(head.v_dim), sums, strict=True):
        tile = e.b.cast(y.dtype, e.b.transpose(x / total))
        e.b.store(y, (Span(i, ROWS), At(h), Span(Affine.of(d), w)), tile)
    return [job.finish(e)]


def _turned_queries(head: _Heads, rows: Span) -> Buffer:
    """The queries as [channels, rows], scaled."""
    b, dim = head.e.b, head.dim
    local = b.local("queries", head.dtype, (dim, ROWS))
    tile = head.queries(rows, Span(Affine(), dim)) * float(str(head.op.attr("scale")))
    b.store(local, (slice(0, dim), slice(0, ROWS)), b.transpose(tile))
    return local


def _sequences(e: Emitter, seq: str, i: Affine, n: Affine) -> tuple[Tile, Affine, Affine]:
    """The sequence of each row of a tile, -1 beyond the last row, and the first and the last of them."""
    held = e.in_memory(seq, "seq")
    end = e.b.op("min", e.b.index_value(i + ROWS), e.b.index_value(n)) - 1
    own = e.b.expand(e.b.load(held, Span(i, ROWS), other=-1.0), 0)
    return own, e.b.load(held, i).index(), e.b.load(held, end.index()).index()


def _slices(v_dim: int) -> list[tuple[int, int]]:
    return [(d, min(WIDTH, v_dim - d)) for d in range(0, v_dim, WIDTH)]


def _empty(head: _Heads) -> list[Tile]:
    """Maximum and sum of each row, and its weighted values by group of channels, before any key."""
    const = head.e.b.const
    sums = [const(0, head.dtype, (w, ROWS)) for _, w in _slices(head.v_dim)]
    return [const(NEG, head.dtype, (1, ROWS)), const(0, head.dtype, (1, ROWS)), *sums]


def _sequence(
    head: _Heads, queries: Buffer, memory: _Memory, state: Sequence[Tile], start: Affine, stop: Affine
) -> tuple[Tile, ...]:
    """The state after the keys `start` to below `stop`, slice by slice."""
    e, shift = head.e, head.e.b.const(SLICE.bit_length() - 1, "i32")
    slices = e.b.op("shr", e.b.index_value(stop - start + (SLICE - 1)), shift).index()
    with e.loop("c", 0, slices, 1, state) as loop:
        at = start + loop.var * SLICE
        left = e.b.index_value(stop - at)
        n = e.b.op("min", left, e.b.const(SLICE, "i32")).index()
        _copy(head, memory, at, n)
        top, total, *sums = loop.carried
        new_top = e.b.op("max", top, _scores(head, queries, memory, n))
        shrink = e.b.op("exp", top - new_top)
        new_total = e.b.op("fma", total, shrink, _weights(head, memory, new_top, n))
        loop.yield_(
            new_top,
            new_total,
            *(
                _weighted(head, memory, x * shrink, Span(Affine.of(d), w), n)
                for (d, w), x in zip(_slices(head.v_dim), sums, strict=True)
            ),
        )
    return loop.results


def _copy(head: _Heads, memory: _Memory, at: Affine, n: Affine) -> None:
    """Keep `n` keys and values from `at` on: every row of queries reads them, and behind the last one there
    may be no more rows, which a test would have to find out for each."""
    b = head.e.b
    with head.e.loop("r", 0, n, KEYS) as loop:
        rows, here = Span(at + loop.var, KEYS), Span(loop.var, KEYS)
        for read, kept, width in (
            (head.keys, memory.keys, head.dim), (head.values, memory.values, head.v_dim),
        ):  # fmt: skip
            tile = read(rows, Span(Affine(), width))
            b.store(kept, (here, slice(0, width)), b.within(tile, loop.var, 0, 0.0))
        loop.yield_()


def _scores(head: _Heads, queries: Buffer, memory: _Memory, n: Affine) -> Tile:
    """Store the scores of `n` keys as [keys, rows], and -inf up to the next multiple of KEYS; the largest of
    each row."""
    e, cap = head.e, float(str(head.op.attr("softcap") or 0.0))
    with e.loop("u", 0, n, KEYS, [e.b.const(NEG, head.dtype, (1, ROWS))]) as loop:
        here = Span(loop.var, KEYS)
        with e.loop("d", 0, head.dim, 1, [e.b.const(0, head.dtype, (KEYS, ROWS))]) as inner:
            key = e.b.expand(e.b.load(memory.keys, here, inner.var), 1)
            query = e.b.expand(e.b.load(queries, inner.var, slice(0, ROWS)), 0)
            inner.yield_(e.b.op("fma", key, query, inner.carried[0]))
        s = softcapped(e.b, inner.results[0], cap) if cap else inner.results[0]
        key = e.b.iota(KEYS) + e.b.index_value(loop.var)
        s = e.b.select(e.b.expand(e.b.op("lt", key, e.b.index_value(n)), 1), s, NEG)
        e.b.store(memory.scores, (here, slice(0, ROWS)), s)
        loop.yield_(e.b.op("max", loop.carried[0], e.b.reduce("max", s, 0)))
    return loop.results[0]


def _weights(head: _Heads, memory: _Memory, top: Tile, n: Affine) -> Tile:
    """Store the exponentials of the scores of `n` keys, relative to that of `top`; their sums."""
    e = head.e
    with e.loop("x", 0, n, KEYS, [e.b.const(0, head.dtype, (1, ROWS))]) as loop:
        here = (Span(loop.var, KEYS), slice(0, ROWS))
        w = e.b.op("exp", e.b.load(memory.scores, *here) - top)
        e.b.store(memory.weights, here, w)
        loop.yield_(loop.carried[0] + e.b.reduce("add", w, 0))
    return loop.results[0]


def _weighted(head: _Heads, memory: _Memory, acc: Tile, channels: Span, n: Affine) -> Tile:
    """A group of channels [channels, rows], plus the weighted values of `n` keys."""
    e = head.e
    with e.loop(e.fresh_var("v"), 0, n, 1, [acc]) as loop:
        value = e.b.expand(e.b.load(memory.values, loop.var, channels), 1)
        w = e.b.expand(e.b.load(memory.weights, loop.var, slice(0, ROWS)), 0)
        loop.yield_(e.b.op("fma", value, w, loop.carried[0]))
    return loop.results[0]


register_lowering(Lowering("leading_rows", Form.ALONE, template=_leading_rows))
register_lowering(Lowering("place_rows", Form.ROWS, _place_rows, picks=0))
register_lowering(Lowering("attend_packed", Form.ALONE, template=_attend_packed))
