"""Dimensions as C++: integer expressions over the symbols of a step.

In: an integer, a symbol name or a sympy expression. Out: text over `s[i]`. Independent of plans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from tilewright.ir.affine import Affine


def render_dim(d: object, symbols: Mapping[str, int]) -> str:
    """`2*T+1` as `(1 + 2 * s[0])`. Raises ValueError on an unknown symbol or an operation that has no integer
    meaning."""
    if isinstance(d, int):
        return f"{d}LL"
    if isinstance(d, str):
        return _symbol(d, symbols)
    kind = type(d).__name__
    args: tuple[Any, ...] = getattr(d, "args", ())
    if kind == "Symbol":
        return _symbol(str(d), symbols)
    if getattr(d, "is_Integer", False):
        return f"{int(d)}LL"  # type: ignore[call-overload]
    if isinstance(d, Affine):
        return render_affine(d, {n: _symbol(n, symbols) for n, _ in d.terms})
    if kind in ("floor", "ceiling"):
        return _floor(args[0], symbols, kind == "ceiling")
    parts = [render_dim(a, symbols) for a in args if kind != "Pow"]
    if kind == "Add":
        return "(" + " + ".join(parts) + ")"
    if kind == "Mul":
        return "(" + " * ".join(parts) + ")"
    if kind in ("Max", "Min"):
        return _nest("tw_max" if kind == "Max" else "tw_min", parts)
    if kind == "Mod":
        return f"({parts[0]} % {parts[1]})"
    if kind == "Pow" and getattr(args[1], "is_Integer", False) and int(args[1]) > 0:
        return "(" + " * ".join([render_dim(args[0], symbols)] * int(args[1])) + ")"
    raise ValueError(
        f"dimension {d}: {kind} is not supported in a plan; expected sums, products, floor, Mod, Max, Min"
    )


def _symbol(name: str, symbols: Mapping[str, int]) -> str:
    if name not in symbols:
        raise ValueError(f"dimension uses the unknown symbol {name}; the program has {', '.join(symbols)}")
    return f"s[{symbols[name]}]"


def render_affine(a: Affine, texts: Mapping[str, str]) -> str:
    """C++ text of an affine form; `texts`: the C++ text of each name."""
    bottom = math.lcm(*[Fraction(c).denominator for _, c in a.terms], Fraction(a.const).denominator)
    parts = [f"{int(c * bottom)}LL * {texts[n]}" for n, c in a.terms] + [f"{int(a.const * bottom)}LL"]
    return f"(({' + '.join(parts)}) / {bottom})" if bottom > 1 else f"({' + '.join(parts)})"


def _floor(x: object, symbols: Mapping[str, int], up: bool) -> str:
    """floor or ceiling of numerator / denominator; operands are non-negative."""
    top, bottom = x.as_numer_denom()  # type: ignore[attr-defined]
    over, under = render_dim(top, symbols), render_dim(bottom, symbols)
    return f"(({over} + {under} - 1) / {under})" if up else f"({over} / {under})"


def _nest(fn: str, parts: list[str]) -> str:
    text = parts[0]
    for p in parts[1:]:
        text = f"{fn}({text}, {p})"
    return text
