"""Constants: values that every reader computes itself, at the coordinates it needs.

In: an emitter and coordinates. Out: tiles.
"""

from __future__ import annotations

from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import Span
from tilewright.ir.types import INTEGERS
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.record import Form, Lowering, register_lowering


def _const(e: Emitter, op: Op, at: Coords) -> Tile:
    return e.b.const(_number(op), str(op.attr("dtype")))


def _number(op: Op) -> float:
    """A constant's value; integers keep all their digits."""
    value = op.attr("value")
    assert isinstance(value, bool | int | float)
    return int(value) if isinstance(value, bool) else value


def _full(e: Emitter, op: Op, at: Coords) -> Tile:
    return e.b.const(_number(op), op.result.type.dtype, tuple(c.size for c in at if isinstance(c, Span)))


def _iota(e: Emitter, op: Op, at: Coords) -> Tile:
    """Computed in i32 where start and step are i32 integers, else in the widest type, and rounded once."""
    (c,) = at
    start, step, dtype = op.attr("start"), op.attr("step"), op.result.type.dtype
    assert isinstance(start, int | float) and isinstance(step, int | float)
    index = e.b.index_value(c.start)
    if isinstance(c, Span):
        index = e.b.iota(c.size) + index
    plain = all(float(x).is_integer() and abs(x) < 1 << 31 for x in (start, step)) and dtype != "i64"
    if plain:
        return e.b.cast(dtype, index * int(step) + int(start))
    return e.b.cast(dtype, e.b.cast("i64" if dtype in INTEGERS else "f64", index) * step + start)


for _name, _emit in (("const", _const), ("full", _full), ("iota", _iota)):
    register_lowering(Lowering(_name, Form.CONSTANT, _emit, rows=()))
