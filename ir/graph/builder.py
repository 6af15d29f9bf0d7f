"""Building graphs: what capture, passes and tests write Graph IR with.

In: types, weights, op names with operand strings. Out: a frozen `Graph` or `Module`. Every op is completed
and inferred as it is added (`OpTypeError` at the line that is wrong). `GraphBuilder.over(module, graph)`
starts a rewrite: same inputs, weights and states, no ops yet; `copy` carries an op over under the renaming so
far. Independent of text or passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.graph.core import Graph, Inline, Location, Module, Op, State, Value, Weight, WeightExpr
from tilewright.ir.numbers import HELD, to_bits
from tilewright.ir.ops.base import OpTypeError
from tilewright.ir.ops.build import infer, make_op
from tilewright.ir.types import SymbolRange, TensorType, as_dim

#: dtype names of the NumPy arrays that `inline` takes
_FROM_NUMPY = {
    "float64": "f64", "float32": "f32", "float16": "f16", "int64": "i64", "int32": "i32", "uint32": "u32",
    "int16": "i16",
    "uint16": "u16", "int8": "i8", "uint8": "u8", "bool": "bool",
}  # fmt: skip


class GraphBuilder:
    """One graph under construction. Operands in and out are strings: `%x`, `@w`."""

    def __init__(
        self, name: str = "forward", module: Module | None = None, passes: tuple[str, ...] = ()
    ) -> None:
        base = module or Module(())
        self.name = name
        self.passes = passes
        self.loc: Location | None = None
        self.inputs: list[Value] = []
        self.ops: list[Op] = []
        self.outputs: list[str] = []
        self.results: list[str] = []
        self.weights: dict[str, Weight] = dict(base.weight_map())
        self.states: dict[str, State] = base.state_map()
        self.symbols: dict[str, SymbolRange] = dict(base.symbols)
        self.meta: dict[str, object] = dict(base.meta)
        self.renamed: dict[str, str] = {}
        self._base = base
        self._types: dict[str, TensorType] = {}
        self._reserved: set[str] = set()
        self._count = 0

    @staticmethod
    def over(module: Module, graph: Graph, pass_name: str = "", inputs: bool = True) -> GraphBuilder:
        """A rewrite of `graph`: its inputs are kept (unless told), its names stay free for the copies of its
        own ops."""
        b = GraphBuilder(graph.name, module, (pass_name,) if pass_name else ())
        b._reserved = set(graph.values())
        if inputs:
            for v in graph.inputs:
                b.add_input(v.name, v.type)
        return b

    # -------------------------------------------------------------- declarations
    def symbol(self, name: str, lo: int = 1, hi: int | None = None) -> str:
        self.symbols[name] = SymbolRange(lo, hi)
        return name

    def add_input(self, name: str, type: TensorType) -> str:
        """An input of the graph, in order."""
        self.inputs.append(Value(name, type))
        return self._define(Value(name, type))

    def weight(self, name: str, type: TensorType, source: WeightExpr) -> str:
        """Declare a weight of the module; the same name with the same content may be declared again."""
        w = Weight(name, type, source)
        if self.weights.get(name, w) != w or name in self.states:
            raise OpTypeError(f"@{name} is already defined")
        self.weights[name] = w
        return f"@{name}"

    def inline(self, name: str, array: NDArray[np.generic], dtype: str | None = None) -> str:
        """A small constant kept in the module itself."""
        dtype = dtype or _FROM_NUMPY[array.dtype.name]
        data = to_bits(np.asarray(array, HELD[dtype]), dtype).tobytes()
        shape = tuple(int(n) for n in array.shape)
        return self.weight(name, TensorType(dtype, shape), Inline(dtype, shape, data))

    def state(self, state: State) -> str:
        self.states[state.name] = state
        return f"@{state.name}"

    # -------------------------------------------------------------- ops
    def op(
        self,
        name: str,
        *operands: str,
        loc: Location | None = None,
        as_: str | Sequence[str] | None = None,
        **attrs: object,
    ) -> str:
        """Add an op with one result and return it (`%name`). `as_` names it (made fresh if taken)."""
        out = self.multi(name, *operands, loc=loc, as_=[as_] if isinstance(as_, str) else as_, **attrs)
        if len(out) != 1:
            raise OpTypeError(f"{name}: has {len(out)} results; use `multi`")
        return out[0]

    def multi(
        self,
        name: str,
        *operands: str,
        loc: Location | None = None,
        as_: Sequence[str] | None = None,
        **attrs: object,
    ) -> tuple[str, ...]:
        """Add an op with any number of results."""
        types = [self.type(o) for o in operands if not self._is_state(o)]
        names = as_ or [""] * len(infer(name, types, attrs))
        fresh: list[str] = []
        for n in names:
            fresh.append(self.fresh(n, fresh))
        return self.append(make_op(name, operands, types, attrs, fresh, loc or self.loc, self.passes))

    def append(self, op: Op) -> tuple[str, ...]:
        """Add an op that is complete as it stands (its results must be new names)."""
        self.ops.append(op)
        return tuple(self._define(r) for r in op.results)

    def copy(self, op: Op, **changes: object) -> tuple[str, ...]:
        """Carry an op of the old graph over: operands renamed, results re-inferred under their old names,
        provenance and region kept. `changes` replace attributes."""
        operands = [self.mapped(o) for o in op.operands]
        types = [self.type(o) for o in operands if not self._is_state(o)]
        names = [r.name for r in op.results]
        attrs = {**dict(op.attrs), **changes}
        touched = op.passes + tuple(p for p in self.passes if p not in op.passes) if changes else op.passes
        new = make_op(op.name, operands, types, attrs, names, op.loc, touched)
        return self.append(replace(new, region=op.region))

    def const(self, value: float | bool, dtype: str = "f32", loc: Location | None = None) -> str:
        """A scalar as a 0-d `const`."""
        return self.op("const", loc=loc, value=value, dtype=dtype)

    def output(self, operand: str, result_name: str | None = None) -> None:
        """Make a value a result of the graph. Name either all outputs or none."""
        self.type(operand)
        self.outputs.append(operand)
        if result_name is not None:
            self.results.append(result_name)

    # -------------------------------------------------------------- renaming
    def replace(self, old: str, new: str) -> None:
        """From now on `copy` reads `new` wherever the old graph read `old`."""
        self.renamed[old] = new

    def mapped(self, operand: str) -> str:
        seen = operand
        while seen in self.renamed and self.renamed[seen] != seen:
            seen = self.renamed[seen]
        return seen

    # -------------------------------------------------------------- asking
    def type(self, operand: str) -> TensorType:
        """Type of `%x` or `@w`; OpTypeError if there is no such tensor."""
        if operand[:1] == "%" and operand[1:] in self._types:
            return self._types[operand[1:]]
        if operand[:1] == "@" and operand[1:] in self.weights:
            return self.weights[operand[1:]].type
        raise OpTypeError(f"graph @{self.name} has no value {operand}")

    def fresh(self, hint: str = "", taken: Sequence[str] = ()) -> str:
        """A value name used neither here nor in the graph being rewritten; `hint` itself if it is free."""
        name = hint
        while not name or name in self._types or name in self._reserved or name in taken:
            name = f"{hint}.{self._count}" if hint else str(self._count)
            self._count += 1
        return name

    # -------------------------------------------------------------- done
    def build(self) -> Graph:
        return Graph(self.name, tuple(self.inputs), tuple(self.ops), tuple(self.outputs), tuple(self.results))

    def module(self) -> Module:
        """The base module with this graph added or replaced, and the weights, states and symbols declared
        here."""
        graph = self.build()
        known = any(g.name == graph.name for g in self._base.graphs)
        graphs = self._base.replace_graph(graph).graphs if known else (*self._base.graphs, graph)
        return Module(
            graphs,
            tuple(self.weights.values()),
            tuple(self.states.values()),
            tuple(self.symbols.items()),
            tuple(self.meta.items()),
        )

    # -------------------------------------------------------------- inside
    def _define(self, v: Value) -> str:
        if v.name in self._types:
            raise OpTypeError(f"%{v.name} is defined twice in graph @{self.name}")
        self._types[v.name] = v.type
        return f"%{v.name}"

    def _is_state(self, operand: str) -> bool:
        return operand[:1] == "@" and operand[1:] in self.states


def dims(*parts: object) -> tuple[object, ...]:
    """A shape for attributes: integers, symbol names, sympy expressions."""
    return tuple(as_dim(p) for p in parts)
