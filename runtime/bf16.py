"""bfloat16 in NumPy, which has no such type: values as their upper 16 bits.

In: floats, or bits. Out: bits, rounded to nearest even, or floats. Independent of what they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_bf16(x: NDArray[Any]) -> NDArray[np.uint16]:
    """Bits of the nearest bf16 of each number; every NaN becomes the same."""
    wide = np.asarray(x, np.float32, order="C").view(np.uint32)
    bits = ((wide + np.uint32(0x7FFF) + ((wide >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), bits)


def from_bf16(bits: NDArray[Any]) -> NDArray[np.float32]:
    """The numbers that bits stand for."""
    wide = bits.astype(np.uint32)
    wide <<= np.uint32(16)
    return wide.view(np.float32)
