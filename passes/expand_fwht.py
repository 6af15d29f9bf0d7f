"""expand-fwht: online rotations as linears with a constant Hadamard matrix, which have kernels.

In: a graph whose contractions know the form of their inputs. Out: the same without `fwht`. All blocks of a
size share a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.ops.rotation import hadamard
from tilewright.passes.base import Pass, PassContext


@dataclass(frozen=True)
class ExpandFwht(Pass):
    """Replace every `fwht` by reshape, linear, reshape."""

    name: ClassVar[str] = "expand-fwht"
    needs: ClassVar[frozenset[str]] = frozenset({"unfused"})
    gives: ClassVar[frozenset[str]] = frozenset({"no-fwht"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical", "encoded-weights"})

    def run(self, module: Module, ctx: PassContext) -> Module:
        for graph in module.graphs:
            if any(op.name == "fwht" for op in graph.ops):
                module = _rewrite(module, module.graph(graph.name))
        return module


def _rewrite(module: Module, graph: Graph) -> Module:
    b = GraphBuilder.over(module, graph, "expand-fwht")
    for op in graph.ops:
        if op.name == "fwht":
            b.loc = op.loc
            b.replace(f"%{op.result.name}", _spelled(b, op))
        else:
            b.copy(op)
    for n, o in enumerate(graph.outputs):
        b.output(b.mapped(o), graph.results[n] if graph.results else None)
    return b.module()


def _spelled(b: GraphBuilder, op: Op) -> str:
    x, block, shape = b.mapped(op.operands[0]), int(str(op.attr("block"))), op.result.type.shape
    matrix = b.inline(
        f"hadamard.{block}", hadamard(np.eye(block, dtype=np.float32), block).astype(np.float32)
    )
    parts = int(str(shape[-1])) // block
    if parts == 1:
        return b.op("linear", x, matrix)
    y = b.op("linear", b.op("reshape", x, shape=(*shape[:-1], parts, block)), matrix)
    return b.op("reshape", y, shape=shape)
