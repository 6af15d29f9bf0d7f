"""Values of an encoder at every number of tokens: what a cut makes of them, and the index maps of all cuts.

In: the builder of the new graph, cuts as they come. Out: operands of the new graph for values of the old one
at the stage that an op needs: stage 0 has all tokens, stage s those left by s cuts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Op
from tilewright.ir.ops.attention import extra_names
from tilewright.passes.decompose_attend import Attention
from tilewright.passes.patterns import View, where
from tilewright.passes.reduce_token_axes import TOKENS, Encoder
from tilewright.passes.reducers.base import COMPARED, Cut


@dataclass(frozen=True)
class Map:
    """The index map of one cut, and the value that it was made for as it was before."""

    ids: str
    slots: str
    before: str


@dataclass
class Stages:
    """`tokens`: how many there are at each stage. `maps`: of the cut from each stage to the next. `held`:
    operands of the new graph by value of the old graph and stage. `sizes`: how many tokens each token of the
    last stage stands for; empty: one. `sized`: whether attention counts them."""

    b: GraphBuilder
    view: View
    encoder: Encoder
    all: int
    protect: int
    tokens: list[int] = field(default_factory=list)
    maps: list[Map] = field(default_factory=list)
    held: dict[tuple[str, int], str] = field(default_factory=dict)
    latest: dict[str, int] = field(default_factory=dict)
    sizes: str = ""
    sized: bool = False
    merged: bool = False

    def __post_init__(self) -> None:
        self.tokens.append(self.all)

    # -------------------------------------------------------------- values
    def define(self, operand: str, stage: int) -> None:
        """A value of the old graph is there under its own name, at this stage."""
        self.latest[operand] = stage
        self.held[operand, stage] = operand

    def of(self, operand: str) -> int:
        """The stage of a value; 0 also for one without tokens."""
        return self.latest.get(operand, 0)

    def at(self, operand: str, stage: int) -> str:
        """A value of the old graph at a stage, cut on the way there."""
        if not self.encoder.of(operand) or stage <= self.of(operand):
            return self.held.get((operand, self.of(operand)), operand)
        if (operand, stage) not in self.held:
            self.held[operand, stage] = self._older(operand, stage)
        return self.held[operand, stage]

    def _older(self, operand: str, stage: int) -> str:
        """A value from before the cut to `stage`, such as a mask: the tokens that represent those left."""
        made = self.view.producer(operand)
        shape = self.view.type(operand).shape
        axes = self.encoder.of(operand)
        if made is not None and not made.operands and "value" in dict(made.attrs):
            left = tuple(self.tokens[stage] if n in axes else d for n, d in enumerate(shape))
            attrs: dict[str, Any] = {**dict(made.attrs), "shape": left}
            return self.b.op(made.name, loc=made.loc, **attrs)
        new = self.at(operand, stage - 1)
        for axis in axes:
            new = self._taken(new, axis, self.maps[stage - 1].ids)
        return new

    def _taken(self, x: str, axis: int, ids: str) -> str:
        """Tokens along any axis of a value that has the batch first, or is the same for all of it."""
        batch, shape = self.b.type(ids).shape[0], self.b.type(x).shape
        if axis == 0:
            x, axis, shape = self.b.op("reshape", x, shape=(1, *shape)), 1, (1, *shape)
        if shape[0] == 1 and batch != 1:
            x = self.b.op("expand", x, shape=(batch, *shape[1:]))
        order = (0, axis, *(n for n in range(1, len(shape)) if n != axis))
        if axis == TOKENS:
            return self.b.op("take_tokens", x, ids)
        y = self.b.op("take_tokens", self.b.op("transpose", x, perm=order), ids)
        return self.b.op("transpose", y, perm=tuple(order.index(n) for n in range(len(order))))

    # -------------------------------------------------------------- a cut
    def cut(self, cut: Cut, layer: Op, value: str, left: int) -> None:
        """The next stage: `value`, which depends on the attention of this layer, cut to `left` tokens."""
        stage, b = len(self.maps), self.b
        x = self.at(value, stage)
        score = self._score(cut, layer, x, stage)
        segments = cut.segments or left - self.protect
        ids, slots = b.multi(
            "assign_tokens", score, mode=cut.mode, count=left, protect=self.protect, fuse=cut.fuse,
            segments=segments, rounds=cut.rounds,
        )  # fmt: skip
        if cut.mean:
            new = b.op("merge_tokens", x, slots, *self._weights(cut, score), count=left)
        else:
            new = b.op("take_tokens", x, ids)
        self.latest[value], self.held[value, stage + 1] = stage + 1, new
        if cut.weighted == "size":
            self.sizes = b.op("merge_tokens", self._sizes(score), slots, count=left, mean=False)
        self.sized, self.merged = self.sized or cut.sized, self.merged or cut.mean
        self.maps.append(Map(ids, slots, x))
        self.tokens.append(left)

    def _weights(self, cut: Cut, score: str) -> list[str]:
        if cut.weighted == "size":
            return [self._sizes(score)] if self.sizes else []
        return [score] if cut.weighted == "score" else []

    def _sizes(self, score: str) -> str:
        """How many tokens each stands for: one each, before anything is merged."""
        shape = self.b.type(score).shape[:2]
        return self.sizes or self.b.op("const", value=1.0, dtype="f32", shape=shape)

    # -------------------------------------------------------------- scores
    def _score(self, cut: Cut, layer: Op, x: str, stage: int) -> str:
        """[B, N] of each token, or what tokens are compared by: [B, N, D]."""
        if cut.score in COMPARED:
            return self._compared(cut.score, layer, x, stage)
        if layer.attr("causal") and cut.score == "first":
            raise RefusedError(
                "the first token of causal attention sees itself alone, so it cannot score others",
                where(layer), 'score by another token: score="last"',
            )  # fmt: skip
        operands = self.attended(layer, stage)
        op, rows = layer, operands
        if cut.score != "all":
            op, rows = self._one_query(layer, operands, 0 if cut.score == "first" else self.tokens[stage] - 1)
        weights = Attention(self.b, op, rows).weights()
        mean = self.b.op("mean", weights, axes=(1, 2))
        return mean if self.b.type(mean).dtype == "f32" else self.b.op("cast", mean, dtype="f32")

    def _compared(self, by: str, layer: Op, x: str, stage: int) -> str:
        if any(name in ("mask", "padding") for name in extra_names(dict(layer.attrs))):
            raise RefusedError(
                "tokens are compared with padding among them", where(layer),
                "use a reducer that scores by attention, as evit and pyramid do",
            )  # fmt: skip
        if by == "keys":
            return self.b.op("mean", self.at(layer.operands[1], stage), axes=(2,))
        return x

    def _one_query(self, layer: Op, operands: tuple[str, ...], row: int) -> tuple[Op, tuple[str, ...]]:
        """The attention of one query alone, which sees all keys that its mask shows."""
        b = self.b
        q, k, v, *extras = operands
        q = b.op("slice", q, axis=TOKENS, start=row, stop=row + 1)
        named = zip(extra_names(dict(layer.attrs)), extras, strict=True)
        rows = [
            b.op("slice", x, axis=2, start=row, stop=row + 1) if name in ("bias", "mask") else x
            for name, x in named
        ]
        return layer.with_attrs(causal=False, window=0), (q, k, v, *rows)

    # -------------------------------------------------------------- attention at a stage
    def attended(self, op: Op, stage: int) -> tuple[str, ...]:
        """Operands of an attention at a stage."""
        return tuple(self.at(o, stage) for o in op.operands)

    def sized_bias(self, op: Op, operands: tuple[str, ...], stage: int) -> tuple[Op, tuple[str, ...]] | None:
        """The attention with ln(size) of each token added to the scores of its key; None: there are no
        sizes to count."""
        if not (stage and self.sized and self.sizes):
            return None
        b, dtype = self.b, self.b.type(operands[0]).dtype
        batch, n = b.type(self.sizes).shape
        added = b.op("reshape", b.op("log", self.sizes), shape=(batch, 1, 1, n))
        added = b.op("expand", added, shape=(batch, 1, n, n))
        added = added if dtype == "f32" else b.op("cast", added, dtype=dtype)
        place = 3 + bool(op.attr("sinks"))
        if op.attr("bias") == "tensor":
            both = b.op("add", operands[place], added)
            return op, (*operands[:place], both, *operands[place + 1 :])
        return op.with_attrs(bias="tensor"), (*operands[:place], added, *operands[place:])

    # -------------------------------------------------------------- back to all tokens
    def restore(self, value: str) -> None:
        """`value` with all tokens again: those that share a place alike, and dropped ones as they were."""
        x = self.held[value, self.latest[value]]
        for m in reversed(self.maps):
            x = self.b.op("restore_tokens", x, m.slots, m.before)
        self.latest[value], self.held[value, 0] = 0, x
