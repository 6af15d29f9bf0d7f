"""Values in another form: `encode` to the form contractions read, `decode` back. Dense forms are casts, in any
kernel; codes with a scale per row need the whole row.

In: an emitter, a row. Out: tiles, or stores of codes, scales and sums.
"""

from __future__ import annotations

import math
from dataclasses import replace

from tilewright.ir.affine import Affine
from tilewright.ir.encodings.dense import Dense
from tilewright.ir.encodings.integer import IntToken
from tilewright.ir.graph.core import Op, Value
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Buffer, Span
from tilewright.passes.lower.chunks import WIDTH
from tilewright.passes.lower.dims import CannotEmit
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.move import keeps_order
from tilewright.passes.lower.record import Form, Lowering, register_lowering
from tilewright.passes.lower.rowwise import row_length


def _encode(e: Emitter, op: Op, at: Coords) -> Tile:
    encoding = op.result.type.encoding
    if not isinstance(encoding, Dense):
        raise CannotEmit(f"encode {encoding} needs whole rows")
    return e.b.cast(op.result.type.dtype, e.b.cast(encoding.dtype, e.emit(op.operands[0], at)))


def copy_of(operand: str, result: Value) -> Op:
    """An op that puts a value into memory of its own: what is decoded of a dense value is the value."""
    return Op("decode", (operand,), (result,))


def quantize_row(e: Emitter, y: Buffer, operand: str, row: Coords) -> None:
    """int8 codes of one row with its scale and, per group, the first value of the consumer's accumulator."""
    encoding = y.encoding
    assert isinstance(encoding, IntToken)
    op = e.inside[operand[1:]]
    src = op.operands[0]
    n = row_length(e, src)
    if encoding.block:
        _quantize_groups(e, y, encoding, src, n, row)
        return
    step = encoding.group or math.gcd(n, WIDTH)  # packed codes have no masks: chunks tile the row exactly
    kept = _kept(e, src, -(-n // WIDTH) * WIDTH)
    e.emit(src, (*row, Span(Affine(), WIDTH)))
    with e.loop(e.fresh_var("a"), 0, n, WIDTH, [e.b.const(0, "f32", (WIDTH,))]) as loop:
        v = e.emit(src, (*row, Span(loop.var, WIDTH)))
        if n % WIDTH:
            v = e.b.within(v, loop.var, 0, 0.0)
        if kept is not None:
            e.b.store(kept, (Span(loop.var, WIDTH),), v)
        loop.yield_(e.b.op("max", loop.carried[0], e.b.op("abs", v)))
    amax = e.b.reshape(e.b.reduce("max", loop.results[0], 0))
    inv = _inverse(e, amax, encoding)
    with e.loop(
        e.fresh_var("q"),
        0,
        n,
        step,
        [e.b.const(0, "i32", (step,))] if encoding.zero and not encoding.group else [],
    ) as loop:
        at = Span(loop.var, step)
        v = e.b.load(kept, at) if kept is not None else e.emit(src, (*row, at))
        code = _store_codes(e, y, v * inv, (*row, at))
        if encoding.zero and encoding.group:
            _store_sum(e, y, encoding, code, (*row, Span(loop.var, 1)))
        loop.yield_(*([loop.carried[0] + code] if loop.carried else []))
    if encoding.zero and not encoding.group:
        _store_sum(e, y, encoding, loop.results[0], (*row, Span(Affine(), 1)))
    _store_stream(e, y, "scale", (*row, At(Affine())), amax * (1.0 / encoding.top))


def _inverse(e: Emitter, amax: Tile, encoding: IntToken) -> Tile:
    return e.b.select(
        e.b.op("lt", e.b.const(0.0), amax), float(encoding.top) / e.b.op("max", amax, 1e-37), e.b.const(0.0)
    )


def _quantize_groups(e: Emitter, y: Buffer, encoding: IntToken, src: str, n: int, row: Coords) -> None:
    """Codes, scales and sums of one row, group by group; sums may be over shorter runs than scales."""
    block = encoding.block
    step = encoding.group if encoding.zero else block
    kept = _kept(e, src, block)
    e.emit(src, (*row, Span(Affine(), block)))  # statistics are made here, once per row, outside the loop
    with e.loop(e.fresh_var("g"), 0, n, block) as loop:
        v = e.emit(src, (*row, Span(loop.var, block)))
        if kept is not None:
            e.b.store(kept, (Span(Affine(), block),), v)
        amax = e.b.reshape(e.b.reduce("max", e.b.op("abs", v), 0))
        inv = _inverse(e, amax, encoding)
        _store_stream(e, y, "scale", (*row, Span(loop.var, 1)), e.b.reshape(amax * (1.0 / encoding.top), 1))
        for at in range(0, block, step):
            run = Span(loop.var + at, step)
            part = e.emit(src, (*row, run)) if kept is None else e.b.load(kept, Span(Affine.of(at), step))
            code = _store_codes(e, y, part * inv, (*row, run))
            if encoding.zero:
                _store_sum(e, y, encoding, code, (*row, Span(run.start, 1)))
        loop.yield_()


def _kept(e: Emitter, src: str, size: int) -> Buffer | None:
    """Room for what is computed in this kernel, so that its scale and its codes read it once; memory is read
    again."""
    maker = e.inside.get(src[1:]) if src[0] == "%" else None
    inner = maker is not None and not keeps_order(maker)
    return e.b.local(e.fresh_var("kept"), "f32", (size,)) if inner else None


def _store_codes(e: Emitter, y: Buffer, scaled: Tile, at: Coords) -> Tile:
    """The codes, stored, as i32."""
    code: Tile = e.b.cast("i32", scaled)
    _store_stream(e, y, "codes", at, e.b.cast("i8", code))
    return code


def _store_sum(e: Emitter, y: Buffer, encoding: IntToken, codes: Tile, at: Coords) -> None:
    _store_stream(e, y, "sums", at, e.b.reduce("add", codes, 0) * -encoding.zero)


def _store_stream(e: Emitter, y: Buffer, stream: str, at: Coords, value: Tile) -> None:
    e.b.store(replace(y, name=f"{y.name}.{stream}"), at, value)


def _form(op: Op) -> Form:
    return Form.POINTWISE if isinstance(op.result.type.encoding, Dense) else Form.ROWS


register_lowering(Lowering("encode", _form, _encode))
register_lowering(
    Lowering("decode", Form.POINTWISE, lambda e, op, at: e.emit(op.operands[0], at), rows=None, siblings=True)
)
