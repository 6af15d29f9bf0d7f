"""The kernel builder's operations on NumPy arrays, so that decode formulas are written only once.

In: held arrays (`ir.numbers`). Out: held arrays, equal bit for bit to those of the tile interpreter. Only the
operations that formulas use are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.numbers import HELD, hold
from tilewright.ir.tile.ops import TILE_OPS

Array = NDArray[Any]


class Arrays:
    """Takes the place of a `KernelBuilder` where a formula is evaluated on arrays."""

    def cast(self, dtype: str, x: Array) -> Array:
        return hold(np.asarray(x), dtype)

    def bitcast(self, dtype: str, x: Array) -> Array:
        """Between integers and floats of the same width. An f16 result is held as f32; f16 values cannot be
        the operand.
        """
        bits = np.ascontiguousarray(x)
        return bits.view(np.float16).astype(np.float32) if dtype == "f16" else bits.view(HELD[dtype])

    def iota(self, size: int | str) -> Array:
        return np.arange(int(size), dtype=np.int32)

    def lookup(self, table: Array, codes: Array) -> Array:
        return np.asarray(np.asarray(table)[codes])

    def select(self, cond: Array, a: Any, b: Any) -> Array:
        dtype = next(np.asarray(v).dtype for v in (a, b) if isinstance(v, np.ndarray))
        return np.asarray(np.where(cond, a, b), dtype)

    def op(self, name: str, *args: Any) -> Array:
        """An elementwise primitive on arrays and numbers of one dtype."""
        like = next(np.asarray(a).dtype for a in reversed(args) if isinstance(a, np.ndarray))
        arrays: Sequence[Array] = [np.asarray(a, like) for a in args]
        record = TILE_OPS[name]
        with np.errstate(all="ignore"):
            out = record.meaning(arrays, {}, record.infer(_types(arrays), {}))
        return np.asarray(out)


def _types(arrays: Sequence[Array]) -> list[Any]:
    from tilewright.ir.tile.core import TileType

    names = {
        np.dtype(np.float32): "f32",
        np.dtype(np.int32): "i32",
        np.dtype(np.uint8): "u8",
        np.dtype(np.uint16): "u16",
    }
    return [TileType("bool" if a.dtype == np.bool_ else names[a.dtype], ()) for a in arrays]
