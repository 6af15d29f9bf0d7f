"""Dimensions of graphs as dimensions of kernels.

In: integers and expressions over a graph's symbols. Out: affine forms over a kernel's symbols, and back;
CannotEmit for what is not a sum of products.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import sympy

from tilewright.ir.affine import Affine
from tilewright.ir.types import BITS, TensorType, as_dim, evaluate_dim

#: separates the factors in the name of a product of symbols
_BY = "_by_"


class CannotEmit(Exception):
    """This region cannot be a single kernel: lowering falls back to one kernel per op. The message says
    why."""


class RunTimeSize(CannotEmit):
    """A size that kernels need as a constant is known at run time only."""


def affine_dim(d: object) -> int | str | Affine:
    """A graph dimension as a tile dimension: integers and sums of symbols; a product of symbols becomes one
    symbol of the kernel, which `dim_of` translates back."""
    if isinstance(d, int | Affine | str):
        return d
    out = Affine.of(0)
    for term, c in sympy.expand(d).as_coefficients_dict().items():
        if term == 1:
            out = out + int(c)
        else:
            out = out + Affine.of(_BY.join(_factors(term, d))) * int(c)
    return out


def _factors(term: sympy.Expr, whole: object) -> list[str]:
    out: list[str] = []
    for base, power in sorted(term.as_powers_dict().items(), key=str):
        if not (base.is_Symbol and power.is_Integer and power > 0):
            raise RunTimeSize(f"size {whole} is not a sum of products of dynamic sizes")
        out += [base.name] * int(power)
    return out


def dim_of(name: str, symbols: Collection[str]) -> object:
    """What a kernel's symbol stands for: a symbol of the graph, or a product of them."""
    return (
        as_dim(name)
        if name in symbols
        else as_dim(sympy.prod([sympy.sympify(as_dim(f)) for f in name.split(_BY)]))
    )


def nbytes(t: TensorType, sizes: Mapping[str, int]) -> int:
    """Bytes of a tensor as it is stored, when the symbols take these values."""
    shape = [evaluate_dim(d, sizes) for d in t.shape]
    dtype, encoding = t.stored
    if encoding is not None:
        return encoding.nbytes(shape)
    return -(-math.prod(shape) * BITS[dtype] // 8)
