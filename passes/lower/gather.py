"""Rows and elements picked at run time: gather, select_rows, take_tokens, gather_elements.

In: an emitter and coordinates. Out: tiles. The operand that they pick from must be in memory.
"""

from __future__ import annotations

from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Span
from tilewright.passes.lower.dims import CannotEmit, affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, register_lowering


def _gather(e: Emitter, op: Op, at: Coords) -> Tile:
    """Entries of one axis picked by an index tensor, whose dimensions replace that axis in the result."""
    table, ids = op.operands
    axis, rank = int(str(op.attr("axis"))), len(e.shapes(ids))
    index = e.emit(ids, at[axis : axis + rank])
    return picked(e, table, at[:axis], index, at[axis + rank :])


def _select_rows(e: Emitter, op: Op, at: Coords) -> Tile:
    x, rows = op.operands
    return picked(e, x, (), e.emit(rows, at[:1]), at[1:])


def _take_tokens(e: Emitter, op: Op, at: Coords) -> Tile:
    """Tokens picked by an index tensor of their own row of the batch."""
    x, ids = op.operands
    return picked(e, x, at[:1], e.emit(ids, at[:2]), at[2:])


def picked(e: Emitter, table: str, before: Coords, index: Tile, rest: Coords) -> Tile:
    if table[0] == "%" and table[1:] in e.inside and e.alias_of(table) is None:
        raise CannotEmit("rows are picked from a value that is computed in the same kernel")
    if len(index.shape) > 1:
        raise CannotEmit(f"gather with an index tile of shape {index.shape}")
    buffer = e.buffer(table)
    entries: list[object] = [*before, index, *rest]
    if buffer.encoding is not None:
        tile = buffer.encoding.tile_decode(e.b, buffer, entries)
    else:
        tile = e.b.load(buffer, *entries)
    return e.b.cast(e.type_of(table).dtype, tile)


def _gather_elements(job: Job, op: Op) -> list[Built]:
    """One element at a time: the index gives the coordinate along one axis, the others are those of the
    result."""
    job.alone(op)
    x, ids = op.operands
    axis = int(op.attr("axis"))  # type: ignore[call-overload]
    e = job.emitter("gather_elements")
    at: list[At | Span] = [
        At(e.b.grid(f"i{m}", affine_dim(d), 1)) for m, d in enumerate(job.shape("%" + op.result.name))
    ]
    picked = e.emit(ids, tuple(at)).index()
    y = e.buffer("%" + op.result.name, "y")
    there: Coords = (*at[:axis], At(picked), *at[axis + 1 :])
    tile = e.emit(x, there)
    e.b.store(y, tuple(at), e.b.cast(y.dtype, tile))
    return [job.finish(e)]


register_lowering(Lowering("gather", Form.ROWS, _gather, picks=0, table=0))
register_lowering(Lowering("select_rows", Form.ROWS, _select_rows, picks=0, together=True))
register_lowering(Lowering("take_tokens", Form.ROWS, _take_tokens, picks=0))
register_lowering(Lowering("gather_elements", Form.ALONE, template=_gather_elements))
