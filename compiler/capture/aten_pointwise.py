"""PyTorch's elementwise operators of several operands: arithmetic, comparison, logic, casts, where and clamp.

In: tensors and Python numbers of any mix of types. Out: pointwise ops whose operands are cast to one type, as PyTorch promotes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tilewright.capture.context import Context, aten, dtype_of
from tilewright.capture.facts import always_true, not_negative
from tilewright.ir.types import FLOATS

#: smallest float32, which stands for "never" in masks
LOWEST = float(torch.finfo(torch.float32).min)


# ------------------------------------------------------------------ two operands
def _pair(c: Context, a: Any, b: Any, dtype: str) -> tuple[str, str]:
    return c.operand(a, dtype), c.operand(b, dtype)


_NEUTRAL = {"add": 0, "sub": 0, "mul": 1}


def _binary(name: str, on_bool: str) -> Callable[..., str]:
    """Arithmetic in the type PyTorch gives the result."""

    def run(c: Context, a: Any, b: Any, *, alpha: Any = 1) -> str:
        dtype = c.result().dtype
        if isinstance(a, str) and isinstance(b, int | float) and b == _NEUTRAL.get(name):
            return c.cast(a, dtype)
        x, y = _pair(c, a, b, dtype)
        if dtype == "bool":
            return c.op(on_bool, x, y)
        return c.op(name, x, y if alpha == 1 else c.op("mul", y, c.operand(alpha, dtype)))

    return run


for _n, _ours, _on_bool in (("add", "add", "or"), ("sub", "sub", "xor"), ("mul", "mul", "and")):
    aten(_n)(_binary(_ours, _on_bool))
aten("maximum", "max.other")(_binary("max", "or"))
aten("minimum", "min.other")(_binary("min", "and"))


@aten("rsub")
def rsub(c: Context, a: Any, b: Any, alpha: Any = 1) -> str:
    dtype = c.result().dtype
    x, y = _pair(c, a, b, dtype)
    return c.op("sub", y, x if alpha == 1 else c.op("mul", x, c.operand(alpha, dtype)))


def _compare(name: str) -> Callable[..., str]:
    def run(c: Context, a: Any, b: Any) -> str:
        dtype = c.promoted(a, b)
        if dtype == "bool" and name not in ("eq", "ne"):
            dtype = "i32"
        if name == "ge" and isinstance(b, int) and b <= 0 and not_negative(c, a):
            return c.expand(c.const(True, "bool"), c.shape(a))
        return c.op(name, *_pair(c, a, b, dtype))

    return run


for _n in ("eq", "ne", "lt", "le", "gt", "ge"):
    aten(_n)(_compare(_n))


def _logic(name: str, logical: bool) -> Callable[..., str]:
    def run(c: Context, a: Any, b: Any) -> str:
        x, y = _pair(c, a, b, "bool" if logical else c.result().dtype)
        if name == "and" and (always_true(c, x) or always_true(c, y)):
            return c.expand(y if always_true(c, x) else x, c.result().shape)
        return c.op(name, x, y)

    return run


for _n in ("and", "or", "xor"):
    aten(f"logical_{_n}")(_logic(_n, True))
    aten(f"bitwise_{_n}", f"__{_n}__")(_logic(_n, False))


@aten("logical_not")
def logical_not(c: Context, x: str) -> str:
    return c.op("not", c.cast(x, "bool"))


@aten("bitwise_not")
def bitwise_not(c: Context, x: str) -> str:
    return c.op("not", x)


# ------------------------------------------------------------------ division
@aten("div", "true_divide", "divide")
def div(c: Context, a: Any, b: Any, *, rounding_mode: str | None = None) -> str:
    if rounding_mode == "floor":
        return floor_divide(c, a, b)
    dtype = c.result().dtype
    quotient = c.op("div", *_pair(c, a, b, dtype))
    return c.trunc(quotient) if rounding_mode == "trunc" and dtype in FLOATS else quotient


@aten("floor_divide")
def floor_divide(c: Context, a: Any, b: Any) -> str:
    """Integer division here cuts off towards zero, so one is taken off where the signs differ and something is left over."""
    dtype = c.result().dtype
    x, y = _pair(c, a, b, dtype)
    quotient = c.op("div", x, y)
    if dtype in FLOATS:
        return c.op("floor", quotient)
    return c.op("select", _crosses(c, c.op("rem", x, y), y), c.op("sub", quotient, c.const(1, dtype)), quotient)


def _crosses(c: Context, rest: str, y: str) -> str:
    zero = c.const(0, c.dtype(y))
    signs = c.op("xor", c.op("lt", rest, zero), c.op("lt", y, zero))
    return c.op("and", c.op("ne", rest, zero), signs)


@aten("remainder")
def remainder(c: Context, a: Any, b: Any) -> str:
    """The rest that has the divisor's sign."""
    dtype = c.result().dtype
    x, y = _pair(c, a, b, dtype)
    if dtype in FLOATS:
        return c.op("sub", x, c.op("mul", c.op("floor", c.op("div", x, y)), y))
    rest = c.op("rem", x, y)
    return c.op("select", _crosses(c, rest, y), c.op("add", rest, y), rest)


