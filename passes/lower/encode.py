"""Changing the encoding of values: `encode`, for contractions and caches to read, and `decode`.

Encodings of single values are casts, in any kernel; others are written row by row, by their `tile_encode`.

In: an emitter, a row. Out: tiles, or stores of an encoding's streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from tilewright.ir.affine import Affine
from tilewright.ir.encoding import EncodingError
from tilewright.ir.graph.core import Op, Value
from tilewright.ir.tile.builder import Loop, Tile
from tilewright.ir.tile.core import At, Buffer, Span
from tilewright.passes.lower.chunks import WIDTH, even_chunks, static_chunks
from tilewright.passes.lower.dims import CannotEmit
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.move import keeps_order
from tilewright.passes.lower.record import Form, Lowering, register_lowering
from tilewright.passes.lower.rowwise import row_length


def _encode(e: Emitter, op: Op, at: Coords) -> Tile:
    encoding = op.result.type.encoding
    if encoding is None or not encoding.element:
        raise CannotEmit(f"encode {encoding} needs whole rows")
    return e.b.cast(op.result.type.dtype, e.b.cast(encoding.element, e.emit(op.operands[0], at)))


def copy_of(operand: str, result: Value) -> Op:
    """An op that copies a value to memory of its own: `decode` of a dense value is the identity."""
    return Op("decode", (operand,), (result,))


class EmittedRow:
    """One row of `source`, at coordinates `rows` of its leading axes, to be stored in `target` at `to`: the
    `ir.formulas.RowWriter` that an encoding's `tile_encode` is given.
    """

    width = WIDTH

    def __init__(
        self, e: Emitter, source: str, rows: Coords, target: Buffer, to: Coords, disjoint: bool = False
    ) -> None:
        self.b, self._e, self._source, self._rows = e.b, e, source, rows
        self._target, self._to, self._disjoint = target, to, disjoint
        self.length = row_length(e, source)
        self._room: Buffer | None = None

    def open(self, room: int, width: int) -> None:
        """Values computed in this kernel get a local buffer; values in memory are simply read again.
        Statistics that the values depend on are emitted here, once per row, outside the loops.
        """
        maker = self._e.inside.get(self._source[1:]) if self._source[0] == "%" else None
        if maker is not None and not keeps_order(maker):
            self._room = self.b.local(self._e.fresh_var("kept"), "f32", (room,))
        self.read(Span(Affine(), width))

    def loop(self, var: str, step: int, init: Sequence[Tile] = ()) -> AbstractContextManager[Loop]:
        return self._e.loop(self._e.fresh_var(var), 0, self.length, step, init)

    def runs(self) -> Sequence[Span]:
        return static_chunks(self._e, self._source, self.length) or even_chunks(0, self.length)

    def read(self, at: Span) -> Tile:
        return self._e.emit(self._source, (*self._rows, at))

    def first(self, at: Span, value: Tile) -> None:
        if self._room is not None:
            self.b.store(self._room, (at,), value)

    def again(self, at: Span, room: Span) -> Tile:
        return self.read(at) if self._room is None else self.b.load(self._room, room)

    def store(self, stream: str, at: At | Span, value: Tile) -> None:
        target = replace(self._target, name=f"{self._target.name}.{stream}")
        self.b.store(target, (*self._to, at), value, disjoint=self._disjoint)


def store_row(row: EmittedRow, target: Buffer) -> None:
    """Store a row in the target's encoding. CannotEmit if it cannot be encoded inside kernels."""
    assert target.encoding is not None
    try:
        target.encoding.tile_encode(row)
    except EncodingError as why:
        raise CannotEmit(str(why)) from why


def encode_row(e: Emitter, y: Buffer, operand: str, row: Coords) -> None:
    """Store one row of a result of `encode`."""
    store_row(EmittedRow(e, e.inside[operand[1:]].operands[0], row, y, row), y)


def _form(op: Op) -> Form:
    encoding = op.result.type.encoding
    return Form.POINTWISE if encoding is not None and encoding.element else Form.ROWS


register_lowering(Lowering("encode", _form, _encode))
register_lowering(
    Lowering("decode", Form.POINTWISE, lambda e, op, at: e.emit(op.operands[0], at), rows=None, siblings=True)
)
