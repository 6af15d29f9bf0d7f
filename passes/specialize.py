"""specialize: symbols bound to integers.

In: a module with symbolic dimensions. Out: the same with some of them fixed, for a step of one token, say.
Every op is inferred anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import sympy

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module
from tilewright.ir.graph.random_values import random_inputs
from tilewright.ir.ops.base import Array
from tilewright.ir.types import TensorType, as_dim, symbol
from tilewright.passes.base import CheckCase, Pass, PassContext


@dataclass(frozen=True)
class Specialize(Pass):
    """Bind symbols to integers; `bind`: (symbol, value) pairs."""

    name: ClassVar[str] = "specialize"
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical"})

    bind: tuple[tuple[str, int], ...] = ()

    def run(self, module: Module, ctx: PassContext) -> Module:
        ranges = dict(module.symbols)
        for name, value in self.bind:
            if name not in ranges:
                known = ", ".join(ranges) or "none"
                raise RefusedError(f"the module has no symbol {name}", self.name, f"its symbols: {known}")
            r = ranges.pop(name)
            if value < r.lo or r.hi is not None and value > r.hi:
                raise RefusedError(
                    f"{name} = {value} is outside {r.lo}..{'' if r.hi is None else r.hi}",
                    self.name,
                    "choose a value within the range",
                )
        values = {symbol(n): v for n, v in self.bind}
        for graph in module.graphs:
            module = self._graph(module, graph, values)
        return replace(module, symbols=tuple(ranges.items()))

    def adapt(self, before: Module, after: Module, graph: str, inputs: Mapping[str, Array]) -> CheckCase:
        """Sizes differ on the two sides, so the new graph only runs."""
        return CheckCase(graph, random_inputs(after, graph), lambda results: {})

    def _graph(self, module: Module, graph: Graph, values: dict[sympy.Expr, int]) -> Module:
        b = GraphBuilder.over(module, graph, self.name, inputs=False)
        for v in graph.inputs:
            b.add_input(v.name, bound_type(v.type, values))
        for op in graph.ops:
            changes = {k: bound(v, values) for k, v in op.attrs}
            b.copy(op, **{k: v for k, v in changes.items() if v != op.attr(k)})
        for n, o in enumerate(graph.outputs):
            b.output(b.mapped(o), graph.results[n] if graph.results else None)
        return b.module()


def bound_type(t: TensorType, values: dict[sympy.Expr, int]) -> TensorType:
    return t.with_(shape=bound(t.shape, values))


def bound(value: object, values: dict[sympy.Expr, int]) -> object:
    """An attribute or shape with symbols replaced."""
    if isinstance(value, tuple):
        return tuple(bound(v, values) for v in value)
    return as_dim(value.subs(values)) if isinstance(value, sympy.Expr) else value
