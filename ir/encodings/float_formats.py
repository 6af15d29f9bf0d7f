"""What the codes of narrow floats stand for: sign, exponent, mantissa, in 4 to 8 bits.

In: codes or values, as arrays, or as tiles in the formulas (`b`: where they are evaluated). Out: values or
codes. Codes shifted into the bits of an f16 are their value times a power of two, subnormal numbers included.
Independent of scales.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.formulas import Arithmetic, Value

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Format:
    """Sign, exponent and mantissa bits; `top`: the largest magnitude (codes above it are infinities or
    NaN)."""

    name: str
    exponent: int
    mantissa: int
    top: float

    @property
    def bits(self) -> int:
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1

    def value(self, b: Arithmetic, code: Value) -> Value:
        """f32 of u8 codes, exactly."""
        wide, below = b.cast("u16", code), self.bits - 1
        sign = (wide & (1 << below)) << (15 - below)
        f16 = b.bitcast("f16", sign | ((wide & ((1 << below) - 1)) << (10 - self.mantissa)))
        out = b.cast("f32", f16)
        return out if self.bias == 15 else out * 2.0 ** (15 - self.bias)

    def code(self, x: F32) -> NDArray[np.uint8]:
        """u8: nearest codes, ties to even; magnitudes beyond `top` become `top`."""
        size = np.minimum(np.abs(x), np.float32(self.top))
        drop = 23 - self.mantissa
        u = np.ascontiguousarray(size, np.float32).view(np.uint32)
        normal = (u + np.uint32((1 << (drop - 1)) - 1) + ((u >> drop) & 1)) >> drop
        normal = normal.astype(np.int32) - ((127 - self.bias) << self.mantissa)
        small = np.rint(np.minimum(size, 1) * np.float32(2.0 ** (self.bias - 1 + self.mantissa))).astype(
            np.int32
        )
        magnitude = np.where(size < np.float32(2.0 ** (1 - self.bias)), small, normal)
        return np.asarray(magnitude | (np.signbit(x) << (self.bits - 1)), np.uint8)

    def nearest(self, b: Arithmetic, x: Value) -> Value:
        """u8 codes of f32 values: what `code` computes, as a formula."""
        size, drop = b.op("min", b.op("abs", x), self.top), 23 - self.mantissa
        bits = b.bitcast("i32", size)
        normal = (bits + ((1 << (drop - 1)) - 1) + ((bits >> drop) & 1)) >> drop
        normal = normal - ((127 - self.bias) << self.mantissa)
        small = b.cast("i32", b.op("min", size, 1.0) * 2.0 ** (self.bias - 1 + self.mantissa))
        magnitude = b.select(b.op("lt", size, 2.0 ** (1 - self.bias)), small, normal)
        sign = b.op("lt", b.bitcast("i32", x), 0)
        return b.cast("u8", b.select(sign, magnitude | 1 << (self.bits - 1), magnitude))

    def narrow(self, b: Arithmetic, code: Value) -> Value:
        """bf16 of u8 codes of 8 bits, exactly: the bits of the magnitude are shifted into place and the
        exponent bias is changed; subnormal numbers are looked up instead."""
        wide, one = b.cast("u16", code), 1 << self.mantissa
        size = wide & 0x7F
        least = b.cast("bf16", b.cast("f32", b.iota(one)) * 2.0 ** (1 - self.bias - self.mantissa))
        small = b.lookup(b.bitcast("u16", least), code & (one - 1))
        normal = (size << (7 - self.mantissa)) + ((127 - self.bias) << 7)
        return b.bitcast("bf16", b.select(b.op("lt", size, one), small, normal) | ((wide & 0x80) << 8))

    # ------------------------------------------------------------ as integers: formats of two exponent bits
    @property
    def whole(self) -> int:
        """The largest magnitude in units of the smallest; 0 if the integer dot cannot hold that."""
        return int(self.top * 2 ** (self.bias - 1 + self.mantissa)) if self.exponent == 2 else 0

    def integers(self, b: Arithmetic, code: Value) -> Value:
        """u8: `whole` plus the value in units of the smallest magnitude."""
        one, below = 1 << self.mantissa, self.bits - 1
        size = code & ((1 << below) - 1)
        fine = b.select(
            b.op("lt", size, 2 * one),
            size,
            b.select(b.op("lt", size, 3 * one), (size - one) << 1, (size - 2 * one) << 2),
        )
        return b.select(b.op("lt", code, 1 << below), fine + self.whole, b.op("sub", self.whole, fine))


E4M3, E5M2 = Format("e4m3", 4, 3, 448), Format("e5m2", 5, 2, 57344)
E2M3, E3M2, E2M1 = Format("e2m3", 2, 3, 7.5), Format("e3m2", 3, 2, 28), Format("e2m1", 2, 1, 6)
