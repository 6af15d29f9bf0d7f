"""fuse: ops grouped into regions, each of which lowering writes as one kernel.

In: a graph. Out: the same ops with region numbers. Fusion is placement: an anchor decides the loops,
pointwise work is put before or after it. Views (reshape, transpose, slice, split, expand) and constants
belong to no region: readers look through them.

The forms of regions, which each op's lowering record names:

1. *contraction*: one contraction, then pointwise ops over its result or over its equal column parts (gate and
   up after a split), with other operands of any origin (residual, scales). All values that leave the region
   have one shape. The contraction's own operands lie in memory (whole, or reshaped).
2. *attention*: one attention over a cache, alone; its queries lie in memory.
3. *rows*: any number of norms, softmaxes, reductions, lookups, rotary embeddings, activation codes and
   pointwise ops over values with the same leading axes, in a chain or side by side; several of its values may
   leave it. Statistics are per row. It may hold cache appends, whose keys and values are computed inside or
   are views of values in memory, and the rotary embedding of the queries beside them.
4. *single*: everything else, one op each.

A region never waits for itself: a merge that would close a cycle is declined with its reason. Whether a
region is one kernel is asked of `lower.legality`, which builds it; `lower` takes what was built here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.ops.base import OPS
from tilewright.passes.base import Pass, PassContext
from tilewright.passes.fuse_rules import Region, refusal
from tilewright.passes.lower.legality import settle
from tilewright.passes.lower.record import Form, form_of, is_alias, is_view, lowering_of
from tilewright.passes.lower.regions import base_values, free_ops
from tilewright.passes.patterns import View

#: how many of the regions made last are looked at for one that works on parts of the same value
RECENT = 8


@dataclass(frozen=True)
class Fuse(Pass):
    """Assign region numbers. `rows`: also fuse work along rows with each other; `epilogues`: put pointwise
    work after contractions.
    """

    name: ClassVar[str] = "fuse"
    needs: ClassVar[frozenset[str]] = frozenset({"canonical", "unfused"})
    gives: ClassVar[frozenset[str]] = frozenset({"fused"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"unfused"})
    tolerance: ClassVar[float | None] = 0.0

    rows: bool = True
    epilogues: bool = True

    def run(self, module: Module, ctx: PassContext) -> Module:
        for graph in module.graphs:
            ops = tuple(replace(op, region=None) for op in graph.ops)
            module = module.replace_graph(replace(graph, ops=ops))
            module = materialise(module, module.graph(graph.name))
            regions = _Regions(View(module, module.graph(graph.name)), ctx, self)
            module = module.replace_graph(regions.run())
            settled = settle(
                module, module.graph(graph.name), lambda why: ctx.declined("region", "fuse", why)
            )
            module = module.replace_graph(settled.graph)
            ctx.reusable[graph.name] = settled
        return module


# ------------------------------------------------------------------ operands that must lie in memory
def _whole(op: Op) -> tuple[int, ...]:
    record = lowering_of(op)
    return () if record is None else record.whole


def materialise(module: Module, graph: Graph) -> Module:
    """A copy (`decode` of a dense value) of each view that a contraction or attention reads whole: a part of
    a wider value."""
    producers = graph.producers()
    todo = {
        id(op): parts
        for op in graph.ops
        if (parts := [n for n in _whole(op) if _is_part(producers, op.operands[n])])
    }
    if not todo:
        return module
    b = GraphBuilder.over(module, graph, "fuse")
    copies: dict[str, str] = {}
    for op in graph.ops:
        for n in todo.get(id(op), ()):
            o = op.operands[n]
            if o not in copies:
                copies[o] = _copied(b, producers, o, op)
            op = replace(op, operands=(*op.operands[:n], copies[o], *op.operands[n + 1 :]))
        b.copy(op)
    for n, o in enumerate(graph.outputs):
        b.output(b.mapped(o), graph.results[n] if graph.results else None)
    return b.module()


def _copied(b: GraphBuilder, producers: dict[str, Op], operand: str, reader: Op) -> str:
    """The copy stands below the last reshapes, which then see memory: rows are written as the view has
    them."""
    op = producers[operand[1:]]
    if not is_alias(op):
        return b.op("decode", b.mapped(operand), loc=reader.loc)
    inner = _copied(b, producers, op.operands[0], reader)
    return b.op(op.name, inner, shape=op.result.type.shape, loc=op.loc)


def _is_part(producers: dict[str, Op], operand: str) -> bool:
    op = producers.get(operand[1:]) if operand[0] == "%" else None
    while op is not None and is_view(op):
        if not is_alias(op):
            return True
        operand = op.operands[0]
        op = producers.get(operand[1:]) if operand[0] == "%" else None
    return False


# ------------------------------------------------------------------ regions
class _Regions:
    """The regions of a graph, op by op in its order."""

    def __init__(self, view: View, ctx: PassContext, options: Fuse) -> None:
        self.view, self.ctx, self.options = view, ctx, options
        self.free = free_ops(view.graph)
        self.regions: list[Region] = []
        self.home: dict[str, Region] = {}
        self.last_effect: dict[str, Region] = {}

    def run(self) -> Graph:
        graph = self.view.graph
        for op in graph.ops:
            if not op.results or op.results[0].name not in self.free:
                self._place(op)
        return self._numbered(graph)

    def bases(self, operand: str) -> tuple[str, ...]:
        """Values outside views that an operand is made of."""
        return base_values(operand, self.free)

    # -------------------------------------------------------------- where an op goes
    def _place(self, op: Op) -> None:
        form = form_of(op)
        for region in self._candidates(op, form):
            reason = refusal(self, op, region, self.options.rows, self.options.epilogues)
            reason = reason or self._cycle(op, region)
            if not reason:
                self._add(op, region)
                return
            self.ctx.declined("join", op, f"region {region.number} ({region.form}): {reason}")
        along = form in (Form.POINTWISE, Form.APPEND, Form.REDUCTION)
        new = Region(len(self.regions), Form.ROWS if along else form)
        self.regions.append(new)
        self._add(op, new)

    def _candidates(self, op: Op, form: Form) -> list[Region]:
        """Regions it may join, best first: those of its operands, then row regions over parts of the same
        value, then equal ops."""
        record = lowering_of(op)
        if record is None or form not in (Form.ROWS, Form.REDUCTION, Form.POINTWISE, Form.APPEND):
            return []
        read = (
            op.operands
            if record.rows is None or form is Form.POINTWISE
            else [op.operands[n] for n in record.rows]
        )
        found = [r for o in read for b in self.bases(o) if (r := self.home.get(b)) is not None]
        if record.siblings:
            found += self._siblings(op)
        if record.together:
            found += [r for r in self.regions[-RECENT // 2 :] if all(o.name == op.name for o in r.ops)]
        unique = list({r.number: r for r in found}.values())
        if form is Form.POINTWISE:
            # the latest contraction, else the latest producer: nothing else has to wait for it
            unique.sort(key=lambda r: (r.form is not Form.CONTRACTION, -r.number))
        return unique

    def _siblings(self, op: Op) -> list[Region]:
        """Row regions over parts of the same value: q's and k's rotary and norms, and the append, share one
        kernel."""
        bases = {b for o in op.operands if o[0] == "%" for b in self.bases(o)}
        bases |= {
            x
            for o in op.operands
            for b in self.bases(o)
            if b in self.home
            for x in self._sources(self.home[b])
        }
        bases = {b for b in bases if b in self.home and self.home[b].form is Form.CONTRACTION}
        return [r for r in self.regions[-RECENT:] if r.form is Form.ROWS and bases & self._sources(r)]

    def _sources(self, region: Region) -> set[str]:
        return {b for op in region.ops for o in op.operands for b in self.bases(o)}

    # -------------------------------------------------------------- cycles
    def _cycle(self, op: Op, region: Region) -> str:
        bit = 1 << region.number
        for other in self._waits_for(op):
            if other is not region and other.before & bit:
                return f"it also reads region {other.number}, which depends on region {region.number}"
        return ""

    def _waits_for(self, op: Op) -> list[Region]:
        found = [r for o in op.operands for b in self.bases(o) if (r := self.home.get(b)) is not None]
        if OPS[op.name].state and op.operands[0] in self.last_effect:
            found.append(self.last_effect[op.operands[0]])
        return found

    def _add(self, op: Op, region: Region) -> None:
        for other in self._waits_for(op):
            if other is not region:
                self._wait(region, other.before | 1 << other.number)
        region.add(op, self.view.type)
        for r in op.results:
            self.home[f"%{r.name}"] = region
        if OPS[op.name].state:
            self.last_effect[op.operands[0]] = region

    def _wait(self, region: Region, bits: int) -> None:
        """`region` and all that wait for it also wait for `bits`."""
        own = 1 << region.number
        for r in self.regions:
            if r is region or r.before & own:
                r.before |= bits

    # -------------------------------------------------------------- numbers
    def _numbered(self, graph: Graph) -> Graph:
        number = {id(op): n for n, region in enumerate(self.regions) for op in region.ops}
        self._number_views(graph, number)
        return replace(graph, ops=tuple(replace(op, region=number.get(id(op))) for op in graph.ops))

    def _number_views(self, graph: Graph, number: dict[int, int]) -> None:
        """A view between two ops of one region lies inside it; all others lie between regions."""
        for op in reversed(graph.ops):
            if is_view(op):
                readers = {
                    number.get(id(u)) for r in op.results for u in self.view.users.get(f"%{r.name}", [])
                }
                makers = {
                    number[id(self.view.producers[b[1:]])]
                    for b in self.bases(op.operands[0])
                    if b in self.home
                }
                inside = (readers & makers) - {None}
                if inside:
                    number[id(op)] = inside.pop()  # type: ignore[assignment]
