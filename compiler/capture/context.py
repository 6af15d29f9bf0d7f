"""The context of operator importers: the table they register in, and the graph under construction.

In: operands (`%x`, `@w`), Python numbers, dimensions. Out: ops of Graph IR, of the element types that
`elements` gives. Independent of any one operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import sympy
import torch
from numpy.typing import NDArray

from tilewright.capture.elements import PYTORCH, Table, converted, element_of, wrapped_number
from tilewright.capture.making import Checks
from tilewright.capture.sizes import scalar
from tilewright.capture.symbols import Dim, Symbols
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Apply, Inline, Location, Op, WeightExpr
from tilewright.ir.numbers import int_range
from tilewright.ir.types import FLOATS, TensorType

#: what an importer returns: an operand, several, or nothing
Result = str | tuple[str, ...] | None
Importer = Callable[..., Any]
#: qualified operator name (`aten.add.Tensor`, or `aten.add` for all overloads) -> its importer
TABLE: dict[str, Importer] = {}


_F = TypeVar("_F", bound=Callable[..., Any])


def imports(*names: str) -> Callable[[_F], _F]:
    """Register an importer under qualified operator names, `aten.add` or `aten.add.Tensor`. It is called with
    the context, then as the operator."""

    def register(fn: _F) -> _F:
        for name in names:
            if name in TABLE:
                raise KeyError(f"{name} has two importers registered")
            TABLE[name] = fn
        return fn

    return register


def aten(*names: str) -> Callable[[_F], _F]:
    """Register an importer under names of PyTorch's own operators, `add` or `add.Tensor`."""
    return imports(*(f"aten.{name}" for name in names))


def find_importer(target: str, custom: Mapping[str, Importer]) -> Importer | None:
    """The importer of `aten.add.Tensor`, or of a custom operator `space.name.overload` under
    `space::name`."""
    space, _, rest = target.partition(".")
    packet = rest.rpartition(".")[0]
    return custom.get(f"{space}::{packet}") or TABLE.get(target) or TABLE.get(f"{space}.{packet}")


