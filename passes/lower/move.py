"""Ops that only move values: views, which only change indices, and concatenation, which copies.

In: an emitter and coordinates, or a region around a concatenation. Out: tiles; a kernel per part.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Span
from tilewright.passes.lower import views
from tilewright.passes.lower.dims import affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, ViewForm, register_lowering
from tilewright.passes.lower.views import shifted

#: columns that one instance of a concatenation copies
COLS = 16


# ------------------------------------------------------------------ views
def _slice(e: Emitter, op: Op, at: Coords) -> Tile:
    """A view, unless it has a step along an axis of the tile: then the elements are picked out of a longer
    tile."""
    c = at[int(str(op.attr("axis")))] if op.attr("step") != 1 else None
    if isinstance(c, Span) and c.size != 1:
        return _strided(e, op, at)
    return e.through(op, op.result.name, at)


def _strided(e: Emitter, op: Op, at: Coords) -> Tile:
    """A slice with a step along an axis of the tile: all elements of the range are loaded, and one in `step`
    is kept."""
    axis, step, b = int(str(op.attr("axis"))), int(str(op.attr("step"))), e.b
    c = at[axis]
    start = c.start * step + Affine.of(affine_dim(op.attr("start")))
    whole = e.emit(op.operands[0], (*at[:axis], Span(start, int(str(c.size)) * step), *at[axis + 1 :]))  # type: ignore[union-attr]
    k = sum(isinstance(other, Span) for other in at[:axis])
    before, after = whole.shape[:k], whole.shape[k + 1 :]
    runs = b.reshape(whole, *before, c.size, step, *after)  # type: ignore[union-attr]
    lane = b.reshape(b.iota(step), step, *[1] * len(after)) if after else b.iota(step)
    if whole.dtype == "bool":
        runs = b.cast("i32", runs)
    kept = b.select(b.op("eq", lane, b.const(0, "i32")), runs, -0.0 if whole.dtype[0] == "f" else 0)
    return b.cast(whole.dtype, b.reshape(b.reduce("add", kept, k + 1), *before, c.size, *after))  # type: ignore[union-attr]


def _slice_part(op: Op, width: int) -> bool:
    start = op.attr("start")
    return _last(op) and op.attr("step") == 1 and isinstance(start, int) and start % width == 0


def _split_part(op: Op, width: int) -> bool:
    sizes: Sequence[object] = op.attr("sizes")  # type: ignore[assignment]
    return _last(op) and all(s == width for s in sizes)


def _last(op: Op) -> bool:
    return op.attr("axis") == op.results[0].type.rank - 1


def keeps_order(op: Op) -> bool:
    """Whether a view keeps the order of its operand's elements, so that reading a row again costs no
    arithmetic."""
    return op.name in ("reshape", "slice", "split")


# ------------------------------------------------------------------ concatenation
def _concat(job: Job, op: Op) -> list[Built]:
    """One copy kernel per part, each into its own slice of the result."""
    job.alone(op)
    axis, at = int(op.attr("axis")), Affine()  # type: ignore[call-overload]
    out = []
    for operand in op.operands:
        shape = job.shape(operand)
        if 0 in shape:
            continue
        e = job.emitter("concat")
        y = e.buffer("%" + op.result.name, "y")
        grid: list[At | Span] = [At(e.b.grid(f"i{m}", affine_dim(d), 1)) for m, d in enumerate(shape[:-1])]
        last = Span(e.b.grid("c", affine_dim(shape[-1]), COLS), COLS)
        src = (*grid, last)
        if axis == len(shape) - 1 and not (isinstance(shape[-1], int) and shape[-1] % COLS == 0):
            src = (*grid, Span(last.start, COLS))
            _exact(e, y, operand, src, at, shape[-1])
        else:
            dst = tuple(shifted(c, at) if m == axis else c for m, c in enumerate(src))
            e.b.store(y, dst, e.b.cast(y.dtype, e.emit(operand, src)))
        out.append(job.finish(e))
        at = at + Affine.of(affine_dim(shape[axis]))
    return out


def _exact(e: Emitter, y: object, operand: str, src: Coords, at: Affine, n: object) -> None:
    """A last axis that is not a multiple of the chunk: lanes past the part's end must not write to the next
    part."""
    last = src[-1]
    lane = e.b.iota(COLS) + e.b.index_value(last.start)
    inside = e.b.op("lt", lane, e.b.index_value(affine_dim(n)))
    where = e.b.select(inside, lane + e.b.index_value(at), e.b.const(-1, "i32"))
    tile = e.emit(operand, src)
    e.b.store(y, (*src[:-1], where), e.b.cast(y.dtype, tile), disjoint=True)  # type: ignore[attr-defined,arg-type]


register_lowering(Lowering("slice", Form.VIEW, _slice, ViewForm(views.slice_, equal_part=_slice_part)))
register_lowering(Lowering("split", Form.VIEW, view=ViewForm(views.split, equal_part=_split_part)))
register_lowering(Lowering("transpose", Form.VIEW, view=ViewForm(views.transpose)))
register_lowering(Lowering("expand", Form.VIEW, view=ViewForm(views.expand, aligned=True)))
register_lowering(Lowering("reshape", Form.VIEW, view=ViewForm(views.reshape, alias=True)))
register_lowering(Lowering("concat", Form.ALONE, template=_concat))
