"""Rounding weights to nearest by compiled code: one pass over the stored numbers, straight into packed bytes.

In: stored rows and a symmetric integer encoding. Out: the bytes that `encode` and `pack` of the encoding
give, or None for rows and encodings that must go through these two (NumPy is the reference, and raises the
errors). Independent of files.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilewright.backends.cpp.build import build_library
from tilewright.backends.cpp.levels import native_level
from tilewright.ir.encoding import Array, Encoding, EncodingError
from tilewright.ir.numbers import TAME
from tilewright.ir.reach import reach
from tilewright.ir.types import BITS

SOURCE = Path(__file__).with_name("round_rows.cpp")
#: number formats, in the numbering of `round_rows.cpp`
NUMBERS = {"bf16": 0, "f16": 1, "f32": 2}
#: the most planes of a code, and the zero bytes at the end of the scratch buffer
_PLANES, _SLACK = 4, 32


class _Plane(ctypes.Structure):
    _fields_ = (("base", ctypes.c_int64), ("shift", ctypes.c_int64), ("width", ctypes.c_int64))


class _Shape(ctypes.Structure):
    """`Shape` of `round_rows.cpp`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "k", "block", "depth", "record", "scales")),
        *((name, ctypes.c_int64) for name in ("bits", "source", "scale", "planes")),
        ("least", ctypes.c_float), ("most", ctypes.c_float), ("plane", _Plane * _PLANES),
    )  # fmt: skip


def rounds(encoding: Encoding | None) -> bool:
    """Whether weights of this encoding can be rounded here."""
    rounding = encoding.symmetric_rounding if encoding is not None else None
    return rounding is not None and rounding.scale in NUMBERS


class RoundRows:
    """The routine, built for this machine. Raises BuildError and CacheError."""

    def __init__(self) -> None:
        path = build_library(SOURCE.read_text("utf-8"), native_level(), name="round-rows")
        self._call = ctypes.CDLL(str(path)).tw_round_rows

    def __call__(self, encoding: Encoding, stored: Array, dtype: str) -> NDArray[np.uint8] | None:
        """The packed bytes of stored numbers [.., N, K] of format `dtype`. None: this routine does not
        support their type, shape or magnitudes."""
        if dtype not in NUMBERS or not _fits(encoding, stored.shape):
            return None
        shape, nbytes = _shape(encoding, (math.prod(stored.shape[:-1]), stored.shape[-1]))
        shape.source = NUMBERS[dtype]
        rows = np.ascontiguousarray(stored)
        scratch, out = np.zeros(5 * shape.k + _SLACK, np.uint8), np.zeros(nbytes, np.uint8)
        done = self._call(
            ctypes.byref(shape), *(ctypes.c_void_p(a.ctypes.data) for a in (rows, scratch, out))
        )
        return out if done else None


def _fits(encoding: Encoding, shape: tuple[int, ...]) -> bool:
    """Whether arrays of this shape fit the encoding and are stored as consecutive panels over all
    matrices."""
    if len(shape) < 2 or 0 in shape or not rounds(encoding):
        return False
    if len(shape) > 2 and shape[-2] % encoding.rows_together(shape):
        return False
    try:
        encoding.check(shape)
    except EncodingError:
        return False
    return True


def _shape(encoding: Encoding, shape: tuple[int, int]) -> tuple[_Shape, int]:
    """The routine's description of an array, and the bytes that the packed array takes."""
    made, nbytes = _layout(encoding, shape)
    return _Shape.from_buffer_copy(made), nbytes


@lru_cache(maxsize=64)
def _layout(encoding: Encoding, shape: tuple[int, int]) -> tuple[_Shape, int]:
    (n, k), rounding, layouts = shape, encoding.symmetric_rounding, encoding.layouts(shape)
    assert rounding is not None
    panels = -(-n // encoding.rows_together(shape))
    depth, nbytes = rounding.depth(k), encoding.nbytes(shape)
    low, high = reach(encoding)
    planes = [_Plane(layouts[name].base // 8, shift, BITS[width]) for name, width, shift in rounding.planes]
    made = _Shape(
        rows=n, k=k, block=rounding.block or k, depth=depth,
        record=nbytes // (panels * (k // depth)), scales=layouts["scale"].base // 8,
        bits=rounding.bits, scale=NUMBERS[rounding.scale], planes=len(planes),
        least=max(low, float(TAME[0])), most=min(high, float(TAME[1])),
        plane=(_Plane * _PLANES)(*planes),
    )  # fmt: skip
    return made, nbytes
