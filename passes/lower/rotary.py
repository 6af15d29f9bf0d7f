"""Rotary embeddings at constant channel ranges.

In: an emitter and coordinates. Out: tiles.
"""

from __future__ import annotations

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Span
from tilewright.passes.lower.dims import CannotEmit
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.record import Form, Lowering, register_lowering
from tilewright.passes.lower.rowwise import row_length


def _rope_dim(e: Emitter, op: Op) -> int:
    """How many channels are rotated: `dim`, or all of them."""
    return int(str(op.attr("dim"))) or row_length(e, op.operands[0])


def _rope(e: Emitter, op: Op, at: Coords) -> Tile:
    """Rotary embedding at a constant channel range that lies in one half of the rotated part ("RoFormer")."""
    x, cos, sin = op.operands
    half = _rope_dim(e, op) // 2
    last = at[-1]
    if op.attr("interleaved"):
        return _rope_pairs(e, op, at)
    if not isinstance(last, Span) or last.start.names or not isinstance(last.size, int):
        raise CannotEmit("rotary embedding at a channel that a loop changes")
    d = last.start.as_int()
    if d >= 2 * half:
        return e.emit(x, at)
    if d // half != (d + last.size - 1) // half:
        raise CannotEmit("rotary embedding of a range that crosses the middle of the rotated channels")
    angle = _table_coords(e, cos, at, Span(Affine.of(d % half), last.size))
    c, s = e.emit(cos, angle), e.emit(sin, angle)
    other = (*at[:-1], Span(Affine.of((d + half) % (2 * half)), last.size))
    a, b = e.emit(x, at), e.emit(x, other)
    return e.b.op("fma", a, c, -(b * s)) if d < half else e.b.op("fma", a, c, b * s)


def _rope_pairs(e: Emitter, op: Op, at: Coords) -> Tile:
    """The same with neighbouring channels as pairs. Masks separate even and odd channels, so that each sum
    has only one term that is not zero."""
    x, cos, sin = op.operands
    last, b = at[-1], e.b
    if not isinstance(last, Span) or last.start.names or not isinstance(last.size, int) or last.size % 2:
        raise CannotEmit("interleaved rotary embedding at an odd channel or one that a loop changes")
    d, pairs = last.start.as_int(), last.size // 2
    if d >= _rope_dim(e, op):
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


def _cuts(e: Emitter, op: Op) -> tuple[int, ...]:
    """Where chunks must end: after each half of the rotated channels."""
    half = _rope_dim(e, op) // 2
    return half, 2 * half


register_lowering(Lowering("rope", Form.ROWS, _rope, siblings=True, cuts=_cuts))
