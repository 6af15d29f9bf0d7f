"""`sort`: the place of each element is the number of elements that go before it.

In: a region that holds the op alone. Out: one kernel over rows and chunks of the last axis, which stores each
value and its position at its place.
"""

from __future__ import annotations

from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Span
from tilewright.ir.types import FLOATS
from tilewright.passes.lower.dims import CannotEmit, affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, register_lowering

#: elements whose places one instance finds
CHUNK = 64


def _sort(job: Job, op: Op) -> list[Built]:
    job.alone(op)
    x = op.operands[0]
    shape = job.shape(x)
    if op.attr("axis") != len(shape) - 1:
        raise CannotEmit(f"sort along axis {op.attr('axis')} of rank {len(shape)}")
    e = job.emitter("sort")
    row = [At(e.b.grid(f"i{m}", affine_dim(d), 1)) for m, d in enumerate(shape[:-1])]
    start = e.b.grid("c", affine_dim(shape[-1]), CHUNK)
    mine: Coords = (*row, Span(start, CHUNK))
    places = e.b.iota(CHUNK) + e.b.index_value(start)
    value = e.emit(x, mine)
    rank = _places(e, op, row, value, places, shape[-1])
    inside = e.b.op("lt", places, e.b.index_value(affine_dim(shape[-1])))
    where = e.b.select(inside, rank, e.b.const(-1, "i32"))  # lanes beyond the row are not stored
    for r, tile in zip(op.results, (value, places), strict=True):
        if r.name in job.region.outputs:
            y = e.buffer("%" + r.name, f"y{len(e.args)}")
            e.b.store(y, (*row, where), e.b.cast(y.dtype, tile), disjoint=True)
    return [job.finish(e)]


def _places(e: Emitter, op: Op, row: list[At], value: Tile, places: Tile, n: object) -> Tile:
    """For each lane, how many elements of the row go before it: of equal ones, those that stand before it."""
    b = e.b
    with e.loop(e.fresh_var("s"), 0, affine_dim(n), 1, [b.const(0, "i32", (CHUNK,))]) as loop:
        at: Coords = (*row, At(loop.var))
        other = e.emit(op.operands[0], at)
        stands_before = b.op("lt", b.index_value(loop.var), places)
        first = b.select(
            stands_before, b.op("not", _goes_before(e, op, value, other)), _goes_before(e, op, other, value)
        )
        loop.yield_(loop.carried[0] + b.cast("i32", first))
    return loop.results[0]


def _goes_before(e: Emitter, op: Op, a: Tile, c: Tile) -> Tile:
    """Whether a is sorted before c and not equal to it; NaN is larger than any number."""
    b = e.b
    small, large = (c, a) if op.attr("descending") else (a, c)
    if a.dtype == "bool":
        small, large = b.cast("i32", small), b.cast("i32", large)
    less = b.op("lt", small, large)
    if a.dtype not in FLOATS:
        return less
    return b.op("or", less, b.op("and", b.op("ne", large, large), b.op("eq", small, small)))


register_lowering(Lowering("sort", Form.ALONE, template=_sort))
