"""Ops along a row (norms and softmax), as values that any region can request at coordinates.

Row statistics are emitted once per row, in a fixed order of summation.

In: an emitter and coordinates. Out: tiles.
"""

from __future__ import annotations

from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Span
from tilewright.passes.lower.dims import CannotEmit, RunTimeSize
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.record import Form, Lowering, register_lowering
from tilewright.passes.lower.reductions import fold, share


def row_length(e: Emitter, operand: str) -> int:
    d = e.shapes(operand)[-1]
    if not isinstance(d, int):
        raise RunTimeSize(f"row length {d} is known at run time only")
    return d


def _last_axis(op: Op, rank: int) -> None:
    axis = op.attr("axis")
    if axis != rank - 1:
        raise CannotEmit(f"{op.name} along axis {axis} of rank {rank}")


def _unspan(at: Coords) -> Coords:
    if any(isinstance(c, Span) and c.size != 1 for c in at):
        raise CannotEmit("a row statistic of a tile with more than one row")
    return tuple(At(c.start) for c in at)


def _rms_norm(e: Emitter, op: Op, at: Coords) -> Tile:
    x = op.operands[0]
    _last_axis(op, len(at))
    row, name = _unspan(at[:-1]), op.result.name

    def scale() -> Tile:
        mean = fold(e, x, row, "add", lambda v: v * v) * share(e, x, e.shapes(x)[-1])
        return e.b.op("rsqrt", mean + float(op.attr("eps")))  # type: ignore[arg-type]

    r = e.once((name, row), scale)
    y = e.emit(x, (*row, at[-1])) * r
    if len(op.operands) > 1:
        w = e.emit(op.operands[1], (at[-1],))
        offset = float(op.attr("offset"))  # type: ignore[arg-type]
        y = y * (w + offset if offset else w)
    return _spread(e, at, y)


def _layer_norm(e: Emitter, op: Op, at: Coords) -> Tile:
    x = op.operands[0]
    _last_axis(op, len(at))
    row, name, n = _unspan(at[:-1]), op.result.name, e.shapes(x)[-1]
    mean = e.once((name, row, "average"), lambda: fold(e, x, row, "add", lambda v: v) * share(e, x, n))

    def scale() -> Tile:
        var = fold(e, x, row, "add", lambda v: (v - mean) * (v - mean)) * share(e, x, n)
        return e.b.op("rsqrt", var + float(op.attr("eps")))  # type: ignore[arg-type]

    r = e.once((name, row), scale)
    y = (e.emit(x, (*row, at[-1])) - mean) * r
    if len(op.operands) > 1:
        y = y * e.emit(op.operands[1], (at[-1],))
    if len(op.operands) > 2:
        y = y + e.emit(op.operands[2], (at[-1],))
    return _spread(e, at, y)


def _softmax(e: Emitter, op: Op, at: Coords) -> Tile:
    x = op.operands[0]
    _last_axis(op, len(at))
    row, name = _unspan(at[:-1]), op.result.name
    top = e.once((name, row, "max"), lambda: fold(e, x, row, "max", lambda v: v))
    total = e.once((name, row), lambda: fold(e, x, row, "add", lambda v: e.b.op("exp", v - top)))
    centred = e.emit(x, (*row, at[-1])) - top
    y = centred - e.b.op("log", total) if op.name == "log_softmax" else e.b.op("exp", centred) / total
    return _spread(e, at, y)


def _spread(e: Emitter, at: Coords, y: Tile) -> Tile:
    """Put back the unit axes of leading `Span(…, 1)` coordinates."""
    missing = sum(isinstance(c, Span) for c in at) - len(y.shape)
    for _ in range(missing):
        y = e.b.expand(y, 0)
    return y


register_lowering(Lowering("rms_norm", Form.ROWS, _rms_norm, siblings=True))
register_lowering(Lowering("layer_norm", Form.ROWS, _layer_norm))
register_lowering(Lowering("softmax", Form.ROWS, _softmax))
register_lowering(Lowering("log_softmax", Form.ROWS, _softmax))
