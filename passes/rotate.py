"""rotate: the residual stream in a basis that spreads outliers (QuaRot, Ashkboos et al. 2024).

In: a captured decoder with RMS norms. Out: the same function. Gains of norms go into the linears that read
them; embedding and linears on the stream are multiplied by a random orthogonal Q, made of Hadamard blocks;
values and the projection after attention by one per head. `online`: what nothing before can take, as the
input of down projections, is rotated at run time by `fwht`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Apply, Module, Op, Weight, WeightExpr
from tilewright.ir.graph.live import tidy
from tilewright.passes.base import Pass, PassContext
from tilewright.passes.channel_factors import Fold, fold_of
from tilewright.passes.patterns import View
from tilewright.passes.rewrite import Declined

#: the largest block of an online rotation
ONLINE_BLOCK = 256


def block_of(n: int, most: int = 1 << 30) -> int:
    """The largest power of two that divides n."""
    return min(n & -n, most)


@dataclass(frozen=True)
class Rotate(Pass):
    """Rotate the residual stream, or note why that is not possible."""

    name: ClassVar[str] = "rotate"
    needs: ClassVar[frozenset[str]] = frozenset({"recognised", "sequences", "unfused", "unsolved-weights"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical", "no-fwht"})
    tolerance: ClassVar[float | None] = 1e-4

    online: bool = True
    seed: int = 1

    def run(self, module: Module, ctx: PassContext) -> Module:
        (graph, *others) = module.graphs
        try:
            if others:
                raise Declined("the module has several graphs")
            plan = _Plan(View(module, graph), self.seed)
            plan.spread()
        except Declined as why:
            ctx.declined("rotate", f"@{graph.name}", str(why))
            return module
        if self.online:
            plan.others(ctx)
        ctx.applied(
            "rotate", f"@{graph.name}", f"{len(plan.made)} weights, {len(plan.online)} values at run time"
        )
        return tidy(plan.module())


@dataclass
class _Plan:
    """What becomes of weights and values. `stream`: values in the other basis; `normed`: their norms, without
    gains."""

    view: View
    seed: int
    stream: set[str] = field(default_factory=set)
    normed: dict[str, Op] = field(default_factory=dict)
    made: dict[str, WeightExpr] = field(default_factory=dict)
    heads: dict[str, WeightExpr] = field(default_factory=dict)
    online: dict[str, int] = field(default_factory=dict)

    # -------------------------------------------------------------- the stream
    def spread(self) -> None:
        """Everything that must turn if the embedding does. Declined names what cannot."""
        roots = [
            op
            for op in self.view.graph.ops
            if op.name == "gather" and op.operands[0][0] == "@" and op.result.type.rank > 2
        ]
        if len(roots) != 1 or roots[0].attr("axis") != 0:
            raise Declined(f"{len(roots)} embeddings start the residual stream, expected one")
        work = [f"%{roots[0].result.name}"]
        while work:
            v = work.pop()
            if v not in self.stream:
                self.stream.add(v)
                work += [*self._made_from(v), *self._read_by(v)]
        for op in self.normed.values():
            self._neutral(op)

    def _made_from(self, v: str) -> Iterable[str]:
        """Values that must be in the stream for v to be: its producer turns them, or is turned."""
        op = self.view.producer(v)
        if op is None or v in self.view.graph.outputs:
            raise Declined(f"{v} is an input or a result of the graph")
        if op.name == "add":
            if any(self.view.type(o).shape != op.result.type.shape for o in op.operands):
                raise Declined(f"{v} adds a broadcast value")
            return op.operands
        if op.name in ("slice", "cast", "select_rows") or op.name == "gather" and op.operands[0][0] == "%":
            return op.operands[:1]
        if op.name == "mul" and self.view.scalar(op.operands[1]) is not None:
            return op.operands[:1]
        if op.name == "gather":
            self._turn(op.operands[0], 1, alone=False)
            return ()
        if op.name == "linear":
            for o in op.operands[1:]:
                self._turn(o, 0)
            return ()
        raise Declined(f"{op.name} adds a value to the residual stream that cannot be rotated")

    def _read_by(self, v: str) -> Iterable[str]:
        """Values that are in the stream because v is."""
        out: list[str] = []
        for op in self.view.users[v]:
            last = op.result.type.rank - 1
            if op.name == "rms_norm" and op.operands[0] == v and op.attr("axis") == last:
                self._norm(op)
            elif op.name == "linear" and op.operands[0] == v:
                self._turn(op.operands[1], 1)
            elif (
                op.name in ("add", "cast", "select_rows", "mul")
                or op.name in ("gather", "slice")
                and op.attr("axis") != last
            ):
                out.append(f"%{op.result.name}")
            else:
                raise Declined(f"{op.name} reads the residual stream")
        return out

    def _norm(self, op: Op) -> None:
        result = f"%{op.result.name}"
        readers = self.view.users.get(result, [])
        if result in self.view.graph.outputs or any(
            r.name != "linear" or r.operands[0] != result for r in readers
        ):
            raise Declined("a norm has a reader other than a linear")
        if len(op.operands) > 1 and (op.operands[1][0] != "@" or len(self.view.users[op.operands[1]]) > 1):
            raise Declined("the weight of a norm is computed or shared")
        self.normed[result] = op
        for reader in readers:
            self._turn(reader.operands[1], 1, gain=op)

    def _turn(self, operand: str, axis: int, gain: Op | None = None, alone: bool = True) -> None:
        """A weight times Q along an axis, after the gain of a norm. A table that also is an embedding gets a
        copy."""
        if operand[0] != "@":
            raise Declined(f"{operand} is computed")
        w = self.view.weights[operand[1:]]
        axis = min(axis, w.type.rank - 1)
        tied = alone and len(self.view.users[operand]) > 1
        if tied and not (
            len(self.view.users[operand]) == 2 and any(u.name == "gather" for u in self.view.users[operand])
        ):
            raise Declined(f"{operand} has several readers")
        source = w.source if tied else self.made.get(w.name, w.source)
        if gain is not None and len(gain.operands) > 1:
            source = Apply("mul", (source, self._gain(gain)))
        n = int(cast(int, w.type.shape[axis]))
        turned = rotated(source, axis, block_of(n), self.seed)
        (self.heads if tied else self.made)[w.name] = turned

    def _gain(self, norm: Op) -> WeightExpr:
        w = self.view.weights[norm.operands[1][1:]]
        (n,) = w.type.shape
        offset = float(cast(float, norm.attr("offset")))
        source: WeightExpr = w.source
        if offset:
            source = Apply("add", (source, Apply("fill", (), (("shape", (n,)), ("value", offset)))))
        return Apply("reshape", (source,), (("shape", (1, n)),))

    def _neutral(self, norm: Op) -> None:
        if len(norm.operands) > 1:
            w = self.view.weights[norm.operands[1][1:]]
            value = 1.0 - float(cast(float, norm.attr("offset")))
            self.made[w.name] = Apply("fill", (), (("shape", w.type.shape), ("value", value)))

    # -------------------------------------------------------------- everything else that linears read
    def others(self, ctx: PassContext) -> None:
        """Inputs of linears beside the stream: rotated by the values before attention, else at run time."""
        readers: dict[str, list[Op]] = {}
        for op in self.view.graph.ops:
            if (
                op.name == "linear"
                and op.operands[0] not in self.stream
                and op.operands[0] not in self.normed
            ):
                readers.setdefault(op.operands[0], []).append(op)
        for x, ops in readers.items():
            names = [op.operands[1] for op in ops]
            if any(w[0] != "@" or len(self.view.users[w]) > 1 for w in names):
                continue
            block = self._values(x, {w[1:] for w in names})
            if block == 0:
                block = block_of(int(cast(int, self.view.type(x).shape[-1])), ONLINE_BLOCK)
                if block < 2:
                    ctx.declined("fwht", ops[0], "its length is odd")
                    continue
                self.online[x] = block
            for w in names:
                weight = self.view.weights[w[1:]]
                self.made[weight.name] = rotated(self.made.get(weight.name, weight.source), 1, block, 0)

    def _values(self, x: str, readers: set[str]) -> int:
        """The head width by which the rows of a value projection turned what attention gives; 0: none before
        x can."""
        op = self.view.producer(x)
        while op is not None and op.name in ("reshape", "cast"):
            op = self.view.producer(op.operands[0])
        if op is None or op.name != "attend":
            return 0
        width = int(cast(int, self.view.type(op.operands[2]).shape[-1]))
        try:
            fold: Fold = fold_of(self.view, x, readers)
        except Declined:
            return 0
        if fold.norm or block_of(width) != width:
            return 0
        for name in filter(None, (fold.weight, fold.bias)):
            weight = self.view.weights[name]
            self.made[name] = rotated(
                self.made.get(name, weight.source), 0, width, 0, (fold.lo, fold.lo + fold.size)
            )
        return width

    # -------------------------------------------------------------- the new module
    def module(self) -> Module:
        view = self.view
        b = GraphBuilder.over(view.module, view.graph, "rotate")
        for op in view.graph.ops:
            b.append(self._copied(b, op))
        for n, o in enumerate(view.graph.outputs):
            b.output(b.mapped(o), view.graph.results[n] if view.graph.results else None)
        out = b.module()
        return replace(
            out, weights=tuple(replace(w, source=self.made.get(w.name, w.source)) for w in out.weights)
        )

    def _copied(self, b: GraphBuilder, op: Op) -> Op:
        """The op on rotated inputs; a tied head reads its own copy of the table."""
        operands = [b.mapped(o) for o in op.operands]
        if op.name == "linear" and op.operands[0] in self.online:
            operands[0] = self._fwht(b, op)
        if op.name == "linear" and op.operands[1][1:] in self.heads:
            w: Weight = self.view.weights[op.operands[1][1:]]
            operands[1] = b.weight(f"{w.name}.head", w.type, self.heads[w.name])
        changed = tuple(operands) != op.operands
        return replace(op, operands=tuple(operands), passes=(*op.passes, "rotate") if changed else op.passes)

    def _fwht(self, b: GraphBuilder, op: Op) -> str:
        key = f"{op.operands[0]}.fwht"
        if key not in b.renamed:
            b.renamed[key] = b.op(
                "fwht", b.mapped(op.operands[0]), block=self.online[op.operands[0]], loc=op.loc
            )
        return b.renamed[key]


def rotated(
    source: WeightExpr, axis: int, block: int, seed: int, part: tuple[int, int] | None = None
) -> WeightExpr:
    attrs: dict[str, Any] = {"axis": axis, "block": block, "seed": seed}
    if part is not None:
        attrs |= {"start": part[0], "stop": part[1]}
    return Apply("rotate", (source,), tuple(sorted(attrs.items())))
