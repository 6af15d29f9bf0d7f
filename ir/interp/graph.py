"""The reference interpreter of Graph IR: what a graph computes, in NumPy.

In: a module, inputs by name, weights, cache states. Out: results by name. Encoded weights and values are held
as the numbers they stand for, so quantization error is included. Symbols are bound from the shapes of the
inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.interp.kv_cache import InterpStates
from tilewright.ir.numbers import HELD, hold, int_range
from tilewright.ir.ops.base import Array, counted_in, find_op
from tilewright.ir.ops.common import shape_text
from tilewright.ir.plan.core import Plan
from tilewright.ir.text.graph_printer import op_text
from tilewright.ir.types import FLOATS, SymbolRange, TensorType, type_text
from tilewright.ir.weights.sources import Weights, stored_values

if TYPE_CHECKING:
    import sympy


#: elements of the largest tensor that the interpreter makes
MAX_ELEMENTS = 1 << 31


def run_graph(
    module: Module,
    graph_name: str,
    inputs: Mapping[str, Array],
    weights: Weights | None = None,
    states: InterpStates | None = None,
    symbols: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """Results of one graph by name (by value name if it names none). `states` keeps what the caches hold
    between calls."""
    return Interpreter(module, weights, keep=False).run(graph_name, inputs, states, symbols)


class Interpreter:
    """Runs graphs of one module. `keep`: weights stay in memory after their first use."""

    def __init__(self, module: Module, weights: Weights | None = None, keep: bool = True) -> None:
        self.module, self.weights, self.keep = module, weights, keep
        self._weight_map = module.weight_map()
        self._cached: dict[str, Array] = {}

    def run(
        self,
        graph_name: str,
        inputs: Mapping[str, Array],
        states: InterpStates | None = None,
        symbols: Mapping[str, int] | None = None,
    ) -> dict[str, Array]:
        """As `run_graph`."""
        g = self.module.graph(graph_name)
        values = check_inputs(g, inputs)
        dims = Dims(bind_symbols(self.module.symbols, g, values, symbols or {}), counted_in(g.ops))
        states = states or InterpStates(self.module.states)
        last = _last_uses(g)
        for n, op in enumerate(g.ops):
            self._op(op, values, dims, states)
            for o in op.operands:
                if last.get(o) == n:
                    self._drop(o, values)
        outs = [np.array(self._read(o, values)) for o in g.outputs]
        return dict(zip(result_names(g), outs, strict=True))

    def _op(self, op: Op, values: dict[str, Array], dims: Dims, states: InterpStates) -> None:
        record = find_op(op.name)
        for name in counted_in((op,)):
            dims.count(name, values[op.operands[-1]], self.module.symbols)
        attrs = {k: dims.value(v) for k, v in op.attrs}
        types = [r.type.with_(shape=dims.shape(r.type)) for r in op.results]
        try:
            args: list[Any] = [states[op.operands[0][1:]]] if record.state else []
            args += [self._read(o, values) for o in op.operands[len(args) :]]
            with np.errstate(all="ignore"):
                out = record.meaning(args, attrs, types)
        except RefusedError:
            raise
        except (IndexError, ValueError, KeyError) as e:
            where = f"{op.loc.file}:{op.loc.line}" if op.loc else ""
            raise RefusedError(
                f"{e}\n    {op_text(op)}", where, "the input values do not match the graph"
            ) from e
        for t, r, x in zip(types, op.results, out if isinstance(out, tuple) else (out,), strict=True):
            if x.shape != t.shape or x.dtype != HELD[t.dtype]:
                got = f"{x.dtype}{shape_text(x.shape)}"
                raise TypeError(
                    f"op {op.name} has wrong reference semantics: %{r.name} is {got}, expected {type_text(t)}"
                )
            values["%" + r.name] = x

    def _read(self, operand: str, values: Mapping[str, Array]) -> Array:
        if operand[0] == "%":
            return values[operand]
        name = operand[1:]
        if name not in self._cached:
            if self.weights is None:
                raise RefusedError(
                    f"graph reads {operand}, but no weights were passed", "", "pass a WeightStore"
                )
            self._cached[name] = stored_values(self.weights, self._weight_map[name])
        return self._cached[name]

    def _drop(self, operand: str, values: dict[str, Array]) -> None:
        if operand[0] == "%":
            values.pop(operand, None)
        elif not self.keep:
            self._cached.pop(operand[1:], None)


def result_names(g: Graph) -> tuple[str, ...]:
    """Names of a graph's results: its own, or the operands returned, numbered where one is returned twice."""
    if g.results:
        return g.results
    plain = [o[1:] for o in g.outputs]
    return tuple(n if plain.count(n) == 1 else f"{n}.{k}" for k, n in enumerate(plain))


def _last_uses(g: Graph) -> dict[str, int]:
    last = {o: n for n, op in enumerate(g.ops) for o in op.operands}
    return {o: n for o, n in last.items() if o not in g.outputs}


