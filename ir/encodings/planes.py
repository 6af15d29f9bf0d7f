"""`planes2(group=64)`: bit planes with free coefficients, offset + sum of coefficient[i] * bit[i] per group.

This is LUT-GEMM's BCQ with bits of 0 and 1, which is ELUTQ's HLQ. Planes whose coefficients are powers of
two are integers: `int2`.

Every bit is a plane of its own. Its products with float activations are found by table lookup (T-MAC), those
with int8 activations by an integer dot. Rounding begins with equally spaced values; the solver `lsq` then
fits coefficients and codes alternately.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.contraction_form import Get
from tilewright.ir.encoding import Array, Encoding, EncodingError, Scale
from tilewright.ir.encoding_registry import Args, register_encoding
from tilewright.ir.encodings.blocked import Blocked, quotient
from tilewright.ir.encodings.fields import Blocks, Field
from tilewright.ir.formulas import Arithmetic, Value
from tilewright.ir.numbers import hold
from tilewright.ir.tile.ops import QUADS


@dataclass(frozen=True)
class PlaneWeight(Blocked):
    """`bits` planes; a coefficient each and an offset, of `scale_dtype`, per `group` elements of a row."""

    bits: int
    group: int
    scale_dtype: str = "f16"

    has_offset = True
    zero = 1
    ahead_of_time = "its coefficients are fitted to the values"

    @property
    def codec(self) -> str:  # type: ignore[override]
        return f"planes({self.bits})"

    @property
    def scales(self) -> tuple[Scale, ...]:  # type: ignore[override]
        return (Scale("group", self.scale_dtype, self.group),)

    def __str__(self) -> str:
        more = "" if self.scale_dtype == "f16" else f", scale={self.scale_dtype}"
        return f"planes{self.bits}(group={self.group}{more})"

    @property
    def blocks(self) -> Blocks:  # type: ignore[override]
        return Blocks(self.group)

    def fields(self) -> tuple[Field, ...]:
        floats = [
            Field(name, self.scale_dtype, "block")
            for name in (*(f"c{n}" for n in range(self.bits)), "offset")
        ]
        return (Field("codes", f"u{self.bits}", bitplanes=True), *floats)

    def wider(self) -> PlaneWeight | None:
        return replace(self, scale_dtype="bf16") if self.scale_dtype == "f16" else None

    # ------------------------------------------------------------ formulas
    @property
    def terms(self) -> int:  # type: ignore[override]
        return self.bits

    def term(self, b: Arithmetic, get: Get, n: int) -> Value:
        return get(f"codesb{n}")

    def factor(self, b: Arithmetic, get: Get, n: int) -> Value:
        return b.cast("f32", get(f"c{n}"))

    def value(self, b: Arithmetic, code: Value) -> Value:
        return b.cast("f32", code)

    def formula(self, b: Arithmetic, get: Get) -> Value:
        out = self.offset(b, get)
        for n in range(self.bits):
            out = b.cast("f32", self.term(b, get, n)) * self.factor(b, get, n) + out
        return out

    def offset(self, b: Arithmetic, get: Get) -> Value:
        return b.cast("f32", get("offset"))

    # ------------------------------------------------------------ rounding
    def round(self, x: NDArray[np.float32]) -> dict[str, Array]:
        w, top = self.grouped(x), (1 << self.bits) - 1
        low = hold(w.min(-1), self.scale_dtype)
        step = hold(((w.max(-1) - low) / np.float32(top)).astype(np.float32), self.scale_dtype)
        codes = np.clip(np.rint(quotient(w - low[..., None], step[..., None])), 0, top)
        found = {f"c{n}": hold(step * np.float32(1 << n), self.scale_dtype) for n in range(self.bits)}
        return {"codes": codes.astype(np.uint8).reshape(x.shape), "offset": low, **found}


def _make(bits: int, args: Args) -> Encoding:
    left = dict(args)
    group, scale = left.pop("group", 64), str(left.pop("scale", "f16"))
    if left or scale not in ("f16", "bf16"):
        wrong = ", ".join(map(str, left)) or f"scale={scale}"
        raise EncodingError(f"planes{bits}: unknown option {wrong}; known: group=N, scale=f16|bf16")
    if not isinstance(group, int) or isinstance(group, bool) or group <= 0 or group % QUADS:
        raise EncodingError(f"planes{bits}: group must be a positive multiple of {QUADS}, got {group}")
    return PlaneWeight(bits, group, scale)


for _bits in range(1, 5):
    register_encoding(f"planes{_bits}", partial(_make, _bits))
