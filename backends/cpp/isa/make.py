"""How tables are written: function records from C++ text, with meanings taken from the tile operations.

In: a body in C++ whose syntax serves scalars and vectors alike. Out: `Fn` records. Knows no instruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from tilewright.backends.cpp.target import BYTES, Array, Fn, element
from tilewright.ir.numbers import HELD, hold
from tilewright.ir.tile.core import TileType
from tilewright.ir.tile.ops import TILE_OPS

INTS = ("i8", "u8", "i16", "u16", "i32", "u32", "i64")
FLOATS = ("f32", "f64")
NARROW = ("bf16", "f16")
ALL = (*FLOATS, *NARROW, *INTS, "bool")
Key = tuple[str, tuple[str, ...]]


def vec(dtype: str, lanes: int) -> str:
    """How the type is spelled: one lane is the scalar."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def lanes_of(spelled: str) -> int:
    return int(spelled.split("x")[1]) if "x" in spelled else 1


def mask(dtype: str, lanes: int) -> str:
    """The type of a comparison's result: 0 or 1 for scalars, 0 or -1 in integer lanes of the operands' width
    for vectors."""
    return "bool" if lanes == 1 else vec(f"i{8 * BYTES[dtype]}", lanes)


def elementwise_meaning(op: str, dtype: str) -> Callable[..., Array]:
    """The tile operation of this name on held lanes of `dtype`."""

    def meaning(*args: Array) -> Array:
        return TILE_OPS[op].meaning(args, {}, TileType(dtype, args[-1].shape))

    return meaning


def compare_meaning(op: str, result: str) -> Callable[..., Array]:
    """The comparison as a mask of type `result`."""
    sign = 1 if result == "bool" else -1

    def meaning(a: Array, b: Array) -> Array:
        return (sign * TILE_OPS[op].meaning((a, b), {}, TileType("bool", a.shape)).astype(np.int64)).astype(
            HELD[element(result)]
        )

    return meaning


def cast_meaning(dtype: str) -> Callable[..., Array]:
    return lambda a: hold(a, dtype)


def unary(op: str, dtype: str, lanes: int, text: str) -> Fn:
    t = vec(dtype, lanes)
    return Fn(f"t_{op}", (t,), t, text, elementwise_meaning(op, dtype))


def binary(op: str, dtype: str, lanes: int, text: str) -> Fn:
    t = vec(dtype, lanes)
    return Fn(f"t_{op}", (t, t), t, text, elementwise_meaning(op, dtype))


def ternary(op: str, dtype: str, lanes: int, text: str) -> Fn:
    t = vec(dtype, lanes)
    return Fn(f"t_{op}", (t, t, t), t, text, elementwise_meaning(op, dtype))


def cast(source: str, dtype: str, lanes: int, text: str) -> Fn:
    return Fn(f"t_cvt_{dtype}", (vec(source, lanes),), vec(dtype, lanes), text, cast_meaning(dtype))


def merge(*tables: Iterable[Fn]) -> tuple[Fn, ...]:
    """Tables on top of each other: the last entry for a name and its types wins, in the place where it first
    stood (so callers still follow callees)."""
    out: dict[Key, Fn] = {}
    for table in tables:
        for f in table:
            out[f.name, f.args] = f
    return tuple(out.values())