def bounded(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, if an interpreter can be asked to hold it."""
    if math.prod(shape) > MAX_ELEMENTS:
        raise RefusedError(
            f"a tensor of shape {shape_text(shape)} is too large to interpret", "", "choose smaller sizes"
        )
    return shape


class Dims:
    """Dimensions under one assignment of symbols."""

    def __init__(self, symbols: Mapping[str, int], waiting: Iterable[str] = ()) -> None:
        """`waiting`: symbols that get their values while the graph runs."""
        self.waiting = set(waiting)
        self.symbols = {name: n for name, n in symbols.items() if name not in self.waiting}
        self._known: dict[object, int] = {}

    def knows(self, t: TensorType) -> bool:
        """Whether every symbol of a type has a value, except those that nothing gives."""
        return all(
            str(s) not in self.waiting for d in t.shape if not isinstance(d, int) for s in d.free_symbols
        )

    def count(self, name: str, value: Array, ranges: Iterable[tuple[str, SymbolRange]]) -> None:
        """Give a symbol the one number that `value` holds. RefusedError if it is outside the symbol's
        range."""
        n, r = int(value.reshape(())), dict(ranges)[name]
        if n < r.lo or r.hi is not None and n > r.hi:
            raise RefusedError(f"{name} is {n}, outside {r.lo}..{r.hi}", f"symbol {name}")
        self.symbols[name] = n
        self.waiting.discard(name)

    def dim(self, d: int | sympy.Expr) -> int:
        if isinstance(d, int):
            return d
        if d not in self._known:
            missing = sorted(str(s) for s in d.free_symbols if str(s) not in self.symbols)
            if missing:
                raise RefusedError(
                    f"dimension {d} needs {missing[0]}, which no input shape determines", "", "pass `symbols`"
                )
            n = d.subs({s: self.symbols[str(s)] for s in d.free_symbols})
            if not n.is_Integer or n < 0:
                raise RefusedError(
                    f"dimension {d} is {n} for {dict(self.symbols)}", "", "pass inputs of other sizes"
                )
            self._known[d] = int(n)
        return self._known[d]

    def shape(self, t: TensorType) -> tuple[int, ...]:
        return bounded(tuple(self.dim(d) for d in t.shape))

    def value(self, v: object) -> object:
        """An attribute with its dimensions as integers."""
        if isinstance(v, tuple):
            return tuple(self.value(x) for x in v)
        return self.dim(cast(Any, v)) if hasattr(v, "free_symbols") else v


# ------------------------------------------------------------------ inputs
def check_inputs(g: Graph | Plan, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Inputs as held arrays by `%name`; RefusedError if one is missing, unknown or cannot be held exactly."""
    names = [v.name for v in g.inputs]
    for name in (*(n for n in names if n not in inputs), *(n for n in inputs if n not in names)):
        word = "is missing" if name in names else "is unknown"
        raise RefusedError(f"input {name!r} {word}", f"graph @{g.name}", f"inputs: {', '.join(names)}")
    out = {}
    for v in g.inputs:
        x = np.asarray(inputs[v.name])
        if x.ndim != v.type.rank:
            raise RefusedError(
                f"input {v.name!r} has shape {shape_text(x.shape)}",
                f"graph @{g.name}",
                f"expected {type_text(v.type)}",
            )
        out["%" + v.name] = _held(g, v.name, x, v.type.dtype)
    return out


def _held(g: Graph | Plan, name: str, x: Array, dtype: str) -> Array:
    if x.dtype == HELD[dtype] and dtype not in ("bf16", "f16"):
        return x
    lo, hi = int_range(dtype) if dtype not in FLOATS else (0, 0)
    whole = np.issubdtype(x.dtype, np.integer) and (x.size == 0 or lo <= x.min() and x.max() <= hi)
    fits = (
        np.issubdtype(x.dtype, np.floating)
        if dtype in FLOATS
        else x.dtype == np.bool_
        if dtype == "bool"
        else whole
    )
    if not fits:
        raise RefusedError(f"input {name!r} is {x.dtype}, expected values of {dtype}", f"graph @{g.name}")
    return hold(x, dtype)


def bind_symbols(
    ranges: Iterable[tuple[str, SymbolRange]],
    g: Graph | Plan,
    values: Mapping[str, Array],
    given: Mapping[str, int],
) -> dict[str, int]:
    """The value of every symbol that the shapes of the inputs give, checked against its range and all other
    shapes."""
    bound = dict(given)
    pairs = [
        (v.name, d, n)
        for v in g.inputs
        for d, n in zip(v.type.shape, values["%" + v.name].shape, strict=True)
    ]
    for _ in range(2):  # plain symbols first, then sums of which one symbol is left
        for _, d, n in pairs:
            if not isinstance(d, int):
                _solve(d, n, bound)
    dims = Dims(bound)
    for name, d, n in pairs:
        if dims.dim(d) != n:
            raise RefusedError(
                f"input {name!r} has {n} where {d} is {dims.dim(d)}", f"graph @{g.name}", f"symbols: {bound}"
            )
    for s, r in ranges:
        if s in bound and not (r.lo <= bound[s] and (r.hi is None or bound[s] <= r.hi)):
            limit = f"{r.lo}..{'' if r.hi is None else r.hi}"
            raise RefusedError(
                f"{s} is {bound[s]}, outside {limit}", f"graph @{g.name}", "pass inputs of other sizes"
            )
    return bound


def _solve(d: sympy.Expr, n: int, bound: dict[str, int]) -> None:
    """Bind the one unknown symbol of a linear dimension."""
    left = [s for s in d.free_symbols if str(s) not in bound]
    if len(left) != 1:
        return
    if d == left[0]:
        bound[str(left[0])] = n
        return
    rest = d.subs({s: bound[str(s)] for s in d.free_symbols if s != left[0]})
    slope = rest.diff(left[0])
    if slope.is_Integer and slope != 0:
        value = (n - rest.subs(left[0], 0)) / slope
        if value.is_Integer:
            bound[str(left[0])] = int(value)
