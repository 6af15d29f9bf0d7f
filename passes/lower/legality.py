"""Whether kernels can be written: for one op on operands in memory, for a region, for all regions of a graph.

In: an op, a region, a graph with region numbers. Out: kernels, or the reason why there are none. The
templates themselves are run, so an answer cannot differ from what lowering does. `fuse`, `lower` and graph
partitioners use this function.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.ops.base import OPS, OpTypeError
from tilewright.ir.tile.op_record import TileTypeError
from tilewright.ir.types import TensorType
from tilewright.passes.lower.dims import CannotEmit
from tilewright.passes.lower.families import build_region
from tilewright.passes.lower.job import Built
from tilewright.passes.lower.record import lowering_of
from tilewright.passes.lower.regions import (
    Region,
    RegionCycle,
    base_values,
    free_ops,
    next_solid,
    split_regions,
)

Explain = Callable[[str], None]
Kernels = list[Built]


# ------------------------------------------------------------------ one op
def why_not(op: Op, graph: Graph, module: Module) -> str:
    """Why no kernel computes `op` of `graph` from operands in memory; an empty string if one does."""
    if lowering_of(op) is None:
        return f"no kernel computes {op.name}"
    found = kernels_of(module, graph, Region((op,), tuple(r.name for r in op.results)), {})
    return str(found) if isinstance(found, Exception) else ""


def supports(name: str, types: Sequence[TensorType], attrs: Mapping[str, object] | None = None) -> str:
    """Why no kernel computes the op `name` on operands of these types, all in memory; an empty string if one
    does. Ops on states need `why_not`: their state is part of a module."""
    module = module_of_op(name, types, attrs)
    if isinstance(module, str):
        return module
    (graph,) = module.graphs
    return why_not(graph.ops[-1], graph, module)


def module_of_op(
    name: str, types: Sequence[TensorType], attrs: Mapping[str, object] | None = None
) -> Module | str:
    """A module of one op on inputs of these types, or why there is none."""
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
    return b.module()


# ------------------------------------------------------------------ one region
def kernels_of(
    module: Module, graph: Graph, region: Region, free: Mapping[str, Op]
) -> Kernels | CannotEmit | TileTypeError:
    """The kernels of a region, in call order, or why it has none. `free`: views and constants, which are
    computed where they are read. Results without elements need no kernel."""
    types = {r.name: r.type for op in region.ops for r in op.results}
    if region.outputs and all(0 in types[name].shape for name in region.outputs):
        return []
    try:
        return build_region(module, graph, region, free)
    except (CannotEmit, TileTypeError) as why:
        return why


# ------------------------------------------------------------------ all regions
@dataclass(frozen=True)
class Settled:
    """A graph of `module` whose regions have kernels. `problems`: ops that have none at all, with the
    reason."""

    module: Module
    graph: Graph
    regions: tuple[tuple[Region, Kernels], ...]
    problems: tuple[tuple[Op, Exception], ...]

    def fits(self, module: Module, graph: Graph) -> bool:
        """Whether settling `graph` of `module` would give the same result: everything that kernels are built
        from is equal."""
        old = self.module
        same = (old.weights, old.states, old.symbols) == (module.weights, module.states, module.symbols)
        return same and _without_history(self.graph) == _without_history(graph)


def _without_history(graph: Graph) -> Graph:
    """The graph without the names of the passes that made its ops, which the driver adds after each pass."""
    return replace(graph, ops=tuple(replace(op, passes=()) for op in graph.ops))


def settle(module: Module, graph: Graph, explain: Explain = lambda why: None) -> Settled:
    """The graph with the regions that have kernels. A region without a kernel is split into its ops. If an op
    cannot read through views, they are copied to memory first: such a view gets a region number of its own.
    Every region is tried once. `explain` is called with each change and its reason."""
    state = _Settling(module, *_acyclic(graph, explain), explain)
    state.run()
    if state.built is None:
        return _final(state)
    return Settled(module, state.graph, tuple(state.built), ())


def _acyclic(graph: Graph, explain: Explain) -> tuple[Graph, list[Region]]:
    """The graph without the numbers of regions that depend on each other, and its regions in order."""
    try:
        return graph, split_regions(graph)
    except RegionCycle as cycle:
        explain(f"regions {sorted(cycle.args[0])} depend on each other: one kernel per op")
        return _acyclic(_apart(graph, cycle.args[0]), explain)


def _apart(graph: Graph, numbers: Collection[int]) -> Graph:
    ops = tuple(replace(op, region=None) if op.region in numbers else op for op in graph.ops)
    return replace(graph, ops=ops)


@dataclass
class _Settling:
    """The worklist of `settle`. `built`: the kernels of every region; None as soon as some region had to
    change."""

    module: Module
    graph: Graph
    regions: list[Region]
    explain: Explain
    built: list[tuple[Region, Kernels]] | None = field(default_factory=list)
    apart: set[int] = field(default_factory=set)
    copied: set[str] = field(default_factory=set)
    problems: list[tuple[Op, Exception]] = field(default_factory=list)

    def run(self) -> None:
        self.free = free_ops(self.graph)
        self.work = deque(self.regions)
        self.home = {r.name: region for region in self.regions for op in region.ops for r in op.results}
        read = {b[1:] for op in self.graph.ops for o in op.operands for b in base_values(o, self.free)}
        self.read = read | {b[1:] for o in self.graph.outputs for b in base_values(o, self.free)}
        while self.work:
            region = self.work.popleft()
            found = kernels_of(self.module, self.graph, region, self.free)
            if not isinstance(found, Exception):
                if self.built is not None:
                    self.built.append((region, found))
                continue
            self.built = None
            if len(region.ops) > 1:
                names = ", ".join(op.name for op in region.ops)
                self._take_apart(
                    region, f"region {region.ops[0].region} ({names}): {found}; one kernel per op"
                )
            else:
                self._copy_views(region, found)

    def _take_apart(self, region: Region, why: str) -> None:
        number = region.ops[0].region
        if number is None or number in self.apart:
            return
        self.explain(why)
        self.apart.add(number)
        for op in region.ops:
            self.work.append(Region((op,), tuple(r.name for r in op.results if r.name in self.read)))

    def _copy_views(self, region: Region, why: Exception) -> None:
        """Copy as few of the views that an op reads through as are needed for it to have a kernel."""
        (op,) = region.ops
        free, reason = dict(self.free), why
        views: set[str] = set()
        while more := next_solid(region.ops, free):
            views |= more
            free = {name: o for name, o in free.items() if o.results[0].name not in views}
            found = kernels_of(self.module, self.graph, region, free)
            if not isinstance(found, Exception):
                self.explain(f"{op.name}: {why}; %{', %'.join(sorted(views))} copied before it")
                self.copied |= views
                for view in sorted(views):
                    self._leaves(view)
                return
            reason = found
        self.problems.append((op, reason))

    def _leaves(self, view: str) -> None:
        """A region that computes and reads a view that is copied would depend on itself, so it is split into
        its ops."""
        for base in base_values(f"%{view}", self.free):
            region = self.home.get(base[1:])
            if region is not None and len(region.ops) > 1 and self._reads(region, view):
                names = ", ".join(op.name for op in region.ops)
                self._take_apart(
                    region, f"region {region.ops[0].region} ({names}): %{view} is copied inside it"
                )

    def _reads(self, region: Region, view: str) -> bool:
        todo = [o for op in region.ops for o in op.operands]
        while todo:
            operand = todo.pop()
            if operand == f"%{view}":
                return True
            through = self.free.get(operand[1:]) if operand[0] == "%" else None
            todo += through.operands if through is not None else ()
        return False


def _final(state: _Settling) -> Settled:
    """The graph with its last numbers, and the kernels of all regions under them."""
    graph = _numbered(_apart(state.graph, state.apart), state.copied)
    graph, regions = _acyclic(graph, state.explain)
    free = free_ops(graph)
    built, problems = list[tuple[Region, Kernels]](), list(state.problems)
    for region in regions:
        found = kernels_of(state.module, graph, region, free)
        if not isinstance(found, Exception):
            built.append((region, found))
        elif region.ops[0].results not in [op.results for op, _ in problems]:
            problems.append((region.ops[0], found))
    return Settled(state.module, graph, tuple(built), tuple(problems))


def _numbered(graph: Graph, copied: Collection[str]) -> Graph:
    """Each view or constant that is copied gets a region of its own."""
    number = 1 + max((op.region for op in graph.ops if op.region is not None), default=-1)
    out = []
    for op in graph.ops:
        if any(r.name in copied for r in op.results):
            op, number = replace(op, region=number), number + 1
        out.append(op)
    return replace(graph, ops=tuple(out))
