"""Ops whose elements come from computed places of an operand in memory: pad, flip, roll.

In: an emitter and coordinates. Out: tiles. A place outside the operand reads the padding value.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Buffer
from tilewright.passes.lower.dims import CannotEmit, affine_dim
from tilewright.passes.lower.emit import Coord, Coords, Emitter
from tilewright.passes.lower.record import Form, Lowering, register_lowering
from tilewright.passes.lower.views import shifted


def source(e: Emitter, op: Op, at: Coords) -> Buffer:
    """The operand's buffer. CannotEmit if it is computed in this kernel, stored in codes, or seen with its
    leading axes as one."""
    x = op.operands[0]
    if len(at) != op.results[0].type.rank:
        raise CannotEmit(f"{op.name} of leading axes that are collapsed into one")
    buffer = e.in_memory(x, "")
    if buffer.encoding is not None:
        raise CannotEmit(f"{op.name} of a value that is stored as {buffer.encoding}")
    return buffer


def _loaded(e: Emitter, op: Op, at: Coords, entries: list[object], other: float = 0.0) -> Tile:
    tile = e.b.load(source(e, op, at), *entries, other=other)
    return e.b.cast(op.results[0].type.dtype, tile)


# ------------------------------------------------------------------ pad
def _pad(e: Emitter, op: Op, at: Coords) -> Tile:
    """The operand's elements, moved by what stands before them; around them, the value."""
    pads: tuple[object, ...] = op.attr("pads")  # type: ignore[assignment]
    value = op.attr("value")
    assert isinstance(value, bool | int | float)
    if isinstance(value, int) and int(float(value)) != value:
        raise CannotEmit(f"pad with {value}, which no f64 holds")
    moved = [shifted(c, Affine.of(affine_dim(before)) * -1) for c, before in zip(at, pads[::2], strict=True)]
    return _loaded(e, op, at, list(moved), float(value))


# ------------------------------------------------------------------ flip, roll
def _mapped(e: Emitter, op: Op, at: Coords, places: dict[int, Callable[[Coord], object]]) -> Tile:
    """The operand at coordinates of which some axes are mapped."""
    return _loaded(e, op, at, [places[d](c) if d in places else c for d, c in enumerate(at)])


def position(e: Emitter, c: Coord) -> Tile:
    """A coordinate as a tile of integers: of rank 0, or 1 for a span."""
    start = e.b.index_value(c.start)
    return start if isinstance(c, At) else e.b.iota(c.size) + start


def _flip(e: Emitter, op: Op, at: Coords) -> Tile:
    axes: tuple[int, ...] = op.attr("axes")  # type: ignore[assignment]
    shape = e.shapes(op.operands[0])

    def last_first(axis: int) -> Callable[[Coord], object]:
        last = Affine.of(affine_dim(shape[axis])) - 1

        def place(c: Coord) -> object:
            return At(last - c.start) if isinstance(c, At) else e.b.index_value(last) - position(e, c)

        return place

    return _mapped(e, op, at, {axis: last_first(axis) for axis in axes})


def _roll(e: Emitter, op: Op, at: Coords) -> Tile:
    """Position i holds what was at i - shift, counted around the end."""
    axes: tuple[int, ...] = op.attr("axes")  # type: ignore[assignment]
    shifts: tuple[int, ...] = op.attr("shifts")  # type: ignore[assignment]
    moves: dict[int, int] = {}
    for axis, shift in zip(axes, shifts, strict=True):
        moves[axis] = moves.get(axis, 0) + shift
    shape = e.shapes(op.operands[0])

    def around(axis: int, shift: int) -> Callable[[Coord], object]:
        def place(c: Coord) -> object:
            size = e.b.index_value(affine_dim(shape[axis]))
            rest = e.b.op("rem", position(e, c) - e.b.op("rem", e.b.const(shift, "i32"), size), size)
            return e.b.select(e.b.op("lt", rest, 0), rest + size, rest)

        return place

    return _mapped(e, op, at, {axis: around(axis, shift) for axis, shift in moves.items()})


for _name, _emit in (("pad", _pad), ("flip", _flip), ("roll", _roll)):
    register_lowering(Lowering(_name, Form.ROWS, _emit, picks=0))
