"""PyTorch's elementwise operators of several operands: arithmetic, comparison, logic, casts, where and clamp.

In: tensors and Python numbers of any mix of types. Out: pointwise ops whose operands are cast to one type, as
PyTorch promotes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tilewright.capture.context import Capture, aten
from tilewright.capture.halves import cast_to
from tilewright.capture.known_values import always_true, not_negative
from tilewright.ir.types import BITS, FLOATS

#: smallest float32, which stands for "never" in masks
LOWEST = float(torch.finfo(torch.float32).min)


# ------------------------------------------------------------------ two operands
def _pair(c: Capture, a: Any, b: Any, dtype: str) -> tuple[str, str]:
    return c.operand(a, dtype), c.operand(b, dtype)


_NEUTRAL = {"add": 0, "sub": 0, "mul": 1}


def _binary(name: str, on_bool: str) -> Callable[..., str]:
    """Arithmetic in the type PyTorch gives the result."""

    def run(c: Capture, a: Any, b: Any, *, alpha: Any = 1) -> str:
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
def rsub(c: Capture, a: Any, b: Any, alpha: Any = 1) -> str:
    dtype = c.result().dtype
    x, y = _pair(c, a, b, dtype)
    return c.op("sub", y, x if alpha == 1 else c.op("mul", x, c.operand(alpha, dtype)))


def _compare(name: str) -> Callable[..., str]:
    def run(c: Capture, a: Any, b: Any) -> str:
        if name == "ge" and isinstance(b, int) and b <= 0 and not_negative(c, a):
            return c.expand(c.const(True, "bool"), c.shape(a))
        common = c.common()
        dtype = c.element(common)
        if dtype == "bool" and name not in ("eq", "ne"):
            return c.op(name, *_pair(c, a, b, "i32"))
        return c.op(name, cast_to(c, a, common), cast_to(c, b, common))

    return run


for _n in ("eq", "ne", "lt", "le", "gt", "ge"):
    aten(_n)(_compare(_n))


def _logic(name: str, logical: bool) -> Callable[..., str]:
    def run(c: Capture, a: Any, b: Any) -> str:
        x, y = _pair(c, a, b, "bool" if logical else c.result().dtype)
        if name == "and" and (always_true(c, x) or always_true(c, y)):
            return c.expand(y if always_true(c, x) else x, c.result().shape)
        return c.op(name, x, y)

    return run


for _n in ("and", "or", "xor"):
    aten(f"logical_{_n}")(_logic(_n, True))
    aten(f"bitwise_{_n}", f"__{_n}__")(_logic(_n, False))


@aten("logical_not")
def logical_not(c: Capture, x: str) -> str:
    return c.op("not", c.cast(x, "bool"))


@aten("bitwise_not")
def bitwise_not(c: Capture, x: str) -> str:
    return c.op("not", x)


# ------------------------------------------------------------------ division
@aten("div", "true_divide", "divide")
def div(c: Capture, a: Any, b: Any, *, rounding_mode: str | None = None) -> str:
    if rounding_mode == "floor":
        return floor_divide(c, a, b)
    dtype = c.result().dtype
    quotient = c.op("div", *_pair(c, a, b, dtype))
    return c.trunc(quotient) if rounding_mode == "trunc" and dtype in FLOATS else quotient


@aten("floor_divide")
def floor_divide(c: Capture, a: Any, b: Any) -> str:
    """Integer division here truncates towards zero, so one is taken off where the signs differ and something
    is left over."""
    dtype = c.result().dtype
    x, y = _pair(c, a, b, dtype)
    if dtype in FLOATS:
        return _floor_of_floats(c, x, y)
    quotient = c.op("div", x, y)
    return c.op(
        "select", _crosses(c, c.op("rem", x, y), y), c.op("sub", quotient, c.const(1, dtype)), quotient
    )


def _floor_of_floats(c: Capture, x: str, y: str) -> str:
    """(x - rest) / y is whole but for its rounding, where the floor of x / y may be one too many; by 0 it is
    x / 0."""
    zero, one, plain = c.const(0.0, c.dtype(x)), c.const(1.0, c.dtype(x)), c.op("div", x, y)
    rest = c.op("rem", x, y)
    whole = c.op("div", c.op("sub", x, rest), y)
    whole = c.op("select", _crosses(c, rest, y), c.op("sub", whole, one), whole)
    down = c.op("floor", whole)
    near = c.op("lt", c.const(0.5, c.dtype(x)), c.op("sub", whole, down))
    down = c.op("select", near, c.op("add", down, one), down)
    signed = c.op("mul", plain, zero)  # a zero of the quotient's sign
    down = c.op("select", c.op("eq", whole, zero), signed, down)
    return c.op("select", c.op("eq", y, zero), plain, down)


def _crosses(c: Capture, rest: str, y: str) -> str:
    """Whether something is left over that has not the divisor's sign. Of a division by 0 nothing is said."""
    zero = c.const(0, c.dtype(y))
    signs = c.op("xor", c.op("lt", rest, zero), c.op("lt", y, zero))
    left = c.op("ne", rest, zero)
    return c.op("and", left if c.dtype(y) in FLOATS else c.op("and", left, c.op("ne", y, zero)), signs)


