"""Whether kernels can be written: for one op on operands in memory, and for the ops of one region.

In: an op or a region. Out: kernels, or the reason why there are none. The templates themselves are asked, so
an answer cannot differ from what lowering does. `fuse`, `lower` and whoever partitions a graph ask here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.ops.base import OPS, OpTypeError
from tilewright.ir.tile.ops import TileTypeError
from tilewright.ir.types import TensorType
from tilewright.passes.lower.dims import CannotEmit
from tilewright.passes.lower.families import build_region
from tilewright.passes.lower.record import lowering_of
from tilewright.passes.lower.regions import Region


def why_not(op: Op, graph: Graph, module: Module) -> str:
    """Why no kernel computes `op` of `graph` from operands in memory; an empty string if one does."""
    if lowering_of(op) is None:
        return f"no kernel computes {op.name}"
    try:
        build_region(module, graph, Region((op,), tuple(r.name for r in op.results)), {})
    except (CannotEmit, TileTypeError) as why:
        return str(why)
    return ""


def supports(name: str, types: Sequence[TensorType], attrs: Mapping[str, object] | None = None) -> str:
    """Why no kernel computes the op `name` on operands of these types, all in memory; an empty string if one
    does. Ops on states need `why_not`: their state is part of a module."""
    if name not in OPS or OPS[name].state:
        return f"unknown op {name!r}" if name not in OPS else f"{name} works on a state of a module"
    b = GraphBuilder("supports")
    operands = [b.add_input(f"x{n}", t) for n, t in enumerate(types)]
    given: dict[str, Any] = dict(attrs or {})
    try:
        results = b.multi(name, *operands, **given)
    except OpTypeError as why:
        return str(why)
    for n, r in enumerate(results):
        b.output(r, f"y{n}")
    module = b.module()
    (graph,) = module.graphs
    return why_not(graph.ops[-1], graph, module)
