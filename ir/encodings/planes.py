"""`planes2(group=64)`: binary planes with free coefficients, value = offset + sum of coefficient[i] * bit[i] in each group
(LUT-GEMM's BCQ with bits of 0 and 1, which is ELUTQ's HLQ). Planes whose coefficients are powers of two are integers: `int2`.

Every bit is a plane of its own: float activations meet it by table lookup (T-MAC), int8 ones by an integer dot.
Rounding begins with equally spaced values; the solver `lsq` then fits coefficients and codes in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Args, Array, Encoding, EncodingError, Scale, register_encoding
from tilewright.ir.encodings.blocked import Blocked, quotient
from tilewright.ir.encodings.fields import Blocks, Field, Get, Value
from tilewright.ir.numbers import hold
from tilewright.ir.tileops import QUADS


@dataclass(frozen=True)
class PlaneWeight(Blocked):
    """`bits` planes; an f16 coefficient each and an f16 offset per `group` elements of a row."""

    bits: int
    group: int

    has_offset = True
    zero = 1

    @property
    def codec(self) -> str:  # type: ignore[override]
        return f"planes({self.bits})"

    @property
    def scales(self) -> tuple[Scale, ...]:  # type: ignore[override]
        return (Scale("group", "f16", self.group),)

    def __str__(self) -> str:
        return f"planes{self.bits}(group={self.group})"

    @property
    def blocks(self) -> Blocks:  # type: ignore[override]
        return Blocks(self.group)

    def fields(self) -> tuple[Field, ...]:
        coefficients = [Field(f"c{n}", "f16", "block") for n in range(self.bits)]
        return (Field("codes", f"u{self.bits}", bitplanes=True), *coefficients, Field("offset", "f16", "block"))

    # ------------------------------------------------------------ formulas
    @property
    def terms(self) -> int:  # type: ignore[override]
        return self.bits

    def term(self, b: Any, get: Get, n: int) -> Value:
        return get(f"codesb{n}")

    def factor(self, b: Any, get: Get, n: int) -> Value:
        return b.cast("f32", get(f"c{n}"))

    def value(self, b: Any, code: Value) -> Value:
        return b.cast("f32", code)

    def formula(self, b: Any, get: Get) -> Value:
        out = self.offset(b, get)
        for n in range(self.bits):
            out = b.cast("f32", self.term(b, get, n)) * self.factor(b, get, n) + out
        return out

    def offset(self, b: Any, get: Get) -> Value:
        return b.cast("f32", get("offset"))

    # ------------------------------------------------------------ rounding
    def round(self, x: NDArray[np.float32]) -> dict[str, Array]:
        w, top = self.grouped(x), (1 << self.bits) - 1
        low = hold(w.min(-1), "f16")
        step = hold(((w.max(-1) - low) / np.float32(top)).astype(np.float32), "f16")
        codes = np.clip(np.rint(quotient(w - low[..., None], step[..., None])), 0, top)
        found = {f"c{n}": hold(step * np.float32(1 << n), "f16") for n in range(self.bits)}
        return {"codes": codes.astype(np.uint8).reshape(x.shape), "offset": low, **found}


def _make(bits: int, args: Args) -> Encoding:
    left = dict(args)
    group = left.pop("group", 64)
    if left:
        raise EncodingError(f"planes{bits}: unknown option {', '.join(map(str, left))}; known: group=N")
    if not isinstance(group, int) or isinstance(group, bool) or group <= 0 or group % QUADS:
        raise EncodingError(f"planes{bits}: group must be a positive multiple of {QUADS}, got {group}")
    return PlaneWeight(bits, group)


for _bits in range(1, 5):
    register_encoding(f"planes{_bits}", partial(_make, _bits))
