"""Leaving out what nothing reads: ops whose results are unused, and the weights of those ops."""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir.graph.builder import live_weights
from tilewright.ir.graph.core import Graph, Module


def tidy(module: Module) -> Module:
    """The module with only the ops and weights that its outputs need."""
    return live_weights(replace(module, graphs=tuple(map(_live, module.graphs))))


def _live(g: Graph) -> Graph:
    needed = set(g.outputs)
    kept = []
    for op in reversed(g.ops):
        if not op.results or any(f"%{r.name}" in needed for r in op.results):
            kept.append(op)
            needed.update(op.operands)
    return replace(g, ops=tuple(reversed(kept)))
