"""reduce-tokens: later layers of an encoder compute fewer tokens.

In: a graph whose attention is recognised, and the text of a reducer. Out: the same with cuts: after an
attention, where one value carries the tokens, they are scored, and kept or merged. Every later op works on
what is left, by its axis roles; what it reads that is older is cut in the same way when it is read. Which
tokens are left, every row of a batch chooses for itself; how many, the shapes say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.graph.live import tidy
from tilewright.ir.ops.base import OPS, AxisRole, OpTypeError
from tilewright.passes.axis_roles import SEPARATE, roles_of
from tilewright.passes.base import Pass, PassContext
from tilewright.passes.patterns import View, where
from tilewright.passes.reduce_token_axes import Encoder, encoders, narrowest
from tilewright.passes.reduce_token_stages import Stages
from tilewright.passes.reducers import Cut, Reducer, parse_reducer


@dataclass(frozen=True)
class ReduceTokens(Pass):
    """Cut tokens as `tokens` says, such as `evit(keep=0.7)`; empty: all stay."""

    name: ClassVar[str] = "reduce-tokens"
    needs: ClassVar[frozenset[str]] = frozenset({"recognised", "sequences", "unfused"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical", "no-token-choice"})
    tolerance: ClassVar[float | None] = None

    tokens: str = ""

    def run(self, module: Module, ctx: PassContext) -> Module:
        if not self.tokens:
            return module
        reducer = parse_reducer(self.tokens)
        for graph in module.graphs:
            view = View(module, graph)
            found = encoders(view)
            if not found:
                raise RefusedError(
                    f"no self-attention is recognised in graph @{graph.name}, so its tokens are unknown",
                    "reduce-tokens",
                    "`tilewright inspect --notes`, or `notes` of what `compile` returns, says what recognise "
                    "declined and why",
                )
            for other in found[1:]:
                ctx.declined("cut", graph.ops[other.layers[0]], "another encoder has more layers")
            module = tidy(_Cutting(view, found[0], reducer, ctx).run())
        return module


class _Cutting:
    """One graph being rewritten."""

    def __init__(self, view: View, encoder: Encoder, reducer: Reducer, ctx: PassContext) -> None:
        self.view, self.encoder, self.reducer, self.ctx = view, encoder, reducer, ctx
        self.b = GraphBuilder.over(view.module, view.graph, ReduceTokens.name)
        tokens = view.type(view.graph.ops[encoder.layers[0]].operands[0]).shape[1]
        if not isinstance(tokens, int):
            raise RefusedError(
                f"the number of tokens, {tokens}, is known at run time only", "reduce-tokens",
                "give the module a fixed number of tokens: leave that size out of dynamic_shapes",
            )  # fmt: skip
        self.stages = Stages(self.b, view, encoder, tokens, reducer.protect)
        self.events = self._events(tokens)

    def _events(self, tokens: int) -> Mapping[int, Callable[[], None]]:
        """What happens before which op."""
        layers = len(self.encoder.layers)
        out: dict[int, Callable[[], None]] = {}
        for cut in self.reducer.cuts(layers, tokens):
            if self.reducer.restore and cut.layer == layers - 1:
                self.ctx.declined("cut", self._layer(cut.layer), "tokens are restored after the last layer")
                continue
            place, value = narrowest(self.view, self.encoder, cut.layer)
            out[place] = partial(self._cut, cut, value)
        if self.reducer.restore and out:
            place, value = narrowest(self.view, self.encoder, layers - 1)
            out[place] = partial(self._restore, value)
        return out

    def _layer(self, layer: int) -> Op:
        return self.view.graph.ops[self.encoder.layers[layer]]

    # -------------------------------------------------------------- the walk
    def run(self) -> Module:
        graph, layers = self.view.graph, set(self.encoder.layers)
        for n, op in enumerate(graph.ops):
            self._happen(n)
            self.b.loc = op.loc
            if n in layers:
                self._attend(op)
            else:
                self._copy(op)
        self._happen(len(graph.ops))
        self._outputs(graph)
        return self.b.module()

    def _happen(self, place: int) -> None:
        if place in self.events:
            self.events[place]()

    def _copy(self, op: Op) -> None:
        """The op on operands that have all been cut as often as the latest of them."""
        stage = max((self.stages.of(o) for o in op.operands), default=0)
        if stage:
            self._check(op)
        operands = tuple(self.stages.at(o, stage) for o in op.operands)
        self._append(op, operands, stage)

    def _append(self, op: Op, operands: tuple[str, ...], stage: int) -> None:
        sizes = self._sizes(op, stage)
        try:
            self.b.copy(replace(op, operands=operands), **sizes)
        except OpTypeError as why:
            raise self._refused(op, str(why)) from why
        for r in op.results:
            self.stages.define(f"%{r.name}", stage)

    def _sizes(self, op: Op, stage: int) -> dict[str, Any]:
        """Shapes among the attributes, with the number of tokens that are left."""
        axes = self.encoder.of(f"%{op.results[0].name}") if stage and op.results else ()
        out: dict[str, Any] = {}
        for key, value in op.attrs:
            if OPS[op.name].attrs[key].kind == "dims" and axes and isinstance(value, tuple):
                rank = op.results[0].type.rank
                if len(value) == rank and value == op.results[0].type.shape:
                    left = self.stages.tokens[stage]
                    out[key] = tuple(left if n in axes else d for n, d in enumerate(value))
        return out

    def _check(self, op: Op) -> None:
        """Refuse an op that works along tokens that are not all there."""
        for operand, roles in zip(op.operands, roles_of(op, self.view.type), strict=True):
            for axis in self.encoder.of(operand) if self.stages.of(operand) else ():
                if not self._may_work(op, roles[axis]):
                    raise self._refused(op, f"it needs every token of {operand}")

    def _may_work(self, op: Op, role: AxisRole) -> bool:
        """Whether an op may see the cut axis: it keeps or reduces it, or takes protected tokens alone."""
        if role[0] in (*SEPARATE, "reduce"):
            return True
        record = OPS[op.name]
        types = [self.view.type(o) for o in op.operands]
        taken = record.taken(types, dict(op.attrs), 0) if record.taken else None
        return taken is not None and all(taken[1] < self.reducer.protect)

    def _refused(self, op: Op, why: str) -> RefusedError:
        hint = "" if self.reducer.restore else "add restore=true, as in evit(keep=0.7, restore=true)"
        return RefusedError(f"{op.name} cannot follow a cut of its tokens: {why}", where(op), hint)

    def _outputs(self, graph: Graph) -> None:
        for n, o in enumerate(graph.outputs):
            if self.stages.of(o) and self.encoder.of(o):
                name = graph.results[n] if graph.results else o
                raise RefusedError(
                    f"result {name} has an entry for every token", "reduce-tokens",
                    "add restore=true, as in evit(keep=0.7, restore=true): tokens that were cut come back "
                    "after the last layer",
                )  # fmt: skip
            self.b.output(self.stages.at(o, self.stages.of(o)), graph.results[n] if graph.results else None)

    # -------------------------------------------------------------- attention and what follows it
    def _attend(self, op: Op) -> None:
        stage = self.stages.of(op.operands[0])
        if stage and (op.attr("window") or op.attr("bias") == "alibi"):
            raise self._refused(op, "its window or slopes count tokens that are no longer there")
        if stage and op.attr("causal") and self.stages.merged:
            raise self._refused(op, "it is causal, and merged tokens have no place in the order")
        stage = max(self.stages.of(o) for o in op.operands)
        operands = self.stages.attended(op, stage)
        sized = self.stages.sized_bias(op, operands, stage)
        if sized is None:
            self._append(op, operands, stage)
            return
        new, operands = sized
        self._append(new, operands, stage)

    def _cut(self, cut: Cut, value: str) -> None:
        layer = self._layer(cut.layer)
        before = self.stages.tokens[-1]
        left = cut.count(before, self.reducer.protect)
        if left >= before:
            self.ctx.declined("cut", layer, f"all {before} tokens are kept")
            return
        self.b.loc = layer.loc
        self.stages.cut(cut, layer, value, left)
        self.ctx.applied("cut", layer, f"{before} to {left} tokens after layer {cut.layer}, {cut.words()}")

    def _restore(self, value: str) -> None:
        if len(self.stages.tokens) == 1:
            return
        layer = self._layer(len(self.encoder.layers) - 1)
        self.b.loc = layer.loc
        now = self.stages.tokens[-1]
        self.stages.restore(value)
        self.ctx.applied("restore", layer, f"{now} to {self.stages.tokens[0]} tokens after the last layer")