@aten("remainder")
def remainder(c: Capture, a: Any, b: Any) -> str:
    """The rest that has the divisor's sign."""
    x, y = _pair(c, a, b, c.result().dtype)
    rest = c.op("rem", x, y)
    return c.op("select", _crosses(c, rest, y), c.op("add", rest, y), rest)


@aten("fmod")
def fmod(c: Capture, a: Any, b: Any) -> str:
    return c.op("rem", *_pair(c, a, b, c.result().dtype))


@aten("pow", "float_power")
def power(c: Capture, a: Any, b: Any) -> str:
    """Whole exponents by squaring. PyTorch's powers of 2 and 3 stay powers: patterns of activations are found
    by them."""
    dtype = c.result().dtype
    if dtype not in FLOATS:
        if isinstance(b, int) and b < 0:
            raise c.no(f"an integer to the power {b}", "use an exponent of 0 or more, or floats")
        if isinstance(b, int):
            return _product(c, c.operand(a, dtype), b)
        return _power_of_integers(c, *_pair(c, a, b, dtype))
    if isinstance(b, int | float) and isinstance(a, str):
        special = {0.5: "sqrt", -0.5: "rsqrt"}.get(b)
        if special:
            return c.op(special, c.operand(a, dtype))
        if c.exact and float(b).is_integer() and abs(b) <= 64 and b not in (2, 3):
            x = _product(c, c.operand(a, dtype), abs(int(b)))
            return x if b >= 0 else c.op("div", c.const(1.0, dtype), x)
        return c.op("pow", *_pair(c, a, b, dtype))
    x, y = _pair(c, a, b, dtype)
    return _power_of_tensors(c, x, y) if c.exact else c.op("pow", x, y)


def _product(c: Capture, x: str, n: int) -> str:
    """x to the power n; anything to the power 0 is 1."""
    out: str | None = None
    while n:
        if n & 1:
            out = x if out is None else c.op("mul", out, x)
        n >>= 1
        x = c.op("mul", x, x) if n else x
    return c.expand(c.const(1, c.dtype(x)), c.shape(x)) if out is None else out


def _power_of_integers(c: Capture, x: str, y: str) -> str:
    """By the bits of the exponent, of which each squares the base once more; to a negative one, the inverse
    cut off, which is 0 but for 1 and -1."""
    dtype = c.dtype(x)
    zero, one = c.const(0, dtype), c.const(1, dtype)
    out, base = one, x
    for bit in range(BITS[dtype] - (dtype[0] == "i")):
        set_ = c.op("ne", c.op("and", c.op("shr", y, c.const(bit, dtype)), one), zero)
        out = c.op("select", set_, c.op("mul", out, base), out)
        base = c.op("mul", base, base)
    if dtype[0] == "u":
        return out
    minus = c.const(-1, dtype)
    odd = c.op("ne", c.op("and", y, one), zero)
    of_minus = c.op("select", odd, minus, one)
    inverse = c.op("select", c.op("eq", x, minus), of_minus, zero)
    inverse = c.op("select", c.op("eq", x, one), one, inverse)
    return c.op("select", c.op("lt", y, zero), inverse, out)


def _power_of_tensors(c: Capture, x: str, y: str) -> str:
    """1 to any power is 1, and so is -1 to an infinite one; an odd power of -0 keeps its sign."""
    zero, one, endless = (c.const(n, c.dtype(x)) for n in (0.0, 1.0, math.inf))
    alone = c.op("and", c.op("eq", c.op("abs", x), one), c.op("eq", c.op("abs", y), endless))
    out = c.op("select", c.op("or", c.op("eq", x, one), alone), one, c.op("pow", x, y))
    half = c.op("floor", c.op("mul", y, c.const(0.5, c.dtype(x))))
    odd = c.op("and", c.op("eq", c.op("floor", y), y), c.op("ne", c.op("add", half, half), y))
    end, below = c.op("select", odd, x, c.op("abs", x)), c.op("lt", y, zero)
    end = c.op("select", below, c.op("div", one, end), end)
    return c.op("select", c.op("and", c.op("eq", x, zero), c.op("or", below, c.op("lt", zero, y))), end, out)


def _shift(name: str) -> Callable[..., str]:
    def run(c: Capture, a: Any, b: Any) -> str:
        return c.op(name, *_pair(c, a, b, c.result().dtype))

    return run


