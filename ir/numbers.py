"""Number formats in NumPy: how the interpreters hold values of every dtype, and their conversion to bits.

Interpreters hold bf16 and f16 as float32 arrays whose values the narrow format can represent; every other
dtype as itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: dtype of the NumPy array that holds values of each element type in the interpreters.
HELD: dict[str, type[np.generic]] = {
    "f64": np.float64,
    "f32": np.float32,
    "bf16": np.float32,
    "f16": np.float32,
    "i64": np.int64,
    "i32": np.int32,
    "u32": np.uint32,
    "i16": np.int16,
    "u16": np.uint16,
    "i8": np.int8,
    "u8": np.uint8,
    "bool": np.bool_,
    "u1": np.uint8,
    "u2": np.uint8,
    "u3": np.uint8,
    "u4": np.uint8,
    "u5": np.uint8,
    "u6": np.uint8,
    "u7": np.uint8,
}
#: dtype of the same values as stored bits, for dtypes of a byte and more.
STORED: dict[str, type[np.generic]] = {**HELD, "bf16": np.uint16, "f16": np.float16, "bool": np.uint8}

#: bits of one element in memory, by dtype name. `u4` and its like exist only as streams of an encoding.
BITS: dict[str, int] = {
    "bool": 8,
    "i8": 8,
    "u8": 8,
    "i16": 16,
    "u16": 16,
    "i32": 32,
    "u32": 32,
    "i64": 64,
    "f16": 16,
    "bf16": 16,
    "f32": 32,
    "f64": 64,
    "u1": 1,
    "u2": 2,
    "u3": 3,
    "u4": 4,
    "u5": 5,
    "u6": 6,
    "u7": 7,
}


def round_bf16(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 rounded to the nearest bf16 (ties to even; NaN stays NaN), still as float32."""
    return bits_to_bf16(bf16_bits(x))


def bf16_bits(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    u = np.asarray(x, np.float32, order="C").view(np.uint32)
    rounded = ((u + np.uint32(0x7FFF) + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def bits_to_bf16(u: NDArray[np.uint16]) -> NDArray[np.float32]:
    wide = np.asarray(u, np.uint16, order="C").astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)


def hold(x: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Numbers converted to `dtype` as a `cast` does: to integers round to nearest even and saturate (NaN
    gives 0); to narrow floats round to nearest even. Integer to narrower integer saturates too."""
    held = HELD[dtype]
    if dtype == "bool":
        return np.asarray(x).astype(np.bool_)
    if np.issubdtype(held, np.integer):
        lo, hi = int_range(dtype)
        if np.issubdtype(x.dtype, np.floating):
            wide = np.nan_to_num(np.rint(x.astype(np.float64)), nan=0.0, posinf=np.inf, neginf=-np.inf)
            clipped = np.clip(wide, lo, hi)
            exact = np.where(clipped >= 2.0**63, np.float64(2**63 - 1024), clipped).astype(np.int64)
            return np.where(wide >= hi, hi, exact).astype(held) if dtype == "i64" else exact.astype(held)
        return np.clip(x.astype(np.int64), lo, hi).astype(held)
    with np.errstate(over="ignore"):
        if dtype == "bf16":
            return round_bf16(np.asarray(x, np.float32))
        y: NDArray[Any] = np.asarray(x, np.float64 if dtype == "f64" else np.float32)
        return y.astype(np.float16).astype(np.float32) if dtype == "f16" else y


def int_range(dtype: str) -> tuple[int, int]:
    """Smallest and largest value of an integer dtype (also u1..u7)."""
    bits = {"bool": 1}.get(dtype) or int(dtype[1:])
    return (0, 2**bits - 1) if dtype[0] in "ub" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def largest(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest magnitude along the last axis. Compared as integers, whose order is that of magnitudes, in
    runs: a fifth of the time of `abs(x).max(-1)` for short axes, and the same values for finite ones."""
    if x.size == 0:
        return np.asarray(np.abs(x).max(-1))
    bits = np.ascontiguousarray(x, np.float32).view(np.int32) & np.int32(0x7FFFFFFF)
    runs = np.arange(0, x.size, x.shape[-1])
    most: NDArray[np.int32] = np.maximum.reduceat(bits.reshape(-1), runs)
    return most.view(np.float32).reshape(x.shape[:-1])


#: rows between these magnitudes are computed with as they are; others as powers of two times rows of
#: magnitude 1
TAME = (np.float32(2.0**-40), np.float32(2.0**40))


def unit_rows(
    x: NDArray[np.float32], sizes: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Rows as rows of magnitude 1/2 to 1 and their exponents, exactly (but for numbers 2^-126 below the
    largest of their row). `sizes`: the largest magnitudes, if known."""
    exponents = np.frexp(largest(x) if sizes is None else sizes)[1]
    return np.ldexp(x, -exponents[..., None]), exponents


def finite_bits(raw: NDArray[Any], dtype: str) -> bool:
    """Whether stored numbers are all finite, by their bits: as signed integers no positive number reaches
    infinity's, and as unsigned ones no negative number minus infinity's. Two reductions, no copy."""
    if dtype not in ("f32", "bf16", "f16", "f64") or raw.size == 0:
        return True
    size = raw.dtype.itemsize
    top = {"f32": 0x7F800000, "bf16": 0x7F80, "f16": 0x7C00, "f64": 0x7FF0000000000000}[dtype]
    bits = raw if raw.flags.c_contiguous else np.ascontiguousarray(raw)
    below = int(bits.view(f"i{size}").max()) < top
    return below and int(bits.view(f"u{size}").max()) < top + (1 << (8 * size - 1))


def to_bits(x: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Held values as stored (`STORED[dtype]`)."""
    if dtype == "bf16":
        return bf16_bits(np.asarray(x, np.float32))
    with np.errstate(over="ignore"):
        return np.asarray(x, order="C").astype(STORED[dtype])


def from_bits(raw: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Stored values as held (`HELD[dtype]`)."""
    return bits_to_bf16(np.asarray(raw, np.uint16)) if dtype == "bf16" else raw.astype(HELD[dtype])


def fma32(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]) -> NDArray[Any]:
    """a * b + c of float32 rounded once. The product is exact in float64; the sum is rounded to odd there, so
    that the last rounding sees on which side of a tie the exact value lies."""
    product, c64 = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + c64
    back = total - product
    error = (product - (total - back)) + (c64 - back)
    even = (np.asarray(total, order="C").view(np.int64) & 1) == 0
    inexact = np.isfinite(total) & (error != 0) & even.reshape(total.shape)
    return np.where(inexact, np.nextafter(total, np.copysign(np.inf, error)), total).astype(np.float32)
