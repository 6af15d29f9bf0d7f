"""Elements written at places picked at run time: scatter, index_put.

In: a region that holds the op alone. Out: one kernel, whose instances each own some columns of the result, so
that no two write the same element, and go through the indices in order: of equal ones the last one wins. A
scatter along a short axis is computed by its destination instead: each element searches the indices for its
own, whole tiles at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Span
from tilewright.passes.lower.dims import affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, register_lowering
from tilewright.passes.lower.rows import over_rows

#: columns that one instance owns
COLS = 64
#: the longest axis whose elements search the indices
SHORT = 64


# ------------------------------------------------------------------ index_put
def _index_put(job: Job, op: Op) -> list[Built]:
    """x, with the rows that the indices name replaced or added to, in order."""
    job.alone(op)
    x, ids, values = op.operands
    shape = job.shape(x)
    e = job.emitter("index_put")
    y = e.buffer("%" + op.result.name, "y")
    columns = _columns(e, shape[1:])
    with e.loop(e.fresh_var("m"), 0, affine_dim(shape[0]), 1) as loop:
        e.store(y, x, (At(loop.var), *columns))
        loop.yield_()

    def put(place: Sequence[Affine]) -> None:
        picked = tuple(At(p) for p in place)
        row = e.b.cast("i32", e.emit(ids, picked)).index()
        value = e.b.cast(y.dtype, e.emit(values, e.broadcast(values, (*picked, *columns))))
        if op.attr("accumulate"):
            value = e.b.load(y, At(row), *columns) + value
        e.b.store(y, (At(row), *columns), value, disjoint=True)

    _each(e, job.shape(ids), put)
    return [job.finish(e)]


def _columns(e: Emitter, rest: Sequence[object]) -> Coords:
    """A grid over the axes that the indices do not pick: the last one in chunks."""
    if not rest:
        e.b.grid("i0", 1, 1)
        return ()
    lead = [At(e.b.grid(f"i{n}", affine_dim(d), 1)) for n, d in enumerate(rest[:-1])]
    width = min(COLS, 1 << (rest[-1] - 1).bit_length()) if isinstance(rest[-1], int) and rest[-1] else COLS
    return (*lead, Span(e.b.grid("c", affine_dim(rest[-1]), width), width))


def _each(e: Emitter, extents: Sequence[object], put: Callable[[Sequence[Affine]], None]) -> None:
    """`put` at every position of a box, in order."""

    def nest(done: list[Affine]) -> None:
        if len(done) == len(extents):
            put(done)
            return
        with e.loop(e.fresh_var("s"), 0, affine_dim(extents[len(done)]), 1) as loop:
            nest([*done, loop.var])
            loop.yield_()

    nest([])


# ------------------------------------------------------------------ scatter
def _scatter(job: Job, op: Op) -> list[Built]:
    job.alone(op)
    axis = int(str(op.attr("axis")))
    length = job.shape(op.operands[0])[axis]
    if isinstance(length, int) and length <= SHORT:
        return over_rows(job)
    return _by_source(job, op, axis)


def _by_source(job: Job, op: Op, axis: int) -> list[Built]:
    """Every instance owns one line along the axis."""
    x, ids, src = op.operands
    shape, box, how = job.shape(x), job.shape(ids), str(op.attr("reduce"))
    e = job.emitter("scatter")
    y = e.buffer("%" + op.result.name, "y")
    others = [At(e.b.grid(f"i{n}", affine_dim(d), 1)) for n, d in enumerate(shape) if n != axis]
    if not others:
        e.b.grid("i0", 1, 1)

    def line(place: Affine) -> Coords:
        return (*others[:axis], At(place), *others[axis:])

    with e.loop(e.fresh_var("m"), 0, affine_dim(shape[axis]), 1) as loop:
        e.store(y, x, line(loop.var))
        loop.yield_()
    end = _end(e, line(Affine()), shape, box, axis)
    with e.loop(e.fresh_var("s"), 0, end, 1) as loop:
        there = line(e.b.cast("i32", e.emit(ids, line(loop.var))).index())
        value = e.b.cast(y.dtype, e.emit(src, line(loop.var)))
        value = value if how == "none" else e.b.op(how, e.b.load(y, *there), value)
        e.b.store(y, there, value, disjoint=True)
        loop.yield_()
    return [job.finish(e)]


def _end(
    e: Emitter, at: Coords, shape: Sequence[object], box: Sequence[object], axis: int
) -> int | str | Affine:
    """How many indices a line has: none beyond the box that they fill."""
    inside = [_below(e, at, d, box[d]) for d in range(len(at)) if d != axis and box[d] != shape[d]]
    if not inside:
        return affine_dim(box[axis])
    number = e.b.index_value(affine_dim(box[axis]))
    for more in inside:
        number = e.b.select(more, number, 0)
    return number.index()


def _by_destination(e: Emitter, op: Op, at: Coords) -> Tile:
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


def _over(
    e: Emitter, extents: Sequence[object], held: Tile, put: Callable[[Tile, Sequence[Affine]], Tile]
) -> Tile:
    """`put` on what is held, at every position of a box, in order."""

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


register_lowering(Lowering("scatter", Form.ALONE, _by_destination, template=_scatter))
register_lowering(Lowering("index_put", Form.ALONE, template=_index_put))
