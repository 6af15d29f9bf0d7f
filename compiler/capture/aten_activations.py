"""PyTorch's activation functions that are not one op here: products, choices and bounds of those that are."""

from __future__ import annotations

from tilewright.capture.aten_pointwise import clamp, expm1
from tilewright.capture.context import Context, aten


@aten("gelu")
def gelu(c: Context, x: str, *, approximate: str = "none") -> str:
    return c.op("gelu_tanh" if approximate == "tanh" else "gelu", x)


@aten("softplus")
def softplus(c: Context, x: str, beta: float = 1, threshold: float = 20) -> str:
    """Linear above the threshold, where the two differ by less than float32 tells at its default."""
    scaled = x if beta == 1 else c.op("mul", x, c.const(beta, "f32"))
    y = c.op("softplus", scaled)
    y = y if beta == 1 else c.op("div", y, c.const(beta, "f32"))
    return y if threshold >= 20 else c.op("select", c.op("gt", scaled, c.const(threshold, "f32")), x, y)


@aten("leaky_relu")
def leaky_relu(c: Context, x: str, negative_slope: float = 0.01) -> str:
    below = c.op("mul", x, c.const(negative_slope, "f32"))
    return c.op("select", c.op("gt", x, c.const(0, "f32")), x, below)


@aten("elu")
def elu(c: Context, x: str, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> str:
    zero = c.const(0, "f32")
    scaled = c.op("mul", c.op("min", x, zero), c.const(input_scale, "f32"))
    below = c.op("mul", expm1(c, scaled), c.const(alpha, "f32"))
    return c.op("mul", c.op("select", c.op("gt", x, zero), x, below), c.const(scale, "f32"))


@aten("hardtanh")
def hardtanh(c: Context, x: str, min_val: float = -1, max_val: float = 1) -> str:
    return clamp(c, x, min_val, max_val)


@aten("hardsigmoid")
def hardsigmoid(c: Context, x: str) -> str:
    shifted = c.op("clamp", c.op("add", x, c.const(3, "f32")), lo=0.0, hi=6.0)
    return c.op("div", shifted, c.const(6, "f32"))


@aten("hardswish")
def hardswish(c: Context, x: str) -> str:
    return c.op("mul", x, hardsigmoid(c, x))


@aten("mish")
def mish(c: Context, x: str) -> str:
    return c.op("mul", x, c.op("tanh", c.op("softplus", x)))