class Capture:
    """One program on its way into a graph. `node`: the operator being imported; `held`: f32 values known to
    be of a half type."""

    def __init__(self, builder: GraphBuilder, symbols: Symbols, table: Table = PYTORCH) -> None:
        self.b = builder
        self.symbols = symbols
        self.table = table
        self.held: dict[str, str] = {}
        self.node: Any = None
        self.loc: Location | None = None
        self._producers: dict[str, Op] = {}
        self._consts: dict[tuple[str, str], str] = {}
        self.checks = Checks()

    @property
    def exact(self) -> bool:
        """Whether the program's element types are PyTorch's own."""
        return self.table is PYTORCH

    # -------------------------------------------------------------- making
    def op(self, name: str, *operands: str, **attrs: object) -> str:
        """An op with one result, under the operator's name and place."""
        (out,) = self.multi(name, 1, *operands, **attrs)
        return out

    def multi(self, name: str, count: int, *operands: str, **attrs: object) -> tuple[str, ...]:
        hint = self.node.name if self.node is not None else ""
        out = self.b.multi(name, *operands, loc=self.loc, as_=[hint] * count, **attrs)
        self._producers.update((o, self.b.ops[-1]) for o in out)
        return out

    def producer(self, operand: str) -> Op | None:
        """The op that made a value; None for inputs and weights."""
        return self._producers.get(operand)

    def const(self, value: float | bool, dtype: str) -> str:
        """A scalar; equal ones are made once."""
        value = self.scalar(value, dtype)
        key = (repr(value), dtype)
        if key not in self._consts:
            self._consts[key] = self.b.op("const", loc=self.loc, value=value, dtype=dtype)
            self._producers[self._consts[key]] = self.b.ops[-1]
        return self._consts[key]

    def numbers(self, values: NDArray[Any], dtype: str = "") -> str:
        """An array that the module itself holds, as `dtype` (its own if not said)."""
        name = f"numbers.{len(self.b.weights)}"
        held = self.b.inline(name, values)
        return self.cast(held, dtype) if dtype else held

    def scalar(self, value: float | bool, dtype: str) -> float | bool:
        """A Python number as one of an element type; integers of any size wrap around where PyTorch's types
        are kept."""
        if dtype == "bool":
            return bool(value)
        if dtype in FLOATS:
            return float(value)
        value = wrapped_number(value, dtype) if self.exact and isinstance(value, int) else value
        lo, hi = int_range(dtype)
        if not math.isfinite(value) or value != int(value) or not lo <= value <= hi:
            raise UnsupportedError(f"the constant {value} is not a value of {dtype}", "", "")
        return int(value)

    def number(self, dim: Dim, dtype: str = "i32") -> str:
        """A dimension as a scalar tensor: the element of a count from zero that is at its position."""
        if isinstance(dim, int):
            return self.const(dim, dtype)
        last = self.op("slice", self.op("iota", size=dim + 1), axis=0, start=dim, stop=dim + 1)
        return self.cast(self.reshape(last, ()), dtype)

    def operand(self, x: Any, dtype: str) -> str:
        """A tensor, Python number or dimension as an operand of `dtype`."""
        if isinstance(x, str):
            return self.cast(x, dtype)
        if isinstance(x, torch.SymFloat):
            return self.cast(scalar(self, x.node.expr), dtype)
        return self.number(x, dtype) if isinstance(x, sympy.Expr) else self.const(x, dtype)

    # -------------------------------------------------------------- asking
    def type(self, x: str) -> TensorType:
        return self.b.type(x)

    def shape(self, x: str) -> tuple[Dim, ...]:
        return self.b.type(x).shape

    def rank(self, x: str) -> int:
        return self.b.type(x).rank

    def dtype(self, x: str) -> str:
        return self.b.type(x).dtype

    def at_least(self, size: Dim, least: int) -> None:
        """PyTorch raises where an axis has fewer places: a dynamic size of its own takes no such value."""
        known = self.b.symbols.get(getattr(size, "name", ""))
        if known is not None and known.lo < least:
            self.b.symbols[str(size)] = replace(known, lo=least)

    def axis(self, x: str, dim: int) -> int:
        """`dim` counted from the front."""
        rank = self.rank(x)
        return dim + rank if dim < 0 else dim

    def axes(self, x: str, dims: Any) -> tuple[int, ...]:
        """Axes of a reduction: all if none are named."""
        if dims is None or (isinstance(dims, list | tuple) and not dims) or not self.rank(x):
            return tuple(range(self.rank(x)))
        return tuple(self.axis(x, d) for d in (dims if isinstance(dims, list | tuple) else [dims]))

    def result(self, n: int = 0) -> TensorType:
        """The type PyTorch gave result `n` of this operator."""
        val = self.node.meta["val"]
        t = val[n] if isinstance(val, list | tuple) else val
        return TensorType(self.element(t.dtype), self.symbols.shape(t.shape))

    def element(self, dtype: torch.dtype) -> str:
        """The element type that values of a PyTorch type have."""
        return element_of(dtype, self.table)

    def common(self) -> torch.dtype:
        """The type in which PyTorch compares the two operands of this operator."""
        operands = (*self.node.args, *self.node.kwargs.values())
        a, b = (_example(x.meta["val"] if isinstance(x, torch.fx.Node) else x) for x in operands[:2])
        return torch.result_type(a, b)

    # -------------------------------------------------------------- small combinations used throughout
    def cast(self, x: str, dtype: str) -> str:
        """As PyTorch casts: floats are truncated towards zero, anything but zero is true."""
        have = self.dtype(x)
        if have == dtype:
            return x
        if dtype == "bool":
            return self.op("ne", x, self.const(0, have))
        if self.exact and have != "bool":
            return converted(self, x, dtype)
        return self.op("cast", self.trunc(x) if have in FLOATS else x, dtype=dtype)

    def index(self, x: str) -> str:
        """Indices as i32. What lies beyond stays beyond every axis."""
        return x if self.dtype(x) == "i32" else self.op("cast", x, dtype="i32")

    def trunc(self, x: str) -> str:
        down = self.op("floor", x)
        up = self.op("neg", self.op("floor", self.op("neg", x)))
        return self.op("select", self.op("lt", x, self.const(0, self.dtype(x))), up, down)

    def reshape(self, x: str, shape: Sequence[Dim]) -> str:
        if tuple(shape) == self.shape(x):
            return x
        return (
            self._reshaped(x[1:], tuple(shape)) if x[0] == "@" else self.op("reshape", x, shape=tuple(shape))
        )

    def _reshaped(self, name: str, shape: tuple[Dim, ...]) -> str:
        """A weight under another shape is another weight, not work at run time."""
        w = self.b.weights[name]
        if isinstance(w.source, Inline):
            source: WeightExpr = replace(w.source, shape=shape)
        else:
            source = Apply("reshape", (w.source,), (("shape", shape),))
        return self.b.weight(
            f"{name}.{'x'.join(map(str, shape)) or 'scalar'}", w.type.with_(shape=shape), source
        )

    def expand(self, x: str, shape: Sequence[Dim]) -> str:
        return x if tuple(shape) == self.shape(x) else self.op("expand", x, shape=tuple(shape))

    def transpose(self, x: str, perm: Sequence[int]) -> str:
        return x if list(perm) == list(range(len(perm))) else self.op("transpose", x, perm=tuple(perm))

    def no(self, why: str, hint: str = "") -> UnsupportedError:
        """The error to raise for a form of this operator that is not supported."""
        return UnsupportedError(f"{self.node.target}: {why}", place(self.loc), hint)


def _example(x: Any) -> Any:
    """A size as a number: what matters of it is its type."""
    kinds: Mapping[type, object] = {torch.SymFloat: 1.0, torch.SymInt: 1, torch.SymBool: True}
    return kinds.get(type(x), x)


def place(loc: Location | None) -> str:
    """`model.py:12 (layers.0)`."""
    return "" if loc is None else loc.text
