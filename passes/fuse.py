"""fuse: ops grouped into regions, each of which lowering writes as one kernel.

In: a graph. Out: the same ops with region numbers. Fusion is placement: an anchor decides the loops,
pointwise work is put before or after it. Views (reshape, transpose, slice, split, expand) and constants
belong to no region: readers look through them.

The region forms that lowering must accept:

1. *contraction*: one linear, then pointwise ops, `encode` to a dense form and casts over its result or over
   its equal column parts (gate and up after a split), with other operands of any origin (residual, scales).
   All values that leave the region have one shape. The linear's own operands lie in memory (whole, or
   reshaped).
2. *attention*: one attend_cache or attend, alone; q lies in memory.
3. *rows*: any number of norms, softmaxes, reductions, gathers, select_rows, ropes, `encode`s and pointwise
   ops over values with the same leading axes, in a chain or side by side; several of its values may leave it.
   Statistics are per row. It may hold `cache_append`s, whose k and v are computed inside or are views of
   values in memory, and the rope of q beside them.
4. *single*: everything else, one op each (grouped_linear, matmul, topk, concat, sort, cumsum, conv, pad, …).

A region never waits for itself: a merge that would close a cycle is declined with its reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from tilewright.ir.encodings.dense import Dense
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.ops.base import OPS
from tilewright.ir.ops.common import same_shape
from tilewright.passes.base import Context, Pass
from tilewright.passes.lower.regions import MADE, VIEWS, base_values
from tilewright.passes.patterns import View

CONTRACTIONS = ("linear", "grouped_linear", "matmul")
ATTENTIONS = ("attend_cache", "attend")
NORMS = ("rms_norm", "layer_norm", "softmax", "log_softmax", "rope", "gather", "select_rows", "encode")
REDUCTIONS = ("sum", "mean", "max_reduce", "min_reduce", "prod", "any", "all", "logsumexp", "var")
#: contractions that pointwise work may follow
EPILOGUES = ("linear",)
#: operands that a kernel reads from memory as they are: (op, operand number)
WHOLE = {"linear": 0, "grouped_linear": 0, "attend_cache": 1}


@dataclass(frozen=True)
class Fuse(Pass):
    """Region numbers. `rows`: also fuse work along rows with each other; `epilogues`: put pointwise work
    after contractions."""

    name: ClassVar[str] = "fuse"
    gives: ClassVar[frozenset[str]] = frozenset({"fused"})
    tolerance: ClassVar[float | None] = 0.0

    rows: bool = True
    epilogues: bool = True

    def run(self, module: Module, ctx: Context) -> Module:
        for graph in module.graphs:
            module = materialise(module, module.graph(graph.name))
            regions = _Regions(View(module, module.graph(graph.name)), ctx, self)
            module = module.replace_graph(regions.run())
        return module


def kind_of(op: Op) -> str:
    """Which form of region an op asks for: contraction, attention, rows, append, pointwise or single."""
    if op.name in CONTRACTIONS:
        return "contraction"
    if op.name in ATTENTIONS:
        return "attention"
    if op.name == "cache_append":
        return "append"
    if op.name == "encode" and isinstance(op.result.type.encoding, Dense):
        return "pointwise"
    if op.name in NORMS or op.name in REDUCTIONS:
        return "rows"
    record = OPS.get(op.name)
    pointwise = record is not None and record.expr is not None or op.name == "decode"
    return "pointwise" if pointwise else "single"


# ------------------------------------------------------------------ operands that must lie in memory
def materialise(module: Module, graph: Graph) -> Module:
    """A copy (`decode` of a dense value) of each view that a contraction or attention reads whole: a part of
    a wider value."""
    producers = graph.producers()
    needed = [
        (op, n)
        for op in graph.ops
        if (n := WHOLE.get(op.name)) is not None and _is_part(producers, op.operands[n])
    ]
    if not needed:
        return module
    todo = {id(op): n for op, n in needed}
    b = GraphBuilder.over(module, graph, "fuse")
    copies: dict[str, str] = {}
    for op in graph.ops:
        n = todo.get(id(op))
        if n is not None:
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
    if op.name != "reshape":
        return b.op("decode", b.mapped(operand), loc=reader.loc)
    inner = _copied(b, producers, op.operands[0], reader)
    return b.op("reshape", inner, shape=op.result.type.shape, loc=op.loc)


def _is_part(producers: dict[str, Op], operand: str) -> bool:
    op = producers.get(operand[1:]) if operand[0] == "%" else None
    while op is not None and op.name in VIEWS:
        if op.name != "reshape":
            return True
        operand = op.operands[0]
        op = producers.get(operand[1:]) if operand[0] == "%" else None
    return False


# ------------------------------------------------------------------ regions
@dataclass
class _Region:
    """`before`: numbers of all regions this one waits for, as bits."""

    number: int
    kind: str
    ops: list[Op] = field(default_factory=list)
    before: int = 0
    lead: tuple[object, ...] | None = None


@dataclass
class _Regions:
    view: View
    ctx: Context
    options: Fuse
    regions: list[_Region] = field(default_factory=list)
    home: dict[str, _Region] = field(default_factory=dict)
    last_effect: dict[str, _Region] = field(default_factory=dict)

    def run(self) -> Graph:
        graph = self.view.graph
        self.free = {
            r.name: op for op in graph.ops if op.name in VIEWS or op.name in MADE for r in op.results
        }
        for op in graph.ops:
            if op.name not in VIEWS and op.name not in MADE:
                self._place(op)
        return self._numbered(graph)

    # -------------------------------------------------------------- where an op goes
    def _place(self, op: Op) -> None:
        kind = kind_of(op)
        for region in self._candidates(op, kind):
            reason = self._refusal(op, kind, region)
            if not reason:
                self._add(op, region)
                return
            self.ctx.declined("join", op, f"region {region.number} ({region.kind}): {reason}")
        new = _Region(len(self.regions), "rows" if kind in ("pointwise", "append") else kind)
        self.regions.append(new)
        self._add(op, new)

    def _candidates(self, op: Op, kind: str) -> list[_Region]:
        """Regions it may join, best first: those of its operands, then row regions over parts of the same
        value."""
        if kind not in ("rows", "pointwise", "append"):
            return []
        operands = (
            op.operands[1:3] if kind == "append" else op.operands if kind == "pointwise" else op.operands[:1]
        )
        found: list[_Region] = []
        for o in operands:
            found += [r for b in base_values(o, self.free) if (r := self.home.get(b)) is not None]
        if kind == "append" or op.name in ("rope", "rms_norm", "decode"):
            found += self._siblings(op)
        if op.name == "select_rows":
            found += [r for r in self.regions[-4:] if all(o.name == "select_rows" for o in r.ops)]
        unique = list({r.number: r for r in found}.values())
        if (
            kind == "pointwise"
        ):  # the latest contraction, else the latest producer: nothing else has to wait for it
            unique.sort(key=lambda r: (r.kind != "contraction", -r.number))
        return unique

    def _siblings(self, op: Op) -> list[_Region]:
        """Row regions over parts of the same value: q's and k's rotary and norms, and the append, share one
        kernel."""
        bases = {b for o in op.operands if o[0] == "%" for b in base_values(o, self.free)}
        bases |= {
            x
            for o in op.operands
            for b in base_values(o, self.free)
            if b in self.home
            for x in self._sources(self.home[b])
        }
        bases = {b for b in bases if b in self.home and self.home[b].kind == "contraction"}
        return [r for r in self.regions[-8:] if r.kind == "rows" and bases & self._sources(r)]

    def _sources(self, region: _Region) -> set[str]:
        return {b for op in region.ops for o in op.operands for b in base_values(o, self.free)}

    def _refusal(self, op: Op, kind: str, region: _Region) -> str:
        """Why the op may not join, or an empty string."""
        if region.kind == "contraction":
            if not self.options.epilogues or kind != "pointwise":
                return "only pointwise work follows a contraction in its kernel"
            reason = self._epilogue_refusal(op, region)
        elif region.kind == "rows":
            reason = "" if self.options.rows else "fusion along rows is off"
            reason = reason or self._rows_refusal(op, kind, region)
        else:
            return f"a region of kind {region.kind} holds one op"
        return reason or self._cycle(op, region)

    def _epilogue_refusal(self, op: Op, region: _Region) -> str:
        """The result's rows are the contraction's, its columns all of them or one of the equal parts that the
        region works on."""
        anchor = region.ops[0]
        if anchor.name not in EPILOGUES:
            return f"{anchor.name} stands alone in its kernel"
        shape, whole = op.result.type.shape, anchor.result.type.shape
        if len(shape) != len(whole) or not same_shape(shape[:-1], whole[:-1]):
            return f"its shape {list(shape)} has other rows than {list(whole)}"
        part, n = shape[-1], whole[-1]
        if not isinstance(part, int) or not isinstance(n, int) or n % part:
            return f"{part} columns are no part of {n}"
        for o in op.operands:
            for b in base_values(o, self.free):
                if self.home.get(b) is region and not self._plain_parts(o, b, part):
                    return f"it reads {b} through a view that is not an equal part of its columns"
        if len(op.operands) and self._other_width_leaves(region, op, part):
            return "values of two widths would leave the region"
        return ""

    def _plain_parts(self, operand: str, base: str, part: int) -> bool:
        """Whether `operand` is `base` itself or a column part at a multiple of the part's width."""
        if operand == base:
            return True
        view = self.free[operand[1:]]
        if (
            view.operands[0] != base
            or view.name not in ("split", "slice")
            or view.attr("axis") != view.results[0].type.rank - 1
        ):
            return False
        if view.name == "slice":
            start = view.attr("start")
            return view.attr("step") == 1 and isinstance(start, int) and start % part == 0
        return all(s == part for s in view.attr("sizes"))  # type: ignore[attr-defined]

    def _other_width_leaves(self, region: _Region, op: Op, part: int) -> bool:
        """Values of the region whose last axis differs from the new result's must be read by this region
        alone."""
        inside = {id(o) for o in region.ops} | {id(op)}
        for member in region.ops:
            for r in member.results:
                if r.type.shape[-1] != part and not self._only_inside(f"%{r.name}", inside):
                    return True
        return False

    def _only_inside(self, operand: str, inside: set[int]) -> bool:
        if operand in self.view.graph.outputs:
            return False
        for user in self.view.users.get(operand, []):
            if user.name in VIEWS:
                if not all(self._only_inside(f"%{r.name}", inside) for r in user.results):
                    return False
            elif id(user) not in inside and not self._will_follow(user, inside):
                return False
        return True

    def _will_follow(self, user: Op, inside: set[int]) -> bool:
        """A reader not placed yet that only reads this region and is itself pointwise: the other half of gate
        * up."""
        if kind_of(user) != "pointwise" or any(f"%{r.name}" in self.home for r in user.results):
            return False
        makers = [b for o in user.operands for b in base_values(o, self.free)]
        return all(
            b in self.home and id(self.view.producers[b[1:]]) in inside or b not in self.home for b in makers
        )

    def _rows_refusal(self, op: Op, kind: str, region: _Region) -> str:
        lead = self._lead(op)
        if region.lead is not None and lead is not None and not _prefix(lead, region.lead):
            return f"its leading axes {list(lead)} are not {list(region.lead)}"
        if kind == "rows" and op.name in (*REDUCTIONS, "softmax", "log_softmax") and not _last(op):
            return f"{op.name} does not work along the last axis"
        if (
            kind in ("rows", "pointwise")
            and op.name != "rope"
            and any(self._recut(o, region) for o in op.operands)
        ):
            return "its rows are cut out of values of another shape"
        if op.name in ("select_rows", "gather") and self._inside(op.operands[0], region):
            return "rows are picked from values in memory"
        if any(n.name in REDUCTIONS and not _last(n) for n in region.ops):
            return "it holds a reduction along an inner axis"
        return ""

    def _recut(self, operand: str, region: _Region) -> bool:
        """Whether a view between a value of the region and its reader changes the length of rows."""
        return any(
            self.home.get(b) is region and operand != b and self._reshaped(operand)
            for b in base_values(operand, self.free)
        )

    def _reshaped(self, operand: str) -> bool:
        op = self.free.get(operand[1:])
        while op is not None and op.name in VIEWS:
            old = self.view.type(op.operands[0]).shape
            if op.name == "reshape" and old[-1:] != op.result.type.shape[-1:]:
                return True
            op = self.free.get(op.operands[0][1:])
        return False

    def _inside(self, operand: str, region: _Region) -> bool:
        return any(self.home.get(b) is region for b in base_values(operand, self.free))

    def _lead(self, op: Op) -> tuple[object, ...] | None:
        """Leading axes of what the op makes: tokens, for values per head too."""
        if op.name == "cache_append":
            return self.view.type(op.operands[1]).shape[:1]
        shape = op.results[0].type.shape
        if not shape:
            return None
        return shape[:1] if op.name in ("rope",) or len(shape) == 3 else shape[:-1]

    # -------------------------------------------------------------- cycles
    def _cycle(self, op: Op, region: _Region) -> str:
        bit = 1 << region.number
        for other in self._waits_for(op):
            if other is not region and other.before & bit:
                return f"it also reads region {other.number}, which waits for region {region.number}"
        return ""

    def _waits_for(self, op: Op) -> list[_Region]:
        found = [
            r for o in op.operands for b in base_values(o, self.free) if (r := self.home.get(b)) is not None
        ]
        if OPS[op.name].state and op.operands[0] in self.last_effect:
            found.append(self.last_effect[op.operands[0]])
        return found

    def _add(self, op: Op, region: _Region) -> None:
        for other in self._waits_for(op):
            if other is not region:
                self._wait(region, other.before | 1 << other.number)
        region.ops.append(op)
        if region.lead is None:
            region.lead = self._lead(op)
        for r in op.results:
            self.home[f"%{r.name}"] = region
        if OPS[op.name].state:
            self.last_effect[op.operands[0]] = region

    def _wait(self, region: _Region, bits: int) -> None:
        """`region` and all that wait for it also wait for `bits`."""
        own = 1 << region.number
        for r in self.regions:
            if r is region or r.before & own:
                r.before |= bits

    def _numbered(self, graph: Graph) -> Graph:
        number: dict[int, int] = {}
        order: dict[int, int] = {}
        for region in self.regions:
            for op in region.ops:
                number[id(op)] = order.setdefault(region.number, len(order))
        self._number_views(graph, number)
        return replace(graph, ops=tuple(_with_region(op, number.get(id(op))) for op in graph.ops))

    def _number_views(self, graph: Graph, number: dict[int, int]) -> None:
        """A view between two ops of one region lies inside it; all others lie between regions."""
        for op in reversed(graph.ops):
            if op.name in VIEWS:
                readers = {
                    number.get(id(u)) for r in op.results for u in self.view.users.get(f"%{r.name}", [])
                }
                makers = {
                    number[id(self.view.producers[b[1:]])]
                    for b in base_values(op.operands[0], self.free)
                    if b in self.home
                }
                inside = (readers & makers) - {None}
                if inside:
                    number[id(op)] = inside.pop()  # type: ignore[assignment]


def _with_region(op: Op, region: int | None) -> Op:
    return replace(op, region=region)


def _last(op: Op) -> bool:
    """Whether a reduction or softmax works along the last axis of its operand alone."""
    attrs = dict(op.attrs)
    axes = attrs.get("axes")
    removed = len(axes) if isinstance(axes, tuple) and not attrs.get("keepdims", True) else 0
    rank = op.result.type.rank + removed
    return attrs["axes"] == (rank - 1,) if "axes" in attrs else attrs.get("axis") == rank - 1


def _prefix(a: Sequence[object], b: Sequence[object]) -> bool:
    """Whether the shorter list starts the longer."""
    return bool(a) and bool(b) and all(x == y for x, y in zip(a, b, strict=False))


__all__ = ["Fuse", "kind_of", "materialise"]
