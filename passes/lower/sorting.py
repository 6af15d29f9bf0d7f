"""`sort` and `merge_runs`: the place of each element is the number of elements that go before it.

In: a region that holds the op alone. Out: one kernel over rows and chunks of the last axis, which stores each
value and its position at its place. Within a run all others are looked at; two runs that are in order are
merged by a binary search of one for each element of the other.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Buffer, Span
from tilewright.ir.types import FLOATS
from tilewright.passes.lower.dims import CannotEmit, affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, register_lowering

#: elements whose places one instance finds
CHUNK = 64


# ------------------------------------------------------------------ within a run
def _sort(job: Job, op: Op) -> list[Built]:
    job.alone(op)
    x = op.operands[0]
    shape = job.shape(x)
    if op.attr("axis") != len(shape) - 1:
        raise CannotEmit(f"sort along axis {op.attr('axis')} of rank {len(shape)}")
    run = int(str(op.attr("run")))
    if run % CHUNK:
        raise CannotEmit(f"sort of runs of {run}, which chunks of {CHUNK} do not divide")
    e = job.emitter("sort")
    row, start, mine = _grid(e, shape)
    places = e.b.iota(CHUNK) + e.b.index_value(start)
    value = e.whole(e.emit(x, mine), mine)
    begin, end = _run_of(e, start, run, shape[-1])
    rank = _places(e, op, row, (value, places), (begin, end))
    _store(job, e, op, (row, places, shape[-1]), rank, (value, places))
    return [job.finish(e)]


def _grid(e: Emitter, shape: Sequence[object]) -> tuple[list[At], Affine, Coords]:
    """A row, the first position of a chunk of it, and the chunk."""
    row = [At(e.b.grid(f"i{m}", affine_dim(d), 1)) for m, d in enumerate(shape[:-1])]
    start = e.b.grid("c", affine_dim(shape[-1]), CHUNK)
    return row, start, (*row, Span(start, CHUNK))


def _run_of(e: Emitter, start: Affine, run: int, n: object) -> tuple[int | Affine, int | str | Affine]:
    """First position and end of the run that a chunk belongs to."""
    if not run:
        return 0, affine_dim(n)
    first = e.b.index_value(start) - e.b.op("rem", e.b.index_value(start), e.b.const(run, "i32"))
    end = e.b.op("min", first + run, e.b.index_value(affine_dim(n)))
    return first.index(), end.index()


def _places(
    e: Emitter, op: Op, row: list[At], mine: tuple[Tile, Tile],
    run: tuple[int | Affine, int | str | Affine],
) -> Tile:  # fmt: skip
    """For each lane, where its run begins and how many elements of it go before the lane's: of equal ones,
    those that stand before it."""
    b, (value, places), (begin, end) = e.b, mine, run
    first = b.const(0, "i32", (CHUNK,)) + b.index_value(begin)
    with e.loop(e.fresh_var("s"), begin, end, 1, [first]) as loop:
        at: Coords = (*row, At(loop.var))
        other = e.emit(op.operands[0], at)
        stands_before = b.op("lt", b.index_value(loop.var), places)
        before = b.select(
            stands_before, b.op("not", _goes_before(e, op, value, other)), _goes_before(e, op, other, value)
        )
        loop.yield_(loop.carried[0] + b.cast("i32", before))
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


def _store(
    job: Job, e: Emitter, op: Op, chunk: tuple[list[At], Tile, object], rank: Tile, tiles: tuple[Tile, Tile]
) -> None:
    """The results at the places of their elements; lanes beyond the row are not stored."""
    row, places, n = chunk
    inside = e.b.op("lt", places, e.b.index_value(affine_dim(n)))
    where = e.b.select(inside, rank, e.b.const(-1, "i32"))
    for r, tile in zip(op.results, tiles, strict=True):
        if r.name in job.region.outputs:
            y = e.buffer("%" + r.name, f"y{len(e.args)}")
            e.b.store(y, (*row, where), e.b.cast(y.dtype, tile), disjoint=True)


# ------------------------------------------------------------------ two runs
def _merge_runs(job: Job, op: Op) -> list[Built]:
    """An element's place: its own in its run, and how many elements of the other run go before it."""
    job.alone(op)
    x, origins = op.operands
    shape, width = job.shape(x), int(str(op.attr("width")))
    if width % CHUNK:
        raise CannotEmit(f"merge_runs of width {width}, which chunks of {CHUNK} do not divide")
    e = job.emitter("merge_runs")
    source = e.in_memory(x, "x")
    row, start, mine = _grid(e, shape)
    b, n = e.b, e.b.index_value(affine_dim(shape[-1]))
    at = b.index_value(start)
    second = b.op("ne", b.op("and", at, b.const(width, "i32")), 0)
    base = at - b.op("rem", at, b.const(2 * width, "i32"))
    begin = b.op("min", b.select(second, base, base + width), n)
    end = b.op("min", begin + width, n)
    places = b.iota(CHUNK) + at
    value = e.emit(x, mine)
    found = _search(e, op, (source, row, value), second, (begin, end))
    own = places - b.select(second, base + width, base)
    _store(job, e, op, (row, places, shape[-1]), base + own + (found - begin), (value, e.emit(origins, mine)))
    return [job.finish(e)]


def _search(
    e: Emitter, op: Op, mine: tuple[Buffer, list[At], Tile], second: Tile, other: tuple[Tile, Tile]
) -> Tile:
    """For each lane, the first position of the other run whose element does not go before the lane's: of
    equal ones, those of the first run do."""
    b, (source, row, value) = e.b, mine
    zeros, steps = b.const(0, "i32", (CHUNK,)), int(str(op.attr("width"))).bit_length()
    with e.loop(e.fresh_var("s"), 0, steps, 1, [zeros + other[0], zeros + other[1]]) as loop:
        low, high = loop.carried
        middle = b.op("shr", low + high, b.const(1, "i32"))
        there = b.load(source, *row, middle)
        after = b.op("not", _goes_before(e, op, value, there))
        before = b.op("or", _goes_before(e, op, there, value), b.op("and", second, after))
        open_ = b.op("lt", low, high)
        up = b.op("and", open_, before)
        down = b.op("and", open_, b.op("not", before))
        loop.yield_(b.select(up, middle + 1, low), b.select(down, middle, high))
    return loop.results[0]


register_lowering(Lowering("sort", Form.ALONE, template=_sort))
register_lowering(Lowering("merge_runs", Form.ALONE, template=_merge_runs))
