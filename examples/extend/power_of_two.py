"""A user-defined encoding of activations: int8 codes with a power of two as the scale of each token.

The scale is undone without rounding.

`pow2(token)` stands wherever `int8(token)` can: `tilewright compile DIR -o model.tw --plugin
examples/extend/power_of_two.py --activations "pow2(token)" --weights "int8(channel)"`. Contractions read it
by its `operand_form`; kernels make it as `tile_encode` says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tilewright.ir.affine import Affine
from tilewright.ir.contraction_form import OperandForm
from tilewright.ir.encoding import Encoding, EncodingError, Scale
from tilewright.ir.encoding_registry import Args, register_encoding
from tilewright.ir.encodings.arrays import Arrays
from tilewright.ir.formulas import Arithmetic, RowWriter, StoredBuffer, TileWriter, Value
from tilewright.ir.layout import RecordSpec, StreamSpec
from tilewright.ir.tile.core import At, Span


def scale(b: Arithmetic, amax: Value) -> Value:
    """The least power of two that brings `amax` to 127 or less: the same formula for arrays and for tiles."""
    bits = b.bitcast("i32", b.op("max", b.op("mul", amax, 1 / 127), 1e-30))
    return b.bitcast("f32", ((bits + 0x7FFFFF) >> 23) << 23)


@dataclass(frozen=True)
class PowerOfTwo(Encoding):
    """`group`, `zero`: the sums that the weights it meets need, as `OperandForm` says."""

    group: int = 0
    zero: int = 0

    codec = "int(8)"
    scales = (Scale("token", "f32"),)

    def __str__(self) -> str:
        return f"pow2(token, sums={self.group}, zero={self.zero})" if self.zero else "pow2(token)"

    # ------------------------------------------------------------ what contractions ask
    @property
    def operand_form(self) -> OperandForm:
        return OperandForm(0, self.group, self.zero)

    def with_operand(self, form: OperandForm) -> Encoding:
        return replace(self, group=form.group, zero=form.zero)

    # ------------------------------------------------------------ bytes
    def check(self, shape: Sequence[int]) -> None:
        if self.group and shape[-1] % self.group:
            raise EncodingError(f"{self}: sums over {self.group} do not divide K = {shape[-1]}")

    def record(self, shape: Sequence[int | None]) -> RecordSpec:
        k, last = shape[-1], len(shape) - 1
        if k is None:
            raise EncodingError(f"{self}: K must be a known integer")
        streams = [StreamSpec("codes", "i8", f"{last}.{-(-k // 4) * 4}"), StreamSpec("scale", "f32", "")]
        if self.zero:
            digits = f"{last}.{k // self.group}:{self.group}" if self.group else ""
            streams.append(StreamSpec("sums", "i32", digits))
        return RecordSpec(" ".join(map(str, range(last))), tuple(streams))

    def grain(self, stream: str) -> tuple[int, ...]:
        return {"codes": (1,), "scale": (1 << 40,), "sums": (self.group or 1 << 40,)}[stream]

    # ------------------------------------------------------------ values in NumPy
    def encode(self, x: Any) -> dict[str, Any]:
        self.check(x.shape)
        by = scale(Arrays(), np.abs(np.asarray(x, np.float32)).max(-1, keepdims=True))
        codes = np.rint(x / by).astype(np.int8)
        out = {"codes": codes, "scale": by}
        if self.zero:
            parts = codes.astype(np.int32).reshape(*x.shape[:-1], -1, self.group or x.shape[-1])
            out["sums"] = (-self.zero * parts.sum(-1)).astype(np.int32)
        return out

    def decode(self, streams: Mapping[str, Any]) -> Any:
        return streams["codes"].astype(np.float32) * streams["scale"]

    # ------------------------------------------------------------ values in kernels
    def tile_decode(self, b: TileWriter, buffer: StoredBuffer, index: Sequence[object]) -> Value:
        codes = b.cast("f32", b.load(f"{buffer.name}.codes", *index))
        by = b.load(f"{buffer.name}.scale", *index[:-1], 0)
        return codes * (
            b.expand(by, len(by.shape)) if by.shape and isinstance(index[-1], slice | Span) else by
        )

    def tile_encode(self, row: RowWriter) -> None:
        b, n, width = row.b, row.length, row.width
        row.open(-(-n // width) * width, width)
        with row.loop("a", width, [b.const(0, "f32", (width,))]) as loop:
            v = row.read(Span(loop.var, width))
            v = b.within(v, loop.var, 0, 0.0) if n % width else v
            row.first(Span(loop.var, width), v)
            loop.yield_(b.op("max", loop.carried[0], b.op("abs", v)))
        by = scale(b, b.reshape(b.reduce("max", loop.results[0], 0)))
        step = self.group or math.gcd(n, width)
        with row.loop("q", step, [b.const(0, "i32", (step,))]) as loop:
            at = Span(loop.var, step)
            codes = b.cast("i32", row.again(at, at) / by)
            row.store("codes", at, b.cast("i8", codes))
            if self.zero and self.group:
                row.store("sums", Span(loop.var, 1), b.reduce("add", codes, 0) * -self.zero)
            loop.yield_(loop.carried[0] + codes)
        if self.zero and not self.group:
            row.store("sums", Span(Affine(), 1), b.reduce("add", loop.results[0], 0) * -self.zero)
        row.store("scale", At(Affine()), by)


def _make(args: Args) -> PowerOfTwo:
    left = {k: v for k, v in args.items() if k != "0"}
    if args.get("0") != "token" or set(left) - {"sums", "zero"}:
        raise EncodingError(f"expected pow2(token), got {dict(args)}")
    return PowerOfTwo(int(left.get("sums", 0)), int(left.get("zero", 0)))


register_encoding("pow2", _make)