for _n, _ours in (("left", "shl"), ("right", "shr")):
    aten(f"bitwise_{_n}_shift", f"__{_n[0]}shift__")(_shift(_ours))


# ------------------------------------------------------------------ signs and sizes
@aten("signbit")
def signbit(c: Capture, x: str) -> str:
    """Of a zero by its inverse; of NaN it says nothing."""
    dtype = c.dtype(x)
    zero = c.const(0, dtype)
    below = c.op("lt", x, zero) if dtype != "bool" else c.op("xor", x, x)
    if dtype not in FLOATS:
        return below
    inverse = c.op("div", c.const(1.0, dtype), x)
    return c.op("or", below, c.op("and", c.op("eq", x, zero), c.op("lt", inverse, zero)))


@aten("copysign")
def copysign(c: Capture, a: Any, b: Any) -> str:
    x, y = _pair(c, a, b, c.result().dtype)
    size = c.op("abs", x)
    return c.op("select", signbit(c, y), c.op("neg", size), size)


@aten("hypot")
def hypot(c: Capture, a: str, b: str) -> str:
    """Of the ratio to the larger one, so that no square overflows; infinite if one of the two is."""
    dtype = c.result().dtype
    x, y = (c.op("abs", t) for t in _pair(c, a, b, dtype))
    large, one, endless = c.op("max", x, y), c.const(1.0, dtype), c.const(math.inf, dtype)
    over = c.op("select", c.op("eq", large, c.const(0.0, dtype)), one, large)
    ratio = c.op("div", c.op("min", x, y), over)
    size = c.op("mul", large, c.op("sqrt", c.op("add", one, c.op("mul", ratio, ratio))))
    return c.op("select", c.op("or", c.op("eq", x, endless), c.op("eq", y, endless)), endless, size)


def _of_numbers(name: str) -> Callable[..., str]:
    """NaN gives way to a number."""

    def run(c: Capture, a: str, b: str) -> str:
        x, y = _pair(c, a, b, c.result().dtype)
        if c.dtype(x) not in FLOATS:
            return c.op(name, x, y)
        best = c.op("select", c.op("ne", y, y), x, c.op(name, x, y))
        return c.op("select", c.op("ne", x, x), y, best)

    return run


aten("fmax")(_of_numbers("max"))
aten("fmin")(_of_numbers("min"))


# ------------------------------------------------------------------ choice
@aten("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def where(c: Capture, cond: str, a: Any, b: Any) -> str:
    return c.op("select", c.cast(cond, "bool"), *_pair(c, a, b, c.result().dtype))


@aten("masked_fill")
def masked_fill(c: Capture, x: str, mask: str, value: Any) -> str:
    return c.op("select", mask, c.operand(value, c.dtype(x)), x)


@aten("clamp", "clip")
def clamp(c: Capture, x: str, lo: Any = None, hi: Any = None) -> str:
    """Bounds may be numbers, dimensions or tensors."""
    dtype = c.result().dtype
    x = c.cast(x, dtype)
    if all(b is None or isinstance(b, int | float) for b in (lo, hi)):
        kind = float if dtype in FLOATS else int
        return c.op("clamp", x, lo=None if lo is None else kind(lo), hi=None if hi is None else kind(hi))
    x = x if lo is None else c.op("max", x, c.operand(lo, dtype))
    return x if hi is None else c.op("min", x, c.operand(hi, dtype))


@aten("clamp_min")
def clamp_min(c: Capture, x: str, lo: Any) -> str:
    return clamp(c, x, lo, None)


@aten("clamp_max")
def clamp_max(c: Capture, x: str, hi: Any) -> str:
    return clamp(c, x, None, hi)


# ------------------------------------------------------------------ casts and what changes nothing
@aten("_to_copy")
def to_copy(c: Capture, x: str, *, dtype: torch.dtype | None = None, **_: Any) -> str:
    return x if dtype is None else c.cast(x, c.element(dtype))


@aten("to.dtype")
def to_dtype(c: Capture, x: str, dtype: torch.dtype, *_: Any, **__: Any) -> str:
    return c.cast(x, c.element(dtype))


@aten("clone", "alias", "detach", "lift_fresh", "lift_fresh_copy", "contiguous", "dropout", "alias_copy")
@aten("to.dtype_layout", "to.device", "to.other")
def unchanged(c: Capture, x: str, *_: Any, **__: Any) -> str:
    """Copies, views of the whole, and dropout, which does nothing in evaluation."""
    return c.cast(x, c.result().dtype)


@aten("copy")
def copy(c: Capture, x: str, src: str, non_blocking: bool = False) -> str:
    return c.expand(c.cast(src, c.dtype(x)), c.shape(x))
