"""What a small module is: a function, its inputs for an element type, and the types that it works for.

Values are drawn once for each shape, in a range where the function is defined; integers of a few units.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Maker = Callable[[torch.dtype], Tensor]

F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16
I8, U8, I16, I32, I64, BOOL = (
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool,
)  # fmt: skip
FLOATS, INTS = (F32, F64, F16, BF16), (I8, U8, I16, I32, I64)
NUMBERS, ALL = (*FLOATS, *INTS), (*FLOATS, *INTS, BOOL)
#: columns of tables, and short names
NAMES = {
    F32: "f32", F64: "f64", F16: "f16", BF16: "bf16", I64: "i64", I32: "i32", I16: "i16", I8: "i8",
    U8: "u8", BOOL: "bool",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """`dtypes`: the element types of its inputs; `refused`: what the message says if the operator is not
    supported; `loose`: how many times the usual tolerance its results may be off."""

    fn: Callable[..., Any]
    makers: tuple[Maker, ...]
    dtypes: tuple[torch.dtype, ...]
    refused: str = ""
    loose: float = 1.0

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return tuple(make(dtype) for make in self.makers)


def case(
    fn: Callable[..., Any], *makers: Maker, of: tuple[torch.dtype, ...] = FLOATS, refused: str = "",
    loose: float = 1.0,
) -> Case:  # fmt: skip
    return Case(fn, makers, of, refused, loose)


def x(*shape: int, lo: float = -3, hi: float = 3, seed: int = 0) -> Maker:
    """Numbers between two bounds; unsigned integers between 0 and the larger size of the two."""

    def make(dtype: torch.dtype) -> Tensor:
        draw = torch.rand(shape, generator=_generator(shape, seed), dtype=F64)
        if dtype == BOOL:
            return draw > 0.5
        if dtype.is_floating_point:
            return (draw * (hi - lo) + lo).to(dtype)
        low, high = (max(lo, 0), max(abs(lo), abs(hi))) if dtype == U8 else (lo, hi)
        return (draw * (high - low + 1) + low).floor().to(dtype)

    return make


def _generator(shape: tuple[int, ...], seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(repr((shape, seed)).encode()))


def fixed(*values: Any, dtype: torch.dtype | None = None) -> Maker:
    """These values, of their own type whatever the case's is, or of `dtype`."""
    return lambda asked: torch.tensor(list(values), dtype=dtype)


def ids(size: int, *shape: int, low: int = 0, seed: int = 0) -> Maker:
    """Indices from `low` to size - 1, always of 64 bits."""
    return lambda asked: torch.randint(low, size, shape, generator=_generator(shape, seed))


def mask(*shape: int, seed: int = 0) -> Maker:
    return lambda asked: torch.rand(shape, generator=_generator(shape, seed)) > 0.5


def real(*shape: int, lo: float = -3, hi: float = 3, seed: int = 0) -> Maker:
    """f32 numbers whatever the case's type is."""
    make = x(*shape, lo=lo, hi=hi, seed=seed)
    return lambda asked: make(F32)
