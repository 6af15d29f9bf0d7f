"""merge-linears: linears that read the same value become one (q, k and v; gate and up), followed by a split.

In: a graph. Out: fewer, larger contractions: one pass over x, one kernel, one activation encoding. Merged are
siblings of one module (by weight name) with equal storage; a missing bias among siblings that have one
becomes zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Apply, Graph, Module, Op, WeightExpr
from tilewright.ir.graph.live import tidy
from tilewright.ir.types import TensorType, as_dim
from tilewright.passes.base import Pass, PassContext
from tilewright.passes.lower.record import Matrix, matrix_of
from tilewright.passes.patterns import View


@dataclass(frozen=True)
class MergeLinears(Pass):
    """Merge linears that read the same input, except modules whose name ends in one of `skip`."""

    name: ClassVar[str] = "merge-linears"
    needs: ClassVar[frozenset[str]] = frozenset({"unfused", "unsolved-weights"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical"})

    skip: tuple[str, ...] = ()

    def run(self, module: Module, ctx: PassContext) -> Module:
        for graph in module.graphs:
            module = self._graph(module, module.graph(graph.name), ctx)
        return tidy(module)

    def _graph(self, module: Module, graph: Graph, ctx: PassContext) -> Module:
        view = View(module, graph)
        groups = {id(g[0]): g for g in self._groups(view, graph, ctx)}
        later = {id(op) for g in groups.values() for op in g[1:]}
        if not groups:
            return module
        b = GraphBuilder.over(module, graph, self.name)
        for op in graph.ops:
            if id(op) in groups:
                self._merge(view, b, groups[id(op)])
                ctx.applied("merge", op, f"with {len(groups[id(op)]) - 1} more")
            elif id(op) not in later:
                b.copy(op)
        for n, o in enumerate(graph.outputs):
            b.output(b.mapped(o), graph.results[n] if graph.results else None)
        return b.module()

    def _groups(self, view: View, graph: Graph, ctx: PassContext) -> list[list[Op]]:
        found: dict[tuple[object, ...], list[Op]] = {}
        for op in graph.ops:
            if not _is_mergeable(op):
                continue
            reason = self._reason(view, op)
            if reason:
                ctx.declined("merge", op, reason)
                continue
            t = view.type(op.operands[1])
            key = (op.name, op.attrs, op.operands[0], parent(op.operands[1]), t.dtype, t.encoding, t.shape[1])
            found.setdefault(key, []).append(op)
        return [g for g in found.values() if len(g) > 1]

    def _reason(self, view: View, op: Op) -> str:
        w = op.operands[1]
        if any(parent(w).endswith(s) for s in self.skip):
            return f"{parent(w)} is listed in skip"
        if len(view.users[w]) > 1:
            return f"{w} has other readers"
        return "" if len(op.operands) < 3 or op.operands[2][0] == "@" else "its bias is computed"

    def _merge(self, view: View, b: GraphBuilder, group: Sequence[Op]) -> None:
        names = [op.operands[1][1:] for op in group]
        weight = self._stacked(view, b, [op.operands[1] for op in group], joined(names))
        operands = [b.mapped(group[0].operands[0]), weight]
        if any(len(op.operands) == 3 for op in group):
            operands.append(self._biases(view, b, group, joined(names)))
        b.loc = group[0].loc
        attrs: dict[str, Any] = dict(group[0].attrs)
        y = b.op(group[0].name, *operands, loc=group[0].loc, **attrs)
        sizes = tuple(op.result.type.shape[-1] for op in group)
        axis = b.type(y).rank - 1
        parts = b.multi("split", y, axis=axis, sizes=sizes)
        for op, part in zip(group, parts, strict=True):
            b.replace(f"%{op.result.name}", part)

    def _stacked(self, view: View, b: GraphBuilder, weights: Sequence[str], name: str) -> str:
        types = [view.type(w) for w in weights]
        rows = as_dim(sum(cast(int, t.shape[0]) for t in types))
        sources = tuple(view.weights[w[1:]].source for w in weights)
        return b.weight(
            name, types[0].with_(shape=(rows, *types[0].shape[1:])), Apply("concat", sources, (("axis", 0),))
        )

    def _biases(self, view: View, b: GraphBuilder, group: Sequence[Op], name: str) -> str:
        parts: list[WeightExpr] = []
        first = next(view.type(op.operands[2]) for op in group if len(op.operands) == 3)
        for op in group:
            if len(op.operands) == 3:
                parts.append(view.weights[op.operands[2][1:]].source)
            else:
                rows = (cast(int, op.result.type.shape[-1]),)
                parts.append(Apply("fill", (), (("shape", rows), ("value", 0.0))))
        rows_all = as_dim(sum(cast(int, op.result.type.shape[-1]) for op in group))
        bias = name.removesuffix(".weight") + ".bias"
        t = TensorType(first.dtype, (rows_all,), first.encoding)
        return b.weight(bias, t, Apply("concat", tuple(parts), (("axis", 0),)))


def _is_mergeable(op: Op) -> bool:
    """A contraction x, w, bias? with one stored matrix, each row of which makes a column of the result."""
    matrix = matrix_of(op)
    if matrix is None or matrix != Matrix() or len(op.operands) > 3:
        return False
    return op.operands[matrix.operand][0] == "@"


def parent(weight: str) -> str:
    """The module that the linear of a weight sits in: `@a.b.q_proj.weight` -> `a.b`."""
    return ".".join(weight[1:].split(".")[:-2])


def joined(names: Sequence[str]) -> str:
    """`a.q_proj.weight`, `a.k_proj.weight` -> `a.q_proj_k_proj.weight`."""
    stems = [n.split(".")[-2] if "." in n else n for n in names]
    head, tail = parent("@" + names[0]), names[0].split(".")[-1]
    return ".".join(p for p in (head, "_".join(stems), tail) if p)
