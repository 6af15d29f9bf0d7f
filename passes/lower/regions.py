"""Fused regions as lowering sees them: which ops a kernel computes, which values it must leave in memory.

Views and constants belong to no region: every consumer computes them itself, views as index maps. The
exception is a view with a region number of its own, which is copied to memory. In: a graph whose ops carry
region numbers (None: a region of its own). Out: regions in an order that respects data and state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from tilewright.ir.graph.core import Graph, Op
from tilewright.ir.ops.base import OPS
from tilewright.passes.lower.record import Form, form_of, is_alias, is_view


@dataclass(frozen=True)
class Region:
    """Ops of one kernel in graph order, and the values others read from it."""

    ops: tuple[Op, ...]
    outputs: tuple[str, ...]

    def inside(self, free: Mapping[str, Op]) -> dict[str, Op]:
        """Producers that are computed inside the region's kernel: the region's own ops and free ones (views,
        constants)."""
        return {**free, **{r.name: op for op in self.ops for r in op.results}}


def free_ops(graph: Graph) -> dict[str, Op]:
    """Views and constants by result name. One with a region of its own is not among them: it is copied to
    memory."""
    worked = {op.region for op in graph.ops if form_of(op) not in (Form.VIEW, Form.CONSTANT)}
    return {r.name: op for op in graph.ops if _is_free(op, worked) for r in op.results}


def _is_free(op: Op, worked: Collection[int | None]) -> bool:
    return form_of(op) in (Form.CONSTANT, Form.VIEW) and (op.region is None or op.region in worked)


def next_solid(ops: Sequence[Op], free: Mapping[str, Op]) -> set[str]:
    """What these ops read through and that could be copied to memory instead: first the views that a reshape
    reads (a reshape of memory needs no work), then all views, then tensors of constants."""
    behind: dict[str, Op] = {}
    todo = [o for op in ops for o in op.operands]
    while todo:
        op = free.get(todo.pop()[1:])
        if op is not None and op.results[0].name not in behind:
            behind[op.results[0].name] = op
            todo += op.operands
    looked_at = [free.get(op.operands[0][1:]) for op in behind.values() if is_alias(op)]
    reshaped = {op.results[0].name for op in looked_at if op is not None}
    moving = {n for n, op in behind.items() if is_view(op) and not is_alias(op)}
    constants = {n for n, op in behind.items() if not is_view(op) and op.results[0].type.rank}
    return (moving & reshaped) or moving or constants


def base_values(operand: str, free: Mapping[str, Op]) -> tuple[str, ...]:
    """The values in memory that an operand is computed from through free ops."""
    op = free.get(operand[1:]) if operand[0] == "%" else None
    if op is None:
        return (operand,)
    return tuple(b for o in op.operands for b in base_values(o, free))


def split_regions(graph: Graph) -> list[Region]:
    """Regions in execution order; an op without a number is one by itself. RegionCycle if some depend on each
    other."""
    free = free_ops(graph)
    groups: dict[object, list[Op]] = {}
    for n, op in enumerate(graph.ops):
        if op.results and op.results[0].name in free:
            continue
        groups.setdefault(("op", n) if op.region is None else op.region, []).append(op)
    return _ordered(graph, list(groups.values()), free)


def _ordered(graph: Graph, groups: Sequence[Sequence[Op]], free: Mapping[str, Op]) -> list[Region]:
    home = {r.name: n for n, ops in enumerate(groups) for op in ops for r in op.results}
    order = nx.DiGraph()
    order.add_nodes_from(range(len(groups)))
    read: dict[int, set[str]] = {}
    for n, ops in enumerate(groups):
        bases = {b[1:] for op in ops for o in op.operands for b in base_values(o, free) if b[0] == "%"}
        read[n] = bases
        order.add_edges_from((home[b], n) for b in bases if b in home and home[b] != n)
    _state_edges(graph, groups, order)
    outside = {b[1:] for o in graph.outputs for b in base_values(o, free)}
    position = {id(op): k for k, op in enumerate(graph.ops)}
    first = {n: min(position[id(op)] for op in ops) for n, ops in enumerate(groups)}
    try:
        sequence = list(nx.lexicographical_topological_sort(order, key=lambda n: first[n]))
    except nx.NetworkXUnfeasible:
        cycle = sorted(
            {op.region for a, _ in nx.find_cycle(order) for op in groups[a] if op.region is not None}
        )
        raise RegionCycle(frozenset(cycle)) from None
    out = []
    for n in sequence:
        used = set(outside).union(*(read[m] for m in read if m != n))
        names = tuple(r.name for op in groups[n] for r in op.results if r.name in used)
        out.append(Region(tuple(groups[n]), names))
    return out


class RegionCycle(Exception):
    """Regions that depend on each other; `args[0]` are their numbers."""


def _state_edges(graph: Graph, groups: Sequence[Sequence[Op]], order: nx.DiGraph) -> None:
    where = {id(op): n for n, ops in enumerate(groups) for op in ops}
    last: dict[str, int] = {}
    for op in graph.ops:
        record = OPS.get(op.name)
        if record is None or not record.state:
            continue
        n = where[id(op)]
        before = last.get(op.operands[0])
        if before is not None and before != n:
            order.add_edge(before, n)
        last[op.operands[0]] = n
