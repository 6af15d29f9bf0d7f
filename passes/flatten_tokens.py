"""flatten-tokens: merges batch and sequence into one token axis `T`, for any mix of sequences in a step.

In: a graph over [B, S, …] values. Out: the same over [T, …], with `seq` (whose token) and `pos` as inputs to
attention. Each op's axis roles decide: one that keeps the token axes runs as it is; causal attention gets a
flat form; anything else is refused with its source line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import numpy as np

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.graph.live import tidy
from tilewright.ir.ops.base import OPS, Array, OpTypeError
from tilewright.ir.ops.common import same_dim
from tilewright.ir.plan.step import MOST_TOKENS
from tilewright.ir.types import TensorType, symbol
from tilewright.passes.base import CheckCase, Pass, PassContext
from tilewright.passes.patterns import View, where
from tilewright.passes.tokens import (
    Axes,
    Mixes,
    attend_problem,
    pairs_shape,
    reshape_shape,
    stretches,
    transpose_perm,
)


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


@dataclass
class _Flatten:
    old: View
    b: GraphBuilder
    axes: Axes
    #: old values that now carry T in front
    tokens: set[str] = field(default_factory=set)
    problems: list[tuple[Op, str]] = field(default_factory=list)

    def run(self, graph: Graph) -> None:
        self._inputs(graph)
        for op in graph.ops:
            self.b.loc = op.loc
            try:
                self._op(op)
            except (
                Mixes,
                OpTypeError,
            ) as reason:  # a type that no longer fits: the op took the two axes apart
                self.problems.append((op, str(reason)))
                break
        if self.problems:
            op, why = self.problems[0]
            hint = "only attention may read other tokens; compile this graph as a plain module instead"
            raise RefusedError(f"op {op.name} mixes tokens: {why}", where(op), hint)
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
        token = TensorType("i32", (self.axes.token,))
        kinds = {op.name for op in graph.ops}
        for name in ("pos", "seq"):
            counted = name == "pos" and any(map(self._counts, graph.ops))
            if f"%{name}" not in self.tokens and ("attend" in kinds or counted):
                self.b.add_input(name, token)
        if "sequence_length" in kinds:
            self.b.add_input("length", token)

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
        carries = [o in self.tokens for o in op.operands]
        if op.name == "expand":
            self._expand(op)
        elif op.name == "full" and stretches(self.axes, op.result.type):
            self._make(op, [], shape=self.axes.flat(op.result.type).shape)
        elif self._counts(op):
            self._positions(op)
        elif not any(carries):
            self._uniform(op)
        elif op.name in _MOVES:
            getattr(self, _MOVES[op.name])(op)
        elif op.name == "attend":
            self._attend(op)
        elif op.name == "sequence_length" and op.operands == (
            "%pos",
        ):  # a step sees part of a sequence: its caller knows
            self._define(op, ["%length"])
        else:
            self._check_roles(op)
            if OPS[op.name].expr is not None or op.name == "select":
                self._pointwise(op)
            else:
                self._other(op)

    def _counts(self, op: Op) -> bool:
        """Whether an op counts along the sequence."""
        return op.name == "iota" and same_dim(cast(int, op.attr("size")), self.axes.seq)

    def _positions(self, op: Op) -> None:
        """0, 1, 2, … along the sequence are the positions of its tokens."""
        dtype, value = op.result.type.dtype, "%pos"
        if dtype != "i32":
            value = self.b.op("cast", value, dtype=dtype, loc=op.loc)
        for name, key, neutral in (("mul", "step", 1), ("add", "start", 0)):
            if op.attr(key) != neutral:
                number = self.b.op("const", value=op.attr(key), dtype=dtype, loc=op.loc)
                value = self.b.op(name, value, number, loc=op.loc)
        self._define(op, [value])

    def _uniform(self, op: Op) -> None:
        """An op on values that are the same for every token: copied, unless it makes something along B or
        S."""
        if any(stretches(self.axes, r.type) for r in op.results) and not self._stretched(op):
            raise Mixes(
                f"it creates a value of shape {list(op.results[0].type.shape)} that does not come from tokens"
            )
        if any(self.old.type(o) != self.b.type(self.b.mapped(o)) for o in op.operands):
            self._pointwise(op)  # operands that were stretched over tokens are kept narrow
        else:
            self.b.copy(op)

    def _stretched(self, op: Op) -> bool:
        return OPS[op.name].expr is not None

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

    def _define(self, op: Op, new: Sequence[str]) -> None:
        for r, n in zip(op.results, new, strict=True):
            self.b.replace(f"%{r.name}", n)
            self.tokens.add(f"%{r.name}")

    def _make(self, op: Op, operands: Sequence[str], **attrs: object) -> None:
        names = [r.name for r in op.results]
        self._define(
            op,
            self.b.multi(
                op.name, *operands, loc=op.loc, as_=self._names(names), **{**dict(op.attrs), **attrs}
            ),
        )

    def _names(self, names: list[str]) -> list[str]:
        """The old names: every op of the new graph defines its own anew."""
        self.b._reserved.difference_update(names)
        return names

    def _pointwise(self, op: Op) -> None:
        """Operands aligned: [T, rest…], with the axes an operand lacks filled by 1; uniform ones lose their
        token axes."""
        result = op.result.type
        tokens = self.axes.tokens(result)
        rest = [n for n in range(result.rank) if n not in tokens]
        operands = [self._aligned(o, result.rank, tokens, rest) for o in op.operands]
        if any(o in self.tokens for o in op.operands):
            self._make(op, operands)
        else:
            attrs: dict[str, Any] = dict(op.attrs)
            new = self.b.op(op.name, *operands, loc=op.loc, **attrs)
            self.b.replace(f"%{op.result.name}", new)

    def _aligned(self, operand: str, rank: int, tokens: tuple[int, ...], rest: list[int]) -> str:
        new, t = self.b.mapped(operand), self.old.type(operand)
        shift = rank - t.rank
        if operand in self.tokens:
            mine = tuple(n + shift for n in self.axes.tokens(t))
            if mine != tokens and mine != tokens[1:]:  # a count along the sequence has no axis for the batch
                raise Mixes(f"{operand} has its tokens on axes {mine}, the result on {tokens}")
            want = [t.shape[n - shift] if n >= shift else 1 for n in rest]
            shape: tuple[object, ...] = (self.axes.token, *want)
        else:
            now = self.b.type(new)
            if any(n >= shift and now.shape[n - shift] != 1 for n in tokens):
                raise Mixes(f"{operand} of shape {list(t.shape)} varies along tokens but has no token axis")
            shape = tuple(now.shape[n - shift] for n in rest if n >= shift)
        return new if self.b.type(new).shape == shape else self.b.op("reshape", new, shape=shape)

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
        self._make(op, [self._narrow(op, o) for o in op.operands], **attrs)

    def _narrow(self, op: Op, operand: str) -> str:
        if (
            operand[0] == "%"
            and operand not in self.tokens
            and self.old.type(operand) != self.b.type(self.b.mapped(operand))
        ):
            raise Mixes(f"operand {operand} is broadcast over tokens")
        return self.b.mapped(operand)

    # -------------------------------------------------------------- moves
    def _reshape(self, op: Op) -> None:
        shape = reshape_shape(self.axes, self.old.type(op.operands[0]), op.result.type)
        new = self.b.mapped(op.operands[0])
        if self.b.type(new).shape == shape:
            self._define(op, [new])
        else:
            self._make(op, [new], shape=shape)

    def _transpose(self, op: Op) -> None:
        perm = transpose_perm(
            self.axes, self.old.type(op.operands[0]), cast("tuple[int, ...]", op.attr("perm"))
        )
        new = self.b.mapped(op.operands[0])
        if perm is None:
            self._define(op, [new])
        else:
            self._make(op, [new], perm=perm)

    def _expand(self, op: Op) -> None:
        x, result = op.operands[0], op.result.type
        new = self.b.mapped(x)
        if x in self.tokens:
            shape = self.axes.flat(result).shape
            aligned = self._aligned(x, result.rank, self.axes.tokens(result), self.axes.rest(result))
        else:
            shape = tuple(
                1 if not isinstance(d, int) and stretches(self.axes, TensorType("f32", (d,))) else d
                for d in result.shape
            )
            aligned = new
        if self.b.type(aligned).shape != shape:
            aligned = self.b.op("expand", aligned, shape=shape, loc=op.loc)
        self.b.replace(f"%{op.result.name}", aligned)
        if x in self.tokens:
            self.tokens.add(f"%{op.result.name}")

    def _slice(self, op: Op) -> None:
        t, axis = self.old.type(op.operands[0]), cast(int, op.attr("axis"))
        whole = (
            op.attr("start") == 0
            and op.attr("step") == 1
            and same_dim(cast(int, op.attr("stop")), t.shape[axis])
        )
        if axis in self.axes.tokens(t) and whole:
            self._define(op, [self.b.mapped(op.operands[0])])
        else:
            self._make(op, [self.b.mapped(op.operands[0])], axis=self.axes.axis(t, axis))

    def _concat(self, op: Op) -> None:
        t = next(self.old.type(o) for o in op.operands if o in self.tokens)
        tokens, rest = self.axes.tokens(t), self.axes.rest(t)
        parts: list[str] = []
        for o in op.operands:
            aligned = self._aligned(o, t.rank, tokens, rest)
            if o not in self.tokens:
                aligned = self.b.op("expand", aligned, shape=(self.axes.token, *self.b.type(aligned).shape))
            parts.append(aligned)
        self._make(op, parts, axis=self.axes.axis(t, cast(int, op.attr("axis"))))

    def _gather(self, op: Op) -> None:
        table, ids = op.operands
        if table in self.tokens:
            t, axis = self.old.type(table), cast(int, op.attr("axis"))
            if ids in self.tokens:
                raise Mixes("it indexes the token axis")
            self._make(op, [self.b.mapped(table), self.b.mapped(ids)], axis=self.axes.axis(t, axis))
        elif op.attr("axis") != 0:
            raise Mixes("it indexes an inner axis by token")
        else:
            self._make(op, [self.b.mapped(table), self.b.mapped(ids)])

    # -------------------------------------------------------------- attention
    def _attend(self, op: Op) -> None:
        problem = attend_problem(op)
        if problem:
            raise Mixes(problem)
        if any(o not in self.tokens for o in op.operands[:3]):
            raise Mixes("q, k or v has no token axis")
        operands = [*(self.b.mapped(o) for o in op.operands), "%seq", "%pos"]
        self._make(op, operands, flat=True)


_MOVES = {
    "reshape": "_reshape", "transpose": "_transpose", "slice": "_slice", "concat": "_concat",
    "gather": "_gather",
}  # fmt: skip
