"""Fused regions as lowering sees them: which ops a kernel computes, which values it must leave in memory.

Views and constants belong to no region: every consumer derives them again as index maps. In: a graph whose ops carry region
numbers (None: a region of its own). Out: regions in an order that respects data and state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from tilewright.ir.graph import Graph, Op
from tilewright.ir.ops.base import OPS

#: ops that never touch memory by themselves
VIEWS = ("slice", "split", "transpose", "expand", "reshape")
MADE = ("const", "full", "iota")


@dataclass(frozen=True)
class Region:
    """Ops of one kernel in graph order, and the values others read from it."""

    ops: tuple[Op, ...]
    outputs: tuple[str, ...]

    def inside(self, free: Mapping[str, Op]) -> dict[str, Op]:
        """Producers that emission may look through: the region's own ops and free ones (views, constants)."""
        return {**free, **{r.name: op for op in self.ops for r in op.results}}


def free_ops(graph: Graph) -> dict[str, Op]:
    """Views and constants by result name."""
    return {r.name: op for op in graph.ops if op.name in VIEWS or op.name in MADE for r in op.results}


def base_values(operand: str, free: Mapping[str, Op]) -> tuple[str, ...]:
    """The materialised values an operand is derived from through free ops."""
    op = free.get(operand[1:]) if operand[0] == "%" else None
    if op is None:
        return (operand,)
    return tuple(b for o in op.operands for b in base_values(o, free))


def split_regions(graph: Graph, alone: frozenset[int] = frozenset()) -> list[Region]:
    """Regions in execution order. Regions numbered in `alone` are taken apart into single ops."""
    free = free_ops(graph)
    groups: dict[object, list[Op]] = {}
    for n, op in enumerate(graph.ops):
        if op.name in VIEWS or op.name in MADE:
            continue
        key: object = ("op", n) if op.region is None or op.region in alone else op.region
        groups.setdefault(key, []).append(op)
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
        cycle = sorted({op.region for a, _ in nx.find_cycle(order) for op in groups[a] if op.region is not None})
        raise RegionCycle(frozenset(cycle)) from None
    out = []
    for n in sequence:
        used = set(outside).union(*(read[m] for m in read if m != n))
        names = tuple(r.name for op in groups[n] for r in op.results if r.name in used)
        out.append(Region(tuple(groups[n]), names))
    return out


class RegionCycle(Exception):
    """Regions that wait for each other; `args[0]` are their numbers."""


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
