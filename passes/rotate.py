"""rotate: the residual stream in a basis that spreads outliers (QuaRot, Ashkboos et al. 2024).

In: a captured decoder with RMS norms. Out: the same function. Gains of norms go into the linears that read
them; embedding and linears on the stream are multiplied by a random orthogonal Q, made of Hadamard blocks;
values and the projection after attention by one per head. `online`: what nothing before can take, as the
input of down projections, is rotated at run time by `fwht`. Ops are asked whether they commute with a matrix
along channels (`axis_roles.channel_operands`). Knows no particular op.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Apply, Module, Op, Weight, WeightExpr
from tilewright.ir.graph.live import tidy
from tilewright.ir.ops.base import OPS, Gain
from tilewright.passes.axis_roles import channel_operands
from tilewright.passes.base import Pass, PassContext
from tilewright.passes.channel_factors import Fold, fold_of
from tilewright.passes.lower.record import is_alias
from tilewright.passes.patterns import View
from tilewright.passes.rewrite import Declined
from tilewright.passes.weight_roles import looks_up, product_of

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
        roots = [op for op in self.view.graph.ops if looks_up(op) and op.result.type.rank > 2]
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
        found = channel_operands(op, self.view.type)
        if not found:
            raise Declined(f"{op.name} adds a value to the residual stream that cannot be rotated")
        values = list[str]()
        for n, axis in found.items():
            operand = op.operands[n]
            if operand[0] == "@":
                self._turn(operand, axis, alone=operand != looks_up(op))
            elif axis == self.view.type(operand).rank - 1:
                values.append(operand)
            else:
                raise Declined(f"{op.name} moves the channels of {operand} to another axis")
        return values

    def _read_by(self, v: str) -> Iterable[str]:
        """Values that are in the stream because v is."""
        out: list[str] = []
        last = self.view.type(v).rank - 1
        for op in self.view.users[v]:
            gain, product = OPS[op.name].gain, product_of(op)
            if gain is not None and gain.turns and op.operands[0] == v and op.attr("axis") == last:
                self._norm(op, gain)
            elif product is not None and product[0] == v:
                self._turn(product[1], 1)
            elif (v, last) in ((op.operands[n], a) for n, a in channel_operands(op, self.view.type).items()):
                out.append(f"%{op.result.name}")
            else:
                raise Declined(f"{op.name} reads the residual stream")
        return out

    def _norm(self, op: Op, gain: Gain) -> None:
        result = f"%{op.result.name}"
        products = [product_of(r) for r in self.view.users.get(result, [])]
        if result in self.view.graph.outputs or any(p is None or p[0] != result for p in products):
            raise Declined("a norm has a reader other than a linear")
        given = op.operands[gain.weight :]
        if any(o[0] != "@" or len(self.view.users[o]) > 1 for o in given):
            raise Declined("the weight of a norm is computed or shared")
        if len(given) > 1:
            raise Declined("a norm adds a bias")
        self.normed[result] = op
        for _, w in filter(None, products):
            self._turn(w, 1, gain=op)

    def _turn(self, operand: str, axis: int, gain: Op | None = None, alone: bool = True) -> None:
        """A weight times Q along an axis, after the gain of a norm. A table that also is an embedding gets a
        copy."""
        if operand[0] != "@":
            raise Declined(f"{operand} is computed")
        w, users = self.view.weights[operand[1:]], self.view.users[operand]
        tied = alone and len(users) > 1
        if tied and not (len(users) == 2 and any(looks_up(u) == operand for u in users)):
            raise Declined(f"{operand} has several readers")
        source = w.source if tied else self.made.get(w.name, w.source)
        if gain is not None and (factors := self._gain(gain)) is not None:
            source = Apply("mul", (source, factors))
        n = int(cast(int, w.type.shape[axis]))
        turned = rotated(source, axis, block_of(n), self.seed)
        (self.heads if tied else self.made)[w.name] = turned

    def _gain(self, norm: Op) -> WeightExpr | None:
        """What a norm multiplies its channels by, as a row; None if nothing."""
        found = self._norm_weight(norm)
        if found is None:
            return None
        w, offset = found
        (n,) = w.type.shape
        source: WeightExpr = w.source
        if offset:
            source = Apply("add", (source, Apply("fill", (), (("shape", (n,)), ("value", offset)))))
        return Apply("reshape", (source,), (("shape", (1, n)),))

    def _neutral(self, norm: Op) -> None:
        found = self._norm_weight(norm)
        if found is not None:
            w, offset = found
            fill = (("shape", w.type.shape), ("value", 1.0 - offset))
            self.made[w.name] = Apply("fill", (), fill)

    def _norm_weight(self, norm: Op) -> tuple[Weight, float] | None:
        """The weight of a norm, and the number that is added to it."""
        gain = OPS[norm.name].gain
        assert gain is not None
        if len(norm.operands) <= gain.weight:
            return None
        offset = float(cast(float, norm.attr(gain.offset))) if gain.offset else 0.0
        return self.view.weights[norm.operands[gain.weight][1:]], offset

    # -------------------------------------------------------------- everything else that linears read
    def others(self, ctx: PassContext) -> None:
        """Inputs of linears beside the stream: rotated by the values before attention, else at run time."""
        readers: dict[str, list[Op]] = {}
        weights: dict[str, list[str]] = {}
        for op in self.view.graph.ops:
            product = product_of(op)
            if product is not None and product[0] not in self.stream and product[0] not in self.normed:
                readers.setdefault(product[0], []).append(op)
                weights.setdefault(product[0], []).append(product[1])
        for x, names in weights.items():
            if any(w[0] != "@" or len(self.view.users[w]) > 1 for w in names):
                continue
            block = self._values(x, {w[1:] for w in names})
            if block == 0:
                block = block_of(int(cast(int, self.view.type(x).shape[-1])), ONLINE_BLOCK)
                if block < 2:
                    ctx.declined("rotate online", readers[x][0], "its length is odd")
                    continue
                self.online[x] = block
            for w in names:
                weight = self.view.weights[w[1:]]
                self.made[weight.name] = rotated(self.made.get(weight.name, weight.source), 1, block, 0)

    def _values(self, x: str, readers: set[str]) -> int:
        """The head width by which the rows of a value projection turned what attention gives; 0: none before
        x can."""
        op = self._behind(x)
        found = {} if op is None else channel_operands(op, self.view.type)
        if op is None or OPS[op.name].taken is None or len(found) != 1:
            return 0
        (values,) = (op.operands[n] for n in found)
        maker = self._behind(values, parts=True)
        if maker is None or product_of(maker) is None:
            return 0
        width = int(cast(int, self.view.type(values).shape[-1]))
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

    def _behind(self, x: str, parts: bool = False) -> Op | None:
        """The op that makes x's numbers, behind reshapes and casts; `parts`: also behind slices and
        splits."""
        op = self.view.producer(x)
        while op is not None and (is_alias(op) or _is_cast(op) or parts and _is_part(op)):
            op = self.view.producer(op.operands[0])
        return op

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
        x, weight = product_of(op) or ("", "")
        if x in self.online:
            operands[op.operands.index(x)] = self._fwht(b, x, op)
        if weight[1:] in self.heads:
            w = self.view.weights[weight[1:]]
            operands[op.operands.index(weight)] = b.weight(f"{w.name}.head", w.type, self.heads[w.name])
        changed = tuple(operands) != op.operands
        return replace(op, operands=tuple(operands), passes=(*op.passes, "rotate") if changed else op.passes)

    def _fwht(self, b: GraphBuilder, x: str, reader: Op) -> str:
        key = f"{x}.fwht"
        if key not in b.renamed:
            b.renamed[key] = b.op("fwht", b.mapped(x), block=self.online[x], loc=reader.loc)
        return b.renamed[key]


def _is_cast(op: Op) -> bool:
    return OPS[op.name].moves and OPS[op.name].expr is not None


def _is_part(op: Op) -> bool:
    return OPS[op.name].moves and OPS[op.name].taken is not None


def rotated(
    source: WeightExpr, axis: int, block: int, seed: int, part: tuple[int, int] | None = None
) -> WeightExpr:
    attrs: dict[str, Any] = {"axis": axis, "block": block, "seed": seed}
    if part is not None:
        attrs |= {"start": part[0], "stop": part[1]}
    return Apply("rotate", (source,), tuple(sorted(attrs.items())))
