"""Element types, symbolic dimensions and tensor types of Graph IR.

In: dtype names, sympy dimensions. Out: frozen, comparable types. Independent of ops, tiles or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from tilewright.ir.encoding import Encoding
from tilewright.ir.numbers import BITS as BITS

if TYPE_CHECKING:
    import sympy

FLOATS = ("bf16", "f16", "f32", "f64")
INTEGERS = ("i8", "u8", "i16", "u16", "i32", "u32", "i64")

#: A dimension: an integer, or a sympy expression over the graph's named symbols.
Dim = "int | sympy.Expr"


@cache
def symbol(name: str) -> sympy.Expr:
    """The dimension called `name`: a positive integer unknown until run time."""
    import sympy

    return sympy.Symbol(name, integer=True, positive=True)


def as_dim(d: object) -> int | sympy.Expr:
    """`d` as a dimension: integers (also sympy's) become int; other expressions are expanded, so equal ones
    compare equal."""
    if isinstance(d, int):
        return d
    import sympy

    expr = sympy.expand(sympy.sympify(d) if not isinstance(d, str) else symbol(d))
    return int(expr) if expr.is_Integer else expr


def evaluate_dim(d: int | sympy.Expr, values: Mapping[str, int]) -> int:
    """The dimension's value under an assignment of symbols; KeyError names a missing symbol."""
    if isinstance(d, int):
        return d
    missing = [s.name for s in d.free_symbols if s.name not in values]
    if missing:
        raise KeyError(f"dimension {d} needs a value for {', '.join(sorted(missing))}")
    return int(d.subs({s: values[s.name] for s in d.free_symbols}))


@dataclass(frozen=True)
class SymbolRange:
    """The values a symbol may take, both ends included; hi None: unbounded."""

    lo: int = 1
    hi: int | None = None


@dataclass(frozen=True)
class TensorType:
    """`dtype[shape]`, stored as `encoding` (None: dense in its own dtype, row-major)."""

    dtype: str
    shape: tuple[int | sympy.Expr, ...]
    encoding: Encoding | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def stored(self) -> tuple[str, Encoding | None]:
        """(dtype, encoding) of its memory; no encoding: a plain row-major array of the dtype."""
        e = self.encoding
        return (e.array_dtype, None) if e is not None and e.array_dtype else (self.dtype, e)

    def with_(self, **changes: object) -> TensorType:
        return replace(self, **changes)  # type: ignore[arg-type]


@lru_cache(maxsize=1 << 14)
def type_text(t: TensorType) -> str:
    """`bf16[T, 256] as int4(group=32)`, as every text of the IR writes a type."""
    stored = f" as {t.encoding}" if t.encoding is not None else ""
    return f"{t.dtype}[{', '.join(map(str, t.shape))}]{stored}"


def tensor(dtype: str, *shape: object, encoding: Encoding | None = None) -> TensorType:
    """`tensor("f32", "T", 256)`: strings are symbols."""
    if dtype not in BITS:
        raise ValueError(f"unknown element type {dtype!r}; known: {', '.join(BITS)}")
    return TensorType(dtype, tuple(as_dim(d) for d in shape), encoding)
