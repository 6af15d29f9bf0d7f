"""fold-scales: factors and offsets per channel become part of the weights before them.

In: a graph whose weights are not encoded yet. Out: the same results up to rounding. Vectors computed from
weights alone, as those of a batch norm in evaluation, become weights; a product with one, or its addition,
right after a contraction goes into the contraction's matrix and bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Apply, Graph, Module, Op, WeightExpr
from tilewright.ir.graph.live import tidy
from tilewright.ir.weights.transforms import WEIGHT_FNS
from tilewright.passes.base import Pass, PassContext
from tilewright.passes.lower.record import matrix_of
from tilewright.passes.patterns import View


@dataclass(frozen=True)
class FoldScales(Pass):
    """Compute vectors of weights ahead of time, and fold them into contractions."""

    name: ClassVar[str] = "fold-scales"
    needs: ClassVar[frozenset[str]] = frozenset({"recognised", "unfused", "unsolved-weights"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical"})
    tolerance: ClassVar[float | None] = 1e-4

    def run(self, module: Module, ctx: PassContext) -> Module:
        for graph in module.graphs:
            module = _Fold(module, module.graph(graph.name), ctx).run()
        return module


class _Fold:
    """A rewrite under way. `made`: ops of the new graph by their result."""

    def __init__(self, module: Module, graph: Graph, ctx: PassContext) -> None:
        self.view, self.ctx = View(module, graph), ctx
        self.b = GraphBuilder.over(module, graph, FoldScales.name)
        self.made: dict[str, Op] = {}

    def run(self) -> Module:
        graph = self.view.graph
        for op in graph.ops:
            self.b.loc = op.loc
            new = self._vector(op) or self._folded(op)
            if new is not None:
                self.ctx.applied("fold", op)
                self.b.replace(f"%{op.result.name}", new)
                continue
            for r in self.b.copy(op):
                self.made[r] = self.b.ops[-1]
        for n, o in enumerate(graph.outputs):
            self.b.output(self.b.mapped(o), graph.results[n] if graph.results else None)
        return tidy(self.b.module())

    # -------------------------------------------------------------- vectors of weights
    def _vector(self, op: Op) -> str | None:
        """The weight that a pointwise op over weights makes, if that is a vector or several in a row."""
        if op.name not in WEIGHT_FNS or len(op.results) != 1 or not op.operands:
            return None
        shape = op.result.type.shape
        if op.result.type.dtype != "f32" or sum(d != 1 for d in shape) > 1:
            return None
        parts = [self._source(self.b.mapped(o)) for o in op.operands]
        first = next((o for o in map(self.b.mapped, op.operands) if o[0] == "@"), None)
        if first is None or any(p is None for p in parts):
            return None
        source = Apply(op.name, tuple(p for p in parts if p is not None), op.attrs)
        return self.b.weight(self._name(f"{first[1:]}.{op.name}", source), op.result.type, source)

    def _source(self, operand: str) -> WeightExpr | None:
        """A dense f32 weight or a number as a weight expression."""
        if operand[0] == "@":
            w = self.b.weights.get(operand[1:])
            plain = w is not None and w.type.encoding is None and w.type.dtype == "f32"
            return w.source if plain and w is not None else None
        op = self.made.get(operand)
        value = dict(op.attrs).get("value") if op is not None and not op.operands else None
        if value is None or self.b.type(operand).shape:
            return None
        return Apply("fill", (), (("shape", ()), ("value", value)))

    def _name(self, wanted: str, source: WeightExpr) -> str:
        """A free name for a weight, or that of one with this source."""
        name, n = wanted, 1
        while (have := self.b.weights.get(name)) is not None and have.source != source:
            name, n = f"{wanted}{n}", n + 1
        return name

    # -------------------------------------------------------------- contractions
    def _folded(self, op: Op) -> str | None:
        """The contraction that gives what a product or a sum after it gives."""
        if op.name not in ("mul", "add"):
            return None
        for x, v in (op.operands, op.operands[::-1]):
            before = self.made.get(self.b.mapped(x))
            vector = self.b.mapped(v)
            if before is None or vector[0] != "@" or not self.view.single_use(x):
                continue
            if self._foldable(before, vector) and before.result.type.shape == op.result.type.shape:
                return self._again(before, op.name, vector)
        return None

    def _foldable(self, op: Op, vector: str) -> bool:
        matrix = matrix_of(op)
        if matrix is None or matrix.experts or matrix.operand != 1:
            return False
        shape, n = self.b.type(vector).shape, op.result.type.shape[-1]
        stored = all(o[0] == "@" and self._source(o) is not None for o in op.operands[1:])
        return stored and self._source(vector) is not None and shape[-1:] == (n,) and set(shape[:-1]) <= {1}

    def _again(self, op: Op, fn: str, vector: str) -> str:
        """The contraction with other weights: a product changes matrix and bias, a sum the bias alone."""
        x, w, *bias = op.operands
        if fn == "mul":
            given = (
                self._scaled(w, vector),
                *(self._bias(w, Apply(fn, self._both(b, vector))) for b in bias),
            )
        elif bias:
            given = (w, self._bias(w, Apply(fn, self._both(bias[0], vector))))
        else:
            given = (w, self._bias(w, self._flat(vector)))
        attrs: dict[str, Any] = dict(op.attrs)
        out = self.b.op(op.name, x, *given, **attrs)
        self.made[out] = self.b.ops[-1]
        return out

    def _scaled(self, w: str, vector: str) -> str:
        """A matrix each row of which is multiplied by a number."""
        weight, factor = self.b.weights[w[1:]], self.b.weights[vector[1:]]
        column = Apply("reshape", (factor.source,), (("shape", (weight.type.shape[0], 1)),))
        source = Apply("mul", (weight.source, column))
        stem, _, last = weight.name.rpartition(".")
        name = self._name(f"{stem}.scaled.{last}" if stem else f"{last}.scaled", source)
        return self.b.weight(name, weight.type, source)

    def _both(self, bias: str, vector: str) -> tuple[WeightExpr, WeightExpr]:
        return self.b.weights[bias[1:]].source, self._flat(vector)

    def _flat(self, vector: str) -> WeightExpr:
        """A vector without unit axes before it."""
        w = self.b.weights[vector[1:]]
        shape = w.type.shape[-1:]
        return w.source if w.type.rank == 1 else Apply("reshape", (w.source,), (("shape", shape),))

    def _bias(self, w: str, source: WeightExpr) -> str:
        """A bias beside a matrix."""
        t = self.b.type(w)
        name = self._name(f"{w[1:].rpartition('.')[0]}.bias".strip("."), source)
        return self.b.weight(name, t.with_(shape=t.shape[:1]), source)
