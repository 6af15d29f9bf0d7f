"""PyTorch's functions of one operand: exponentials, roundings, signs, activations.

In: one tensor. Out: the op of that name, or a combination that is accurate near zero and does not overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from tilewright.capture.aten_pointwise import clamp
from tilewright.capture.context import Capture, aten
from tilewright.ir.types import FLOATS


def _unary(name: str) -> Callable[..., str]:
    def run(c: Capture, x: str) -> str:
        return c.op(name, c.cast(x, c.result().dtype))

    return run


for _n in (
    "exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh", "sigmoid", "erf", "neg", "abs", "silu",
    "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh",
):  # fmt: skip
    aten(_n)(_unary(_n))


@aten("atan2")
def atan2(c: Capture, y: str, x: str) -> str:
    dtype = c.result().dtype
    return c.op("atan2", c.cast(y, dtype), c.cast(x, dtype))


@aten("relu")
def relu(c: Capture, x: str) -> str:
    return c.op("relu", x) if c.dtype(x) in FLOATS else c.op("max", x, c.const(0, c.dtype(x)))


def _rounding(name: str) -> Callable[..., str]:
    """Integers are whole already."""

    def run(c: Capture, x: str) -> str:
        return c.op(name, x) if c.dtype(x) in FLOATS else x

    return run


aten("floor")(_rounding("floor"))
aten("round.default")(_rounding("round"))


@aten("round.decimals")
def round_decimals(c: Capture, x: str, *, decimals: int) -> str:
    """Rounded after a multiplication, or before one."""
    if c.dtype(x) not in FLOATS:
        return x
    power = c.const(10.0 ** abs(decimals), c.dtype(x))
    there, back = ("mul", "div") if decimals > 0 else ("div", "mul")
    return c.op(back, c.op("round", c.op(there, x, power)), power)


@aten("ceil")
def ceil(c: Capture, x: str) -> str:
    return c.op("neg", c.op("floor", c.op("neg", x))) if c.dtype(x) in FLOATS else x


@aten("trunc", "fix")
def trunc(c: Capture, x: str) -> str:
    return c.trunc(x) if c.dtype(x) in FLOATS else x


@aten("reciprocal")
def reciprocal(c: Capture, x: str) -> str:
    dtype = c.result().dtype
    return c.op("div", c.const(1, dtype), c.cast(x, dtype))


@aten("square")
def square(c: Capture, x: str) -> str:
    return c.op("mul", x, x)


@aten("exp2")
def exp2(c: Capture, x: str) -> str:
    """exp(p) (1 + rest) with p + rest = x log 2, so that the product's rounding is not raised to a power."""
    dtype = c.result().dtype
    x = c.cast(x, dtype)
    factor, left = _split_log_2(dtype)
    product = c.op("mul", x, c.const(factor, dtype))
    rest = c.op("fma", x, c.const(factor, dtype), c.op("neg", product))
    rest = c.op("fma", x, c.const(left, dtype), rest)
    power = c.op("exp", product)
    plain = c.op("lt", c.op("max", power, c.op("abs", x)), c.const(math.inf, dtype))
    return c.op("select", plain, c.op("fma", power, rest, power), power)


def _split_log_2(dtype: str) -> tuple[float, float]:
    """log 2 as an element of the type, and what that leaves out."""
    if dtype == "f64":
        return math.log(2), 2.3190468138462996e-17
    near = float(np.float32(math.log(2)))
    return near, math.log(2) - near


def _log_of(base: float) -> Callable[..., str]:
    def run(c: Capture, x: str) -> str:
        dtype = c.result().dtype
        return c.op("mul", c.op("log", c.cast(x, dtype)), c.const(1 / math.log(base), dtype))

    return run


aten("log2")(_log_of(2))
aten("log10")(_log_of(10))


@aten("log1p")
def log1p(c: Capture, x: str) -> str:
    """log(u) (x / (u - 1)) with u = 1 + x, exact where u rounds to 1; of an infinite x, x itself."""
    dtype = c.result().dtype
    x, one = c.cast(x, dtype), c.const(1, dtype)
    u = c.op("add", one, x)
    tiny = c.op("or", c.op("eq", u, one), c.op("eq", x, c.const(math.inf, dtype)))
    gap = c.op("select", tiny, one, c.op("sub", u, one))
    return c.op("select", tiny, x, c.op("mul", c.op("log", u), c.op("div", x, gap)))


@aten("expm1")
def expm1(c: Capture, x: str) -> str:
    """2 tanh(x/2) / (1 - tanh(x/2)), which does not cancel near zero; the plain form where that overflows."""
    dtype = c.result().dtype
    x, one = c.cast(x, dtype), c.const(1, dtype)
    t = c.op("tanh", c.op("mul", x, c.const(0.5, dtype)))
    near = c.op("div", c.op("add", t, t), c.op("sub", one, t))
    small = c.op("lt", c.op("abs", x), one)
    return c.op("select", small, near, c.op("sub", c.op("exp", x), one))


