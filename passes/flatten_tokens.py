"""flatten-tokens: merges batch and sequence into one token axis `T`, for any mix of sequences in a step.

In: a graph over [B, S, …] values. Out: the same over [T, …], with `seq` (whose token) and `pos` as inputs to
attention. Each op's axis roles decide: one that keeps the token axes runs as it is, and one that takes tokens
together is refused with its source line, unless its rules have a flat form. Knows no particular op.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.graph.live import tidy
from tilewright.ir.ops.base import OPS, Array, OpTypeError
from tilewright.ir.plan.step import MOST_TOKENS, STEP_INPUTS
from tilewright.ir.types import TensorType, symbol
from tilewright.passes.base import CheckCase, Pass, PassContext
from tilewright.passes.patterns import View, where
from tilewright.passes.rules import rules_of
from tilewright.passes.tokens import Axes, Flattening, Mixes, pairs_shape, stretches


@dataclass(frozen=True)
class FlattenTokens(Pass):
    """Merge batch and sequence into one token axis. `graph`: which graph; `batch`, `seq`: the names of its
    symbols."""

    name: ClassVar[str] = "flatten-tokens"
    needs: ClassVar[frozenset[str]] = frozenset({"recognised", "sequences", "unfused"})
    gives: ClassVar[frozenset[str]] = frozenset({"flat-tokens"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical", "sequences"})

    graph: str = "forward"
    batch: str = "B"
    seq: str = "S"
    max_tokens: int = MOST_TOKENS

    def run(self, module: Module, ctx: PassContext) -> Module:
        graph = module.graph(self.graph)
        b = GraphBuilder.over(module, graph, self.name, inputs=False)
        b.symbol("T", 1, self.max_tokens)
        for name in (self.batch, self.seq):
            b.symbols.pop(name, None)
        state = _Flatten(View(module, graph), b, Axes(symbol(self.batch), symbol(self.seq), symbol("T")))
        state.run(graph)
        return tidy(b.module())

    def adapt(
        self, before: Module, after: Module, graph: str, inputs: Mapping[str, Array]
    ) -> CheckCase | None:
        if graph != self.graph:
            return None
        axes = Axes(symbol(self.batch), symbol(self.seq), symbol("T"))
        flat: dict[str, Array] = {}
        lead = (1, 1)
        for v in before.graph(graph).inputs:
            if stretches(axes, v.type):
                lead = cast("tuple[int, int]", tuple(inputs[v.name].shape[:2]))
                flat[v.name] = inputs[v.name].reshape(-1, *inputs[v.name].shape[2:])
            else:
                flat[v.name] = inputs[v.name]
        tokens = np.arange(lead[0] * lead[1], dtype=np.int32)
        names = {v.name for v in after.graph(graph).inputs}
        own = {
            "seq": tokens // lead[1],
            "pos": tokens % lead[1],
            "length": np.full(len(tokens), lead[1], np.int32),
        }
        flat.update({k: x for k, x in own.items() if k in names})
        old, new = before.graph(graph), after.graph(graph)
        types = {n: before.operand_type(old, o) for n, o in zip(_result_names(old), old.outputs, strict=True)}

        def back(results: Mapping[str, Array]) -> Mapping[str, Array]:
            named = dict(zip(types, (results[n] for n in _result_names(new)), strict=True))
            return {n: x.reshape(_unflat(x, types[n], axes, lead)) for n, x in named.items()}

        return CheckCase(graph, flat, back)


def _unflat(x: Array, t: TensorType, axes: Axes, lead: tuple[int, int]) -> tuple[int, ...]:
    """The shape of a result before flattening, whose tokens stood first."""
    if not stretches(axes, t):
        return x.shape
    return (*lead, *x.shape[1:]) if len(axes.tokens(t)) == 2 else x.shape


def _result_names(graph: Graph) -> tuple[str, ...]:
    return graph.results or tuple(o[1:] for o in graph.outputs)


class _Flatten(Flattening):
    """The walk over the old graph."""

    def run(self, graph: Graph) -> None:
        self._inputs(graph)
        for op in graph.ops:
            self.b.loc = op.loc
            try:
                self._op(op)
            except (Mixes, OpTypeError) as why:  # a type that no longer fits: the op took the two axes apart
                hint = "only attention may read other tokens; compile this graph as a plain module instead"
                raise RefusedError(f"op {op.name} mixes tokens: {why}", where(op), hint) from None
        for n, o in enumerate(graph.outputs):
            self.b.output(self.b.mapped(o), graph.results[n] if graph.results else None)

    # -------------------------------------------------------------- inputs
    def _inputs(self, graph: Graph) -> None:
        for v in graph.inputs:
            if stretches(self.axes, v.type):
                self.b.add_input(v.name, self._input_type(v.name, v.type))
                self.tokens.add(f"%{v.name}")
            else:
                self.b.add_input(v.name, v.type)
        forms = [(op, form) for op in graph.ops if (form := rules_of(op).flat) is not None]
        wanted = {name for op, form in forms for name in form.inputs(self.axes, op)}
        for name in sorted(wanted, key=list(STEP_INPUTS).index):
            if f"%{name}" not in self.tokens:
                self.b.add_input(name, TensorType("i32", (self.axes.token,)))

    def _input_type(self, name: str, t: TensorType) -> TensorType:
        try:
            if self.axes.tokens(t)[:2] != (0, 1):
                raise Mixes("batch and sequence are not its first two axes")
            return self.axes.flat(t)
        except Mixes as why:
            hint = "set the batch and sequence dimensions in the pass's options"
            raise RefusedError(
                f"input %{name} of shape {list(t.shape)} is not [batch, sequence, …]: {why}",
                "flatten-tokens",
                hint,
            ) from None

    # -------------------------------------------------------------- ops
    def _op(self, op: Op) -> None:
        form = rules_of(op).flat
        if form is not None and form.rewrite(self, op):
            return
        if not any(o in self.tokens for o in op.operands):
            self._uniform(op)
            return
        self._check_roles(op)
        if OPS[op.name].expr is not None:
            self._pointwise(op)
        else:
            self._other(op)

    def _uniform(self, op: Op) -> None:
        """An op on values that are the same for every token: copied, unless it makes something along B or
        S."""
        if any(stretches(self.axes, r.type) for r in op.results) and OPS[op.name].expr is None:
            raise Mixes(
                f"it creates a value of shape {list(op.results[0].type.shape)} that does not come from tokens"
            )
        if any(self.old.type(o) != self.b.type(self.b.mapped(o)) for o in op.operands):
            self._pointwise(op)  # operands that were stretched over tokens are kept narrow
        else:
            self.b.copy(op)

    def _check_roles(self, op: Op) -> None:
        """Every token axis of every operand must be kept."""
        record = OPS[op.name]
        types = [self.old.type(o) for o in op.operands]
        for o, t, roles in zip(op.operands, types, record.axes(types, dict(op.attrs)), strict=True):
            if o in self.tokens:
                for axis in self.axes.tokens(t):
                    if roles[axis][0] != "keep":
                        does = "mixes" if roles[axis][0] == "mix" else f"{roles[axis][0]}s"
                        raise Mixes(f"it {does} axis {axis} of {o}, which holds tokens")

    def _pointwise(self, op: Op) -> None:
        """Operands aligned: [T, rest…], with the axes an operand lacks filled by 1; uniform ones lose their
        token axes."""
        result = op.result.type
        tokens = self.axes.tokens(result)
        rest = [n for n in range(result.rank) if n not in tokens]
        operands = [self.aligned(o, result.rank, tokens, rest) for o in op.operands]
        if any(o in self.tokens for o in op.operands):
            self.make(op, operands)
        else:
            attrs: dict[str, Any] = dict(op.attrs)
            new = self.b.op(op.name, *operands, loc=op.loc, **attrs)
            self.b.replace(f"%{op.result.name}", new)

    def _other(self, op: Op) -> None:
        """Attributes that name axes follow them."""
        t = self.old.type(op.operands[0])
        attrs: dict[str, object] = {}
        for key, value in op.attrs:
            kind = OPS[op.name].attrs[key].kind
            if kind == "axis" and op.operands[0] in self.tokens:
                attrs[key] = self.axes.axis(t, cast(int, value))
            elif kind == "axes":
                attrs[key] = tuple(self.axes.axis(t, a) for a in cast("tuple[int, ...]", value))
            elif kind == "dims" and key == "pads" or key == "repeats":
                attrs[key] = pairs_shape(self.axes, t, cast("tuple[object, ...]", value))
        self.make(op, [self._narrow(op, o) for o in op.operands], **attrs)

    def _narrow(self, op: Op, operand: str) -> str:
        if (
            operand[0] == "%"
            and operand not in self.tokens
            and self.old.type(operand) != self.b.type(self.b.mapped(operand))
        ):
            raise Mixes(f"operand {operand} is broadcast over tokens")
        return self.b.mapped(operand)
