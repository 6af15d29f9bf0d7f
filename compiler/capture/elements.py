"""Element types of captured programs: PyTorch's own, or the two that the numbers of a recipe take.

In: PyTorch's types. Out: ours, and casts as PyTorch makes them. A language model's recipe decides how its
numbers are held, so that its floats are f32 and its ids i32 whatever the checkpoint's width. Any other
program has its own types: integers wrap, doubles are doubles, and results in half precision are held in f32,
rounded to what their type can hold.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tilewright.capture.making import Making
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.numbers import int_range
from tilewright.ir.types import BITS, FLOATS

Table = Mapping[torch.dtype, str]

#: of a language model: half precision is a matter of encodings, and ids fit 32 bits
RECIPE: Table = {
    torch.float64: "f32", torch.float32: "f32", torch.float16: "f32", torch.bfloat16: "f32",
    torch.int64: "i32", torch.int32: "i32", torch.int16: "i32", torch.int8: "i8", torch.uint8: "u8",
    torch.bool: "bool",
}  # fmt: skip
#: of any other program
PYTORCH: Table = {**RECIPE, torch.float64: "f64", torch.int64: "i64", torch.int16: "i16"}
#: types whose values are held in f32
HALVES: Table = {torch.float16: "f16", torch.bfloat16: "bf16"}


def element_of(dtype: torch.dtype, table: Table) -> str:
    """Our element type of a PyTorch one; UnsupportedError for complex, quantized, 8-bit float and wide
    unsigned types."""
    if dtype not in table:
        raise UnsupportedError(
            f"element type {dtype} is not supported", "", "cast the tensor to a supported type first"
        )
    return table[dtype]


# ------------------------------------------------------------------ casts
def converted(c: Making, x: str, dtype: str) -> str:
    """A number as another type, as PyTorch on x86 has it: floats are truncated towards zero, and give the
    smallest integer where they do not fit; integers keep their low bits."""
    have = c.dtype(x)
    if dtype in FLOATS:
        return c.op("cast", x, dtype=dtype)
    if have in FLOATS:
        return _whole(c, x, dtype) if dtype in ("i32", "i64") else converted(c, _whole(c, x, "i32"), dtype)
    (lo, hi), (least, most) = int_range(have), int_range(dtype)
    fits = least <= lo and hi <= most
    return c.op("cast", x, dtype=dtype) if fits else _low_bits(c, x, dtype)


def _whole(c: Making, x: str, dtype: str) -> str:
    """`cast` saturates and takes NaN for 0, so that only what is too large differs."""
    lo, hi = int_range(dtype)
    fits = c.op("lt", x, c.const(float(hi + 1), c.dtype(x)))
    return c.op("select", fits, c.op("cast", c.trunc(x), dtype=dtype), c.const(lo, dtype))


def _low_bits(c: Making, x: str, dtype: str) -> str:
    bits = BITS[dtype]
    x = x if BITS[c.dtype(x)] > bits else c.op("cast", x, dtype="i32")
    wide = c.dtype(x)
    low = c.op("and", x, c.const((1 << bits) - 1, wide))
    if dtype[0] == "i":
        sign = c.const(1 << (bits - 1), wide)
        low = c.op("sub", c.op("xor", low, sign), sign)
    return c.op("cast", low, dtype=dtype)


def wrapped_number(value: int, dtype: str) -> int:
    """An integer's low bits as an integer type reads them."""
    lo, hi = int_range(dtype)
    return (value - lo) % (hi - lo + 1) + lo
