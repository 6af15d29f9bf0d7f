"""Helpers that op records share: symbolic dimension arithmetic, checks, axis roles, rounding of results.

In: tensor types and attributes. Out: inferred types or an `OpTypeError` saying expected and got. Independent
of any particular op.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np

from tilewright.ir.numbers import HELD, hold
from tilewright.ir.ops.base import Array, Attrs, AttrSpec, AxisRole, OpTypeError
from tilewright.ir.types import FLOATS, INTEGERS, TensorType, as_dim, type_text

if TYPE_CHECKING:
    import sympy

Dim = "int | sympy.Expr"
Types = Sequence[TensorType]
Roles = Sequence[Sequence[AxisRole]]

REQUIRED = ...
#: most terms of an expanded product; shapes with more are not compared
MAX_TERMS = 4096
BOOL = AttrSpec("bool", False)


def int_attr(default: object = REQUIRED) -> AttrSpec:
    return AttrSpec("int", default)


def axis_attr(default: object = REQUIRED) -> AttrSpec:
    """An axis of the first operand; written negative or not, stored non-negative."""
    return AttrSpec("axis", default)


# ------------------------------------------------------------------ dimensions
def same_dim(a: int | sympy.Expr, b: int | sympy.Expr) -> bool:
    """Equal as expressions: the difference expands to zero."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(a == b) or sub_dim(a, b) == 0


@lru_cache(maxsize=4096)
def sub_dim(a: int | sympy.Expr, b: int | sympy.Expr) -> int | sympy.Expr:
    return as_dim(a - b)


def same_shape(a: Sequence[int | sympy.Expr], b: Sequence[int | sympy.Expr]) -> bool:
    return len(a) == len(b) and all(same_dim(x, y) for x, y in zip(a, b, strict=True))


def product(dims: Iterable[int | sympy.Expr]) -> int | sympy.Expr:
    """The number of elements, expanded. OpTypeError if it has more than MAX_TERMS terms."""
    out: int | sympy.Expr = 1
    terms = 1
    for d in dims:
        out = out * d
        terms *= 1 if isinstance(d, int) else max(len(d.args), 1)
    if terms > MAX_TERMS:
        raise OpTypeError(f"the number of elements, {out}, has more than {MAX_TERMS} terms")
    return as_dim(out)


def broadcast_shapes(op: str, shapes: Sequence[Sequence[int | sympy.Expr]]) -> tuple[int | sympy.Expr, ...]:
    """NumPy broadcasting over symbolic dimensions: only a dimension that is literally 1 is broadcast."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[int | sympy.Expr] = []
    for axis in range(rank):
        dims = [s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0]
        big = [d for d in dims if d != 1]
        if any(not same_dim(d, big[0]) for d in big[1:]):
            raise OpTypeError(
                f"{op}: shapes {', '.join(map(shape_text, shapes))} do not broadcast on axis {axis}"
            )
        out.append(big[0] if big else 1)
    return tuple(out)


def shape_text(shape: Sequence[object]) -> str:
    return "[" + ", ".join(str(d) for d in shape) + "]"


# ------------------------------------------------------------------ checks
def require(ok: bool, op: str, expected: str, got: object) -> None:
    """Raise the op's type error unless `ok`."""
    if not ok:
        raise OpTypeError(f"{op}: expected {expected}, got {_found(got)}")


def _found(x: object) -> str:
    if isinstance(x, TensorType):
        return type_text(x)
    return ", ".join(map(_found, x)) if isinstance(x, list) else str(x)


def require_float(op: str, *types: TensorType) -> None:
    for t in types:
        require(t.dtype in FLOATS, op, "a floating-point operand", t)


def require_int(op: str, t: TensorType, what: str) -> None:
    require(t.dtype in INTEGERS, op, f"integer {what}", t)


def require_rank(op: str, t: TensorType, rank: int, what: str) -> None:
    require(t.rank == rank, op, f"{what} of rank {rank}", t)


def require_shape(op: str, t: TensorType, shape: Sequence[int | sympy.Expr], what: str) -> None:
    require(same_shape(t.shape, shape), op, f"{what} of shape {shape_text(shape)}", t)


def same_dtype(op: str, types: Types) -> str:
    kinds = {t.dtype for t in types}
    if len(kinds) != 1:
        raise OpTypeError(
            f"{op}: operands have element types {', '.join(t.dtype for t in types)}; cast them to one"
        )
    return kinds.pop()


# ------------------------------------------------------------------ attributes
def get_int(attrs: Attrs, key: str) -> int:
    return cast(int, attrs[key])


def get_float(attrs: Attrs, key: str) -> float:
    return float(cast(float, attrs[key]))


def get_ints(attrs: Attrs, key: str) -> tuple[int, ...]:
    return cast("tuple[int, ...]", attrs[key])


def get_dims(attrs: Attrs, key: str) -> tuple[int | sympy.Expr, ...]:
    return cast("tuple[int | sympy.Expr, ...]", attrs[key])


def check_axis(op: str, axis: int, t: TensorType) -> int:
    require(0 <= axis < t.rank, op, f"an axis within rank {t.rank}", f"axis {axis}")
    return axis


def shape_of(t: TensorType) -> tuple[int, ...]:
    """The shape of a bound type, whose dimensions are all integers."""
    return cast("tuple[int, ...]", t.shape)


# ------------------------------------------------------------------ results and roles
def dense(t: TensorType, **changes: object) -> TensorType:
    """The type of a computed result: as `t`, without an encoding."""
    return t.with_(**{"encoding": None, **changes})


def rounded(x: Array, t: TensorType) -> Array:
    """A computed array as values of `t`."""
    return hold(np.asarray(x), t.dtype)


def wrapped(x: Array, t: TensorType) -> Array:
    """A computed array as values of `t`: integers wrap around, floats round."""
    return x.astype(HELD[t.dtype]) if t.dtype in INTEGERS else rounded(x, t)


def wide(x: Array) -> Array:
    """Floats as float64 for accumulation; integers as int64."""
    return x.astype(np.float64 if np.issubdtype(x.dtype, np.floating) else np.int64)


def keep_axes(t: TensorType, shift: int = 0) -> list[AxisRole]:
    return [("keep", d + shift) for d in range(t.rank)]


def broadcast_roles(types: Types, rank: int) -> list[list[AxisRole]]:
    """Roles of operands that broadcast together to `rank` axes."""
    out: list[list[AxisRole]] = []
    for t in types:
        first = rank - t.rank
        out.append([("broadcast" if t.shape[d] == 1 else "keep", first + d) for d in range(t.rank)])
    return out


def mix_axes(t: TensorType, mixed: Iterable[int]) -> list[AxisRole]:
    """Roles by axis: `mixed` axes mix, all others are kept."""
    chosen = set(mixed)
    return [("mix" if d in chosen else "keep", d) for d in range(t.rank)]


def replace_at(
    shape: Sequence[int | sympy.Expr], axis: int, size: int | sympy.Expr
) -> tuple[int | sympy.Expr, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def no_attrs() -> Mapping[str, AttrSpec]:
    return {}
