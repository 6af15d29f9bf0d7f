"""Integer activations, quantized on the fly: f32 scales, one per token or one per group of a token.

They are stored with the sums that the zero points of the weights need. Codes of fewer than 8 bits are stored
as bytes: they simulate the loss of precision and do not save memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.affine import Affine
from tilewright.ir.contraction_form import OperandForm
from tilewright.ir.encoding import Array, Encoding, EncodingError, Scale
from tilewright.ir.encodings.integer import SCALE_OF, IntWeight
from tilewright.ir.encodings.made_rows import MadeRows
from tilewright.ir.formulas import RowWriter, StoredBuffer, TileWriter, Value
from tilewright.ir.layout import RecordSpec, StreamSpec
from tilewright.ir.tile.core import Span


@dataclass(frozen=True)
class IntToken(Encoding, MadeRows):
    """Codes of `bits` bits with one f32 scale per row, or per `block` elements of it. `zero` not 0: also the
    i32 `-zero * sum(codes)` per `group` elements of the row (0: the whole row), which is where the consumer's
    accumulator starts. `zero` 0: no sums."""

    group: int = 0
    zero: int = 0
    bits: int = 8
    block: int = 0

    @property
    def codec(self) -> str:  # type: ignore[override]
        return f"int({self.bits})"

    @property
    def scales(self) -> tuple[Scale, ...]:  # type: ignore[override]
        return (Scale("group" if self.block else "token", "f32", self.block),)

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1)) - 1

    @property
    def operand_form(self) -> OperandForm:
        return OperandForm(self.block, self.group, self.zero)

    def with_operand(self, form: OperandForm) -> Encoding:
        return replace(self, group=form.group, zero=form.zero)

    def __str__(self) -> str:
        words = ["token", *([f"group={self.block}"] if self.block else [])]
        words += [f"sums={self.group}", f"zero={self.zero}"] if self.zero else []
        return f"int{self.bits}({', '.join(words)})"

    def arranged(self, order: str) -> Encoding:
        """Codes of a cache are packed; those of activations are bytes."""
        return self if order == "panel" else IntWeight(self.bits, self.block, SCALE_OF["token"], "sym", order)

    def check(self, shape: Sequence[int]) -> None:
        for size, word in ((self.group, "sums over"), (self.block, "groups of")):
            if size and shape[-1] % size:
                raise EncodingError(f"{self}: {word} {size} do not divide K = {shape[-1]}")

    def groups(self, k: int) -> int:
        return k // self.group if self.group else 1

    def record(self, shape: Sequence[int | None]) -> RecordSpec:
        k, last = shape[-1], len(shape) - 1
        if k is None:
            raise EncodingError(f"{self}: K must be a known integer")
        streams = [StreamSpec("codes", "i8", f"{last}.{-(-k // 4) * 4}")]
        streams.append(
            StreamSpec("scale", "f32", f"{last}.{k // self.block}:{self.block}" if self.block else "")
        )
        if self.zero:
            streams.append(
                StreamSpec("sums", "i32", f"{last}.{self.groups(k)}:{self.group}" if self.group else "")
            )
        return RecordSpec(" ".join(str(d) for d in range(last)), tuple(streams))

    def grain(self, stream: str) -> tuple[int, ...]:
        return {"codes": (1,), "scale": (self.block or 1 << 40,), "sums": (self.group or 1 << 40,)}[stream]

    def encode(self, x: NDArray[np.float32]) -> dict[str, Array]:
        self.check(x.shape)
        runs = np.asarray(x, np.float32).reshape(*x.shape[:-1], -1, self.block or x.shape[-1])
        amax = np.abs(runs).max(-1, keepdims=True)
        inv = np.where(amax > 0, np.float32(self.top) / np.where(amax > 0, amax, 1), np.float32(0)).astype(
            np.float32
        )
        codes = np.rint(runs * inv).astype(np.int8).reshape(x.shape)
        out: dict[str, Array] = {"codes": codes, "scale": amax[..., 0] * np.float32(1 / self.top)}
        if self.zero:
            parts = codes.astype(np.int32).reshape(*x.shape[:-1], self.groups(x.shape[-1]), -1)
            out["sums"] = (-self.zero * parts.sum(-1)).astype(np.int32)
        return out

    def decode(self, streams: Mapping[str, Array]) -> NDArray[np.float32]:
        scale = np.asarray(streams["scale"], np.float32)
        codes = streams["codes"].astype(np.float32)
        return codes * (np.repeat(scale, self.block, -1) if self.block else scale)

    def tile_decode(self, b: TileWriter, buffer: StoredBuffer, index: Sequence[object]) -> Value:
        codes = b.cast("f32", b.load(f"{buffer.name}.codes", *index))
        if self.block:
            return codes * b.load(f"{buffer.name}.scale", *index)
        rows = [*index[:-1], 0]
        scale = b.load(f"{buffer.name}.scale", *rows)
        if not isinstance(index[-1], slice | Span):
            return codes * scale
        return codes * (b.expand(scale, len(scale.shape)) if scale.shape else scale)

    # ------------------------------------------------------------ made inside kernels
    def tile_encode(self, row: RowWriter) -> None:
        self.store_row(row)

    @property
    def totals(self) -> bool:  # type: ignore[override]
        return bool(self.zero) and not self.group

    def run(self, length: int, width: int) -> int:
        """Codes stored at once: those that share a sum, else a common divisor of `length` and `width`. A sum
        may cover fewer elements than a scale."""
        summed = self.group if self.zero or not self.block else 0
        return summed or math.gcd(length, width)

    def prepared(self, b: TileWriter, extremes: Sequence[Value]) -> Value:
        """The reciprocal of the scale, which values are multiplied by; 0 for a row of zeros."""
        return b.select(
            b.op("lt", b.const(0.0), extremes[0]),
            float(self.top) / b.op("max", extremes[0], 1e-37),
            b.const(0.0),
        )

    def parameters(self, b: TileWriter, extremes: Sequence[Value], prepared: Value) -> Mapping[str, Value]:
        return {"scale": extremes[0] * (1.0 / self.top)}

    def store_codes(self, row: RowWriter, at: Span, x: Value, prepared: Value) -> Value:
        """Store the codes, and their sum where each run has one; returns the codes as i32."""
        code = row.b.cast("i32", x * prepared)
        row.store("codes", at, row.b.cast("i8", code))
        if self.zero and self.group:
            self._store_sum(row, at.start, code)
        return code

    def store_total(self, row: RowWriter, codes: Value) -> None:
        self._store_sum(row, Affine(), codes)

    def _store_sum(self, row: RowWriter, at: Affine, codes: Value) -> None:
        row.store("sums", Span(at, 1), row.b.reduce("add", codes, 0) * -self.zero)
