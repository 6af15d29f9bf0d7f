"""Removal of what nothing reads: ops whose results are unused, and the weights of those ops.

In: a module or a graph. Out: the same without them, in the same order. Ops on states have an effect and stay.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.ops.base import OPS


def tidy(module: Module) -> Module:
    """The module with only the ops and weights that its results and states need."""
    return live_weights(replace(module, graphs=tuple(map(live_ops, module.graphs))))


def live_ops(graph: Graph) -> Graph:
    """The graph without ops that have no effect and no result that is read."""
    read = set(graph.outputs)
    live: list[Op] = []
    for op in reversed(graph.ops):
        if _has_effect(op) or any(f"%{r.name}" in read for r in op.results):
            read.update(op.operands)
            live.append(op)
    return replace(graph, ops=tuple(reversed(live)))


def _has_effect(op: Op) -> bool:
    record = OPS.get(op.name)
    return not op.results or record is not None and record.state


def live_weights(module: Module) -> Module:
    """The module without the weights that no graph reads."""
    read = {o for g in module.graphs for op in g.ops for o in op.operands}
    read.update(o for g in module.graphs for o in g.outputs)
    return replace(module, weights=tuple(w for w in module.weights if f"@{w.name}" in read))