@aten("fmod")
def fmod(c: Context, a: Any, b: Any) -> str:
    dtype = c.result().dtype
    x, y = _pair(c, a, b, dtype)
    if dtype not in FLOATS:
        return c.op("rem", x, y)
    return c.op("sub", x, c.op("mul", c.trunc(c.op("div", x, y)), y))


@aten("pow", "float_power")
def power(c: Context, a: Any, b: Any) -> str:
    dtype = c.result().dtype
    if dtype not in FLOATS:
        if not isinstance(b, int) or not 0 <= b <= 8:
            raise c.no(f"an integer to the power {b}", "use exponents 0 to 8, or floats")
        x, out = c.operand(a, dtype), c.const(1, dtype)
        for _ in range(b):
            out = c.op("mul", out, x)
        return out
    special = {0.5: "sqrt", -0.5: "rsqrt"}.get(b) if isinstance(b, float) else None
    return c.op(special, c.operand(a, dtype)) if special else c.op("pow", *_pair(c, a, b, dtype))


# ------------------------------------------------------------------ choice
@aten("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def where(c: Context, cond: str, a: Any, b: Any) -> str:
    return c.op("select", c.cast(cond, "bool"), *_pair(c, a, b, c.result().dtype))


@aten("masked_fill")
def masked_fill(c: Context, x: str, mask: str, value: Any) -> str:
    return c.op("select", mask, c.operand(value, c.dtype(x)), x)


@aten("clamp", "clip")
def clamp(c: Context, x: str, lo: Any = None, hi: Any = None) -> str:
    """Bounds may be numbers, dimensions or tensors."""
    dtype = c.result().dtype
    x = c.cast(x, dtype)
    if all(b is None or isinstance(b, int | float) for b in (lo, hi)):
        kind = float if dtype in FLOATS else int
        return c.op("clamp", x, lo=None if lo is None else kind(lo), hi=None if hi is None else kind(hi))
    x = x if lo is None else c.op("max", x, c.operand(lo, dtype))
    return x if hi is None else c.op("min", x, c.operand(hi, dtype))


@aten("clamp_min")
def clamp_min(c: Context, x: str, lo: Any) -> str:
    return clamp(c, x, lo, None)


@aten("clamp_max")
def clamp_max(c: Context, x: str, hi: Any) -> str:
    return clamp(c, x, None, hi)


# ------------------------------------------------------------------ casts and what changes nothing
@aten("_to_copy")
def to_copy(c: Context, x: str, *, dtype: torch.dtype | None = None, **_: Any) -> str:
    return x if dtype is None else c.cast(x, dtype_of(dtype))


@aten("to.dtype")
def to_dtype(c: Context, x: str, dtype: torch.dtype, *_: Any, **__: Any) -> str:
    return c.cast(x, dtype_of(dtype))


@aten("clone", "alias", "detach", "lift_fresh", "lift_fresh_copy", "contiguous", "dropout", "alias_copy")
@aten("to.dtype_layout", "to.device", "to.other")
def unchanged(c: Context, x: str, *_: Any, **__: Any) -> str:
    """Copies, views of the whole, and dropout, which does nothing in evaluation."""
    return c.cast(x, c.result().dtype)


@aten("copy")
def copy(c: Context, x: str, src: str, non_blocking: bool = False) -> str:
    return c.expand(c.cast(src, c.dtype(x)), c.shape(x))
