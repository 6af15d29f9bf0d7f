"""Ops that look along a row: norms, softmax, rotary. Each is a value that any region can ask for at
coordinates; its per-row statistics are emitted once per row, in a fixed order of summation.

In: an emitter and coordinates. Out: tiles. Importing this module adds the forms to the emitter's table.
"""

from __future__ import annotations

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Span
from tilewright.passes.lower.dims import RunTimeSize
from tilewright.passes.lower.emit import SPECIAL, Coords, Emitter
from tilewright.passes.lower.reductions import fold, share
from tilewright.passes.lower.views import CannotEmit


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
        raise CannotEmit("a row statistic over several rows at once")
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
    mean = e.once((name, row, "mean"), lambda: fold(e, x, row, "add", lambda v: v) * share(e, x, n))

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


def rope_dim(e: Emitter, op: Op) -> int:
    """How many channels are turned: `dim`, or all of them."""
    return int(str(op.attr("dim"))) or row_length(e, op.operands[0])


def _rope(e: Emitter, op: Op, at: Coords) -> Tile:
    """Rotary embedding at a constant channel range that lies in one half of the rotated part ("RoFormer")."""
    x, cos, sin = op.operands
    half = rope_dim(e, op) // 2
    last = at[-1]
    if op.attr("interleaved"):
        return _rope_pairs(e, op, at)
    if not isinstance(last, Span) or last.start.names or not isinstance(last.size, int):
        raise CannotEmit("rotary embedding at a running channel")
    d = last.start.as_int()
    if d >= 2 * half:
        return e.emit(x, at)
    if d // half != (d + last.size - 1) // half:
        raise CannotEmit("rotary embedding across its two halves")
    angle = _table_coords(e, cos, at, Span(Affine.of(d % half), last.size))
    c, s = e.emit(cos, angle), e.emit(sin, angle)
    other = (*at[:-1], Span(Affine.of((d + half) % (2 * half)), last.size))
    a, b = e.emit(x, at), e.emit(x, other)
    return e.b.op("fma", a, c, -(b * s)) if d < half else e.b.op("fma", a, c, b * s)


def _rope_pairs(e: Emitter, op: Op, at: Coords) -> Tile:
    """The same with neighbouring channels as pairs: even and odd ones are told apart by masks, the sums have
    one term each."""
    x, cos, sin = op.operands
    last, b = at[-1], e.b
    if not isinstance(last, Span) or last.start.names or not isinstance(last.size, int) or last.size % 2:
        raise CannotEmit("interleaved rotary embedding at a running or odd channel")
    d, pairs = last.start.as_int(), last.size // 2
    if d >= rope_dim(e, op):
        return e.emit(x, at)
    angle = _table_coords(e, cos, at, Span(Affine.of(d // 2), pairs))
    c, s = (b.reshape(e.emit(t, angle), pairs, 1) for t in (cos, sin))
    whole = e.emit(x, at)
    pair = b.reshape(whole, pairs, 2)
    first = b.op("eq", b.expand(b.iota(2), 0), b.const(0, "i32"))
    even = b.reduce("add", b.select(first, pair, 0.0), 1)
    odd = b.reduce("add", b.select(first, b.const(0.0), pair), 1)
    turned = b.select(first, b.op("fma", even, c, -(odd * s)), b.op("fma", odd, c, even * s))
    return b.reshape(turned, *whole.shape)


def _table_coords(e: Emitter, cos: str, at: Coords, last: Span) -> Coords:
    """cos and sin have no head axis: drop it."""
    rank = len(e.shapes(cos))
    lead = at[: rank - 1]
    shape = e.shapes(cos)
    return (*[At(Affine()) if shape[k] == 1 else At(c.start) for k, c in enumerate(lead)], last)


SPECIAL.update(rms_norm=_rms_norm, layer_norm=_layer_norm, softmax=_softmax, log_softmax=_softmax, rope=_rope)