@aten("sign", "sgn")
def sign(c: Capture, x: str) -> str:
    """0 of NaN, as in PyTorch."""
    dtype = c.dtype(x)
    if dtype == "bool":
        return x
    zero = c.const(0, dtype)
    positive, negative = (c.cast(c.op(n, x, zero), dtype) for n in ("gt", "lt"))
    return c.op("sub", positive, negative)


def _never(c: Capture, x: str) -> str:
    return c.op("xor", *[c.cast(x, "bool")] * 2)


@aten("isnan")
def isnan(c: Capture, x: str) -> str:
    return c.op("ne", x, x) if c.dtype(x) in FLOATS else _never(c, x)


@aten("isinf")
def isinf(c: Capture, x: str) -> str:
    return c.op("eq", c.op("abs", x), c.const(math.inf, c.dtype(x))) if c.dtype(x) in FLOATS else _never(c, x)


@aten("isfinite")
def isfinite(c: Capture, x: str) -> str:
    if c.dtype(x) not in FLOATS:
        return c.op("not", _never(c, x))
    return c.op("lt", c.op("abs", x), c.const(math.inf, c.dtype(x)))


@aten("nan_to_num")
def nan_to_num(
    c: Capture,
    x: str,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> str:
    dtype = c.dtype(x)
    if dtype not in FLOATS:
        return x
    most = torch.finfo(c.node.meta["val"].dtype).max
    high, low = (most if posinf is None else posinf), (-most if neginf is None else neginf)
    x = c.op("select", c.op("ne", x, x), c.const(nan or 0.0, dtype), x)
    x = c.op("select", c.op("eq", x, c.const(math.inf, dtype)), c.const(high, dtype), x)
    return c.op("select", c.op("eq", x, c.const(-math.inf, dtype)), c.const(low, dtype), x)


# ------------------------------------------------------------------ activations
@aten("gelu")
def gelu(c: Capture, x: str, *, approximate: str = "none") -> str:
    return c.op("gelu_tanh" if approximate == "tanh" else "gelu", x)


@aten("softplus")
def softplus(c: Capture, x: str, beta: float = 1, threshold: float = 20) -> str:
    """Linear above the threshold, where the two differ by less than f32 tells at its default."""
    scaled = x if beta == 1 else c.op("mul", x, c.const(beta, c.dtype(x)))
    y = c.op("softplus", scaled)
    y = y if beta == 1 else c.op("div", y, c.const(beta, c.dtype(x)))
    if threshold >= 20 and c.dtype(x) == "f32":
        return y
    return c.op("select", c.op("gt", scaled, c.const(threshold, c.dtype(x))), x, y)


@aten("leaky_relu")
def leaky_relu(c: Capture, x: str, negative_slope: float = 0.01) -> str:
    below = c.op("mul", x, c.const(negative_slope, c.dtype(x)))
    return c.op("select", c.op("gt", x, c.const(0, c.dtype(x))), x, below)


@aten("elu")
def elu(c: Capture, x: str, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> str:
    zero = c.const(0, c.dtype(x))
    scaled = c.op("mul", c.op("min", x, zero), c.const(input_scale, c.dtype(x)))
    below = c.op("mul", expm1(c, scaled), c.const(alpha, c.dtype(x)))
    return c.op("mul", c.op("select", c.op("gt", x, zero), x, below), c.const(scale, c.dtype(x)))


@aten("rrelu_with_noise_functional")
def rrelu(
    c: Capture, x: str, noise: str, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False,
    generator: object = None,
) -> tuple[str, str]:  # fmt: skip
    """In evaluation, the middle of the slopes."""
    if training:
        raise c.no("a random slope", "call model.eval() first")
    return leaky_relu(c, x, (lower + upper) / 2), noise


@aten("silu_backward")
def silu_backward(c: Capture, grad: str, x: str) -> str:
    """s (1 + x (1 - s)) with s = sigmoid(x)."""
    one, s = c.const(1.0, c.dtype(x)), c.op("sigmoid", x)
    slope = c.op("mul", s, c.op("add", one, c.op("mul", x, c.op("sub", one, s))))
    return c.op("mul", grad, slope)


@aten("hardtanh")
def hardtanh(c: Capture, x: str, min_val: float = -1, max_val: float = 1) -> str:
    return clamp(c, x, min_val, max_val)


@aten("hardsigmoid")
def hardsigmoid(c: Capture, x: str) -> str:
    shifted = c.op("clamp", c.op("add", x, c.const(3, c.dtype(x))), lo=0.0, hi=6.0)
    return c.op("div", shifted, c.const(6, c.dtype(x)))


@aten("hardswish")
def hardswish(c: Capture, x: str) -> str:
    return c.op("mul", x, hardsigmoid(c, x))


@aten("mish")
def mish(c: Capture, x: str) -> str:
    return c.op("mul", x, c.op("tanh", c.op("softplus", x)))
