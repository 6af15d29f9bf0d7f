"""Python numbers that a model computes from sizes (`x.shape[0] ** 0.5`), as scalars of the graph.

In: the sympy expression behind a `SymFloat`. Out: an f32 scalar. An expression that is not supported is
refused, with its text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sympy
from torch.utils._sympy import functions as F

from tilewright.capture.making import Making
from tilewright.ir.errors import UnsupportedError

#: PyTorch's functions of numbers by the graph's op
_OPS: Mapping[str, str] = {
    "IntTrueDiv": "div", "FloatTrueDiv": "div", "OpaqueUnaryFn_sqrt": "sqrt", "OpaqueUnaryFn_exp": "exp",
    "OpaqueUnaryFn_log": "log", "OpaqueUnaryFn_cos": "cos", "OpaqueUnaryFn_sin": "sin", "Max": "max",
    "Min": "min",
}  # fmt: skip


def scalar(c: Making, e: sympy.Expr) -> str:
    """The number as an f32 scalar. UnsupportedError if data decides it, or for a function without a form."""
    if e.is_number:
        return c.const(float(e), "f32")
    if e.is_integer and not e.has(*_FLOATING):
        return c.number(c.symbols.dim(e), "f32")
    args = [scalar(c, a) for a in e.args]
    name = e.func.__name__
    if name in ("ToFloat", "Identity"):
        return args[0]
    if name in _OPS:
        return c.op(_OPS[name], *args)
    if isinstance(e, sympy.Pow) or name in ("FloatPow", "PowByNatural"):
        return _power(c, args, e.args[1])
    join: Callable[[str, str], str] | None = {sympy.Add: _op(c, "add"), sympy.Mul: _op(c, "mul")}.get(e.func)
    if join is None:
        raise UnsupportedError(
            f"the number {e} is not supported", "", "compute it with tensors, or from fixed sizes"
        )
    out = args[0]
    for a in args[1:]:
        out = join(out, a)
    return out


def _op(c: Making, name: str) -> Callable[[str, str], str]:
    return lambda a, b: c.op(name, a, b)


def _power(c: Making, args: list[str], exponent: sympy.Expr) -> str:
    known = {0.5: "sqrt", -0.5: "rsqrt"}.get(float(exponent)) if exponent.is_number else None
    return c.op(known, args[0]) if known else c.op("pow", *args)


_FLOATING = (F.ToFloat, F.IntTrueDiv, F.FloatTrueDiv, F.FloatPow)
