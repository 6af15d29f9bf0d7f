"""Narrow number formats keep the shape of what they are given: a scalar stays a scalar."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.ir.numbers import STORED, bf16_bits, bits_to_bf16, fma32, from_bits, hold, round_bf16, to_bits

DTYPES = ("f64", "f32", "bf16", "f16", "i64", "i32", "u32", "i16", "u16", "i8", "u8", "bool")


@pytest.mark.parametrize("shape", [(), (1,), (2, 0), (2, 3)])
def test_shapes_stay(shape: tuple[int, ...]) -> None:
    x = np.ones(shape, np.float32)
    for dtype in DTYPES:
        bits = to_bits(hold(x, dtype), dtype)
        assert bits.shape == shape and bits.dtype == STORED[dtype], dtype
        back = from_bits(bits, dtype)
        assert back.shape == shape and (back == 1).all(), dtype
    assert bf16_bits(x).shape == round_bf16(x).shape == bits_to_bf16(bf16_bits(x)).shape == shape
    assert fma32(x, x, x).shape == shape and (fma32(x, x, x) == 2).all()


def test_turned_arrays_are_stored_row_by_row() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert to_bits(x, "f32").flags.c_contiguous and bf16_bits(x).flags.c_contiguous
