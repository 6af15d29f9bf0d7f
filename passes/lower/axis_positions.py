"""Ops on positions along an axis: argmax and argmin, scatter, index_put.

In: an emitter and coordinates. Out: tiles. A scatter is computed by its destination: each element of the
result searches the indices for its own, in order, so that no two instances write the same element, and of
equal indices the last one wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.numbers import int_range
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Span
from tilewright.ir.types import INTEGERS
from tilewright.passes.lower.dims import affine_dim
from tilewright.passes.lower.emit import Coord, Coords, Emitter
from tilewright.passes.lower.record import Form, Lowering, register_lowering
from tilewright.passes.lower.reductions import LANES

#: larger than any index
FAR = (1 << 31) - 1


# ------------------------------------------------------------------ argmax, argmin
def _arg(e: Emitter, op: Op, at: Coords) -> Tile:
    """The first position of the largest value along one axis (for argmin, of the smallest). NaN counts as
    better than any number."""
    axis = int(str(op.attr("axis")))
    before, after = at[:axis], at[axis + 1 if op.attr("keepdims") else axis :]
    best = e.once((op.result.name, at), lambda: _best(e, op, before, after))
    spans = [c.size for c in at if isinstance(c, Span)]
    return best if len(spans) == len(best.shape) else e.b.reshape(best, *spans)


def _best(e: Emitter, op: Op, before: Coords, after: Coords) -> Tile:
    """For a single row, positions along the axis are in lanes; for several rows, the rows are."""
    x, b = op.operands[0], e.b
    spans = [c.size for c in (*before, *after) if isinstance(c, Span)]
    n = e.shapes(x)[len(before)]
    lanes = 0 if spans else min(LANES, 1 << (n - 1).bit_length()) if isinstance(n, int) else LANES
    shape = (lanes,) if lanes else tuple(spans)
    worst, dtype = _worst(op, e.type_of(x).dtype)

    def along(start: Affine) -> Tile:
        return b.cast(dtype, e.emit(x, (*before, Span(start, lanes) if lanes else At(start), *after)))

    along(Affine())  # statistics are emitted here, once per row, outside the loop
    begin = [b.const(worst, dtype, shape), b.const(0, "i32", shape)]
    with e.loop(e.fresh_var("s"), 0, affine_dim(n), lanes or 1, begin) as loop:
        value, place = along(loop.var), b.index_value(loop.var)
        if lanes:
            place = b.iota(lanes) + place
            value = b.within(value, loop.var, 0, worst) if not isinstance(n, int) or n % lanes else value
        take = _better(e, op, value, loop.carried[0])
        loop.yield_(b.select(take, value, loop.carried[0]), b.select(take, place, loop.carried[1]))
    best, where = loop.results
    return _first_lane(e, op, best, where, worst) if lanes else where


def _worst(op: Op, dtype: str) -> tuple[float, str]:
    """The value to start the search with, which no value is worse than, and the type to compare in."""
    low = op.name == "argmax"
    if dtype[0] == "f" or dtype == "bf16":
        return (float("-inf") if low else float("inf")), dtype
    wide = "i64" if dtype == "i64" else "i32"
    return int_range(wide)[0 if low else 1], wide


def _better(e: Emitter, op: Op, value: Tile, best: Tile) -> Tile:
    beats = e.b.op("lt", best, value) if op.name == "argmax" else e.b.op("lt", value, best)
    if value.dtype in INTEGERS:  # has no NaN
        return beats
    first_nan = e.b.op("and", e.b.op("ne", value, value), e.b.op("eq", best, best))
    return e.b.op("or", beats, first_nan)


def _first_lane(e: Emitter, op: Op, best: Tile, where: Tile, worst: float) -> Tile:
    """The lowest position among the lanes that hold the best value."""
    b, far = e.b, e.b.const(FAR, "i32")
    nan = b.op("ne", best, best)
    number = best if best.dtype in INTEGERS else b.select(nan, worst, best)
    top = b.reduce("max" if op.name == "argmax" else "min", number, 0)
    found = b.reduce("min", b.select(b.op("eq", number, top), where, far), 0)
    if best.dtype not in INTEGERS:
        first = b.reduce("min", b.select(nan, where, far), 0)
        found = b.select(b.op("eq", first, far), found, first)
    return b.reshape(found)


# ------------------------------------------------------------------ scatter, index_put
def _scatter(e: Emitter, op: Op, at: Coords) -> Tile:
    """x, with the source elements whose index is this position written or combined, in order."""
    x, ids, src = op.operands
    axis, how, b = int(str(op.attr("axis"))), str(op.attr("reduce")), e.b
    shape, box = e.shapes(x), e.shapes(ids)
    inside = [_below(e, at, d, box[d]) for d in range(len(at)) if d != axis and box[d] != shape[d]]

    def put(held: Tile, place: Sequence[Affine]) -> Tile:
        (start,) = place
        there = (*at[:axis], Span(start, 1) if isinstance(at[axis], Span) else At(start), *at[axis + 1 :])
        hit = b.op("eq", b.cast("i32", e.emit(ids, there)), _coordinate(e, at, axis))
        for more in inside:
            hit = b.op("and", hit, more)
        value = b.cast(held.dtype, e.emit(src, there))
        return b.select(hit, value if how == "none" else b.op(how, held, value), held)

    return _over(e, [box[axis]], e.whole(e.emit(x, at), at), put)


def _index_put(e: Emitter, op: Op, at: Coords) -> Tile:
    """x, with the rows that the indices name replaced or added to, in order."""
    x, ids, values = op.operands
    box, b = e.shapes(ids), e.b

    def put(held: Tile, place: Sequence[Affine]) -> Tile:
        hit = b.op("eq", b.cast("i32", e.emit(ids, tuple(At(p) for p in place))), _coordinate(e, at, 0))
        lead: list[Coord] = [At(p) for p in place]
        if lead and isinstance(at[0], Span):  # keeps the rows' axis of the tile
            lead[-1] = Span(lead[-1].start, 1)
        value = b.cast(held.dtype, e.emit(values, e._broadcast(values, (*lead, *at[1:]))))
        return b.select(hit, held + value if op.attr("accumulate") else value, held)

    return _over(e, box, e.whole(e.emit(x, at), at), put)


def _over(
    e: Emitter, extents: Sequence[object], held: Tile, put: Callable[[Tile, Sequence[Affine]], Tile]
) -> Tile:
    """`put` at every position of a box, in order."""

    def nest(done: list[Affine], held: Tile) -> Tile:
        if len(done) == len(extents):
            return put(held, done)
        with e.loop(e.fresh_var("s"), 0, affine_dim(extents[len(done)]), 1, [held]) as loop:
            loop.yield_(nest([*done, loop.var], loop.carried[0]))
        return loop.results[0]

    return nest([], held)


def _coordinate(e: Emitter, at: Coords, axis: int) -> Tile:
    """The position of each element of the tile along an axis, in a shape that broadcasts against the tile."""
    c, start = at[axis], e.b.index_value(at[axis].start)
    if isinstance(c, At):
        return start
    after = sum(isinstance(other, Span) for other in at[axis + 1 :])
    lanes = e.b.iota(c.size) + start
    return e.b.reshape(lanes, c.size, *[1] * after) if after else lanes


def _below(e: Emitter, at: Coords, axis: int, size: object) -> Tile:
    return e.b.op("lt", _coordinate(e, at, axis), e.b.index_value(affine_dim(size)))


for _name, _emit in (("argmax", _arg), ("argmin", _arg), ("scatter", _scatter), ("index_put", _index_put)):
    register_lowering(Lowering(_name, Form.ALONE, _emit))
