"""Dimensions of PyTorch programs as dimensions of Graph IR.

In: `SymInt`s and the sympy expressions behind them, over PyTorch's symbols. Out: integers or expressions over
our symbols. An expression that only data decides (unbacked) is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import sympy
import torch
from torch.utils._sympy import functions as F

from tilewright.ir.errors import UnsupportedError
from tilewright.ir.types import SymbolRange, as_dim, symbol

Dim: TypeAlias = "int | sympy.Expr"

#: PyTorch's integer functions in sympy's own
_FUNCTIONS: Mapping[object, Callable[..., sympy.Expr]] = {
    F.FloorDiv: lambda a, b: sympy.floor(a / b),
    F.CleanDiv: lambda a, b: a / b,
    F.CeilDiv: lambda a, b: sympy.ceiling(a / b),
    F.Mod: sympy.Mod,
    F.PythonMod: sympy.Mod,
    F.ModularIndexing: lambda a, b, n: sympy.Mod(sympy.floor(a / b), n),
    F.Max: sympy.Max,
    F.Min: sympy.Min,
    F.Identity: lambda a: a,
}


def is_symbolic(x: object) -> bool:
    """Whether `x` stands for a number of PyTorch's that shapes decide."""
    return isinstance(x, torch.SymInt | torch.SymBool | torch.SymFloat)


class Symbols:
    """Translates dimensions; `names` maps PyTorch's symbols (`s27`) to ours (`B`), `ranges` says which values
    those take."""

    def __init__(self, names: Mapping[str, str], ranges: Mapping[str, SymbolRange] | None = None) -> None:
        self.names = names
        self.ranges = ranges or {}
        self._known: dict[object, Dim] = {}

    def dim(self, d: Any) -> Dim:
        """A Python integer or a `SymInt` as a dimension. UnsupportedError if data decides it."""
        if isinstance(d, int):
            return d
        expr = d if isinstance(d, sympy.Expr) else d.node.expr
        if expr not in self._known:
            self._known[expr] = as_dim(self._walk(sympy.sympify(expr)))
        return self._known[expr]

    def shape(self, dims: Any) -> tuple[Dim, ...]:
        return tuple(self.dim(d) for d in dims)

    def _walk(self, e: sympy.Expr) -> sympy.Expr:
        if isinstance(e, sympy.Symbol):
            if e.name not in self.names:
                raise UnsupportedError(
                    f"the size {e.name} depends on data, not only on the shapes of the inputs", "",
                    "avoid nonzero, unique, boolean indexing and .item() in sizes",
                )  # fmt: skip
            return symbol(self.names[e.name])
        if not e.args:
            return e
        make = _FUNCTIONS.get(e.func, e.func)
        out = make(*(self._walk(a) for a in e.args))
        return self._decided(out) if isinstance(out, sympy.Max | sympy.Min) else out

    def _decided(self, e: sympy.Expr) -> sympy.Expr:
        """A maximum or minimum without the terms that another one never lets through."""
        kept = list(e.args)
        for a in e.args:
            for b in kept:
                gap = b - a if isinstance(e, sympy.Max) else a - b
                if a is not b and a in kept and self._never_negative(gap):
                    kept.remove(a)
        return e.func(*kept)

    def _never_negative(self, e: sympy.Expr) -> bool:
        """Whether an expression linear in its symbols is at least 0 at every corner of their ranges."""
        least = sympy.sympify(e)
        for s in sorted(e.free_symbols, key=str):
            r, slope = self.ranges.get(s.name), sympy.diff(e, s)
            end = None if r is None or not slope.is_Integer else r.lo if slope > 0 else r.hi
            if end is None:
                return False
            least = least.subs(s, end)
        return bool(least.is_Integer and least >= 0)
