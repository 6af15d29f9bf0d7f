"""The elementwise operations of Tile IR, *scalar primitives*: renderers support no other pointwise ones.

Operands broadcast as in NumPy (right-aligned, axes of size 1 are repeated). Values are held as described in
`ir.numbers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from tilewright.ir.numbers import HELD, fma32, hold
from tilewright.ir.tile.core import TileType
from tilewright.ir.tile.op_record import Array, Attrs, TileOp, TileTypeError, broadcast


def _same_dtype(types: Sequence[TileType], name: str) -> str:
    kinds = {t.dtype for t in types}
    if len(kinds) != 1:
        raise TileTypeError(
            f"{name}: operands have dtypes {', '.join(t.dtype for t in types)}; cast them to one"
        )
    return kinds.pop()


def _elementwise(name: str, arity: int, fn: Callable[..., Array], result: str = "") -> TileOp:
    def infer(types: Sequence[TileType], attrs: Attrs) -> TileType:
        dtype = _same_dtype(types, name)
        return TileType(result or dtype, broadcast([t.shape for t in types]))

    def meaning(args: Sequence[Array], attrs: Attrs, t: TileType) -> Array:
        with np.errstate(all="ignore"):
            out = fn(*args)
        return wrap(out, t.dtype)

    return TileOp(name, arity, infer, meaning, elementwise=True)


def wrap(x: Array, dtype: str) -> Array:
    """An arithmetic result held in its dtype: integers wrap around, floats are rounded."""
    return (
        x.astype(HELD[dtype])
        if dtype[0] in "iu"
        else np.asarray(x) != 0
        if dtype == "bool"
        else hold(np.asarray(x), dtype)
    )


def _fma(a: Array, b: Array, c: Array) -> Array:
    if a.dtype == np.float32:
        return fma32(a, b, c)
    return a * b + c


def _select_infer(types: Sequence[TileType], attrs: Attrs) -> TileType:
    if types[0].dtype != "bool":
        raise TileTypeError(f"select: condition is {types[0].dtype}, expected bool")
    return TileType(_same_dtype(types[1:], "select"), broadcast([t.shape for t in types]))


def _shift(fn: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: fn(a, b.astype(a.dtype))


def _erf(x: Array) -> Array:
    out: Array = np.vectorize(math.erf, otypes=[np.float64])(np.asarray(x, np.float64))
    return out


def _div(a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.integer):  # C semantics: truncate; divisor 0 gives 0
        x, y = a.astype(np.int64), np.where(b == 0, 1, b).astype(np.int64)
        down = x // y
        return np.where(b == 0, 0, down + ((down * y != x) & ((x < 0) != (y < 0))))
    return a / b


def _rem(a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.floating):
        return np.fmod(a, b)
    return np.asarray(a - _div(a, b).astype(a.dtype) * b)


#: one record for each scalar primitive
ELEMENTWISE = [
    _elementwise("add", 2, np.add), _elementwise("sub", 2, np.subtract), _elementwise("mul", 2, np.multiply),
    _elementwise("div", 2, _div), _elementwise("rem", 2, _rem), _elementwise("fma", 3, _fma),
    _elementwise("min", 2, np.minimum), _elementwise("max", 2, np.maximum),
    _elementwise("neg", 1, np.negative), _elementwise("abs", 1, np.abs),
    _elementwise("exp", 1, np.exp), _elementwise("log", 1, np.log), _elementwise("sqrt", 1, np.sqrt),
    _elementwise("rsqrt", 1, lambda x: 1 / np.sqrt(x)), _elementwise("erf", 1, _erf),
    _elementwise("sin", 1, lambda x: np.sin(x.astype(np.float64))),
    _elementwise("cos", 1, lambda x: np.cos(x.astype(np.float64))),
    _elementwise("round", 1, np.rint), _elementwise("floor", 1, np.floor),
    _elementwise("lt", 2, np.less, "bool"), _elementwise("le", 2, np.less_equal, "bool"),
    _elementwise("eq", 2, np.equal, "bool"), _elementwise("ne", 2, np.not_equal, "bool"),
    _elementwise("and", 2, np.bitwise_and), _elementwise("or", 2, np.bitwise_or),
    _elementwise("xor", 2, np.bitwise_xor),
    _elementwise("not", 1, lambda x: ~x if x.dtype != np.bool_ else np.logical_not(x)),
    _elementwise("shl", 2, _shift(np.left_shift)), _elementwise("shr", 2, _shift(np.right_shift)),
    TileOp("select", 3, _select_infer, lambda a, _, t: wrap(np.where(a[0], a[1], a[2]), t.dtype),
    elementwise=True),
]  # fmt: skip
