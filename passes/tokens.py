"""Where a batch-and-sequence graph keeps its tokens, and what is known while they become one leading axis.

In: types whose dimensions name the batch and sequence symbols. Out: token axes, and attributes for the flat
form [T, …]: the other axes keep their order. `Flattening`: the two graphs, and helpers that flat forms of ops
are written with. Knows no op.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import sympy

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Op
from tilewright.ir.ops.common import product, same_dim
from tilewright.ir.types import TensorType, as_dim
from tilewright.passes.patterns import View


class Mixes(Exception):
    """An op that does more to tokens than keep them apart; the message says what."""


@dataclass(frozen=True)
class Axes:
    """The symbols: batch, sequence, and the fused token axis they become."""

    batch: sympy.Expr
    seq: sympy.Expr
    token: sympy.Expr

    def tokens(self, t: TensorType) -> tuple[int, ...]:
        """Axes of `t` that hold tokens: (batch, sequence), one fused axis, the sequence alone (if all of the
        batch are the same), or none. Mixes if there are others."""
        both = as_dim(self.batch * self.seq)
        fused = tuple(n for n, d in enumerate(t.shape) if same_dim(d, both))
        batch = tuple(n for n, d in enumerate(t.shape) if same_dim(d, self.batch))
        seq = tuple(n for n, d in enumerate(t.shape) if same_dim(d, self.seq))
        found = (*fused, *batch, *seq)
        depends = [d for d in t.shape if not isinstance(d, int) and d.free_symbols & {self.batch, self.seq}]
        known = ((1, 0, 0), (0, 1, 1), (0, 0, 1), (0, 0, 0))
        if (len(fused), len(batch), len(seq)) not in known or len(depends) != len(found):
            raise Mixes(f"a value of shape {list(t.shape)} has no single token axis")
        return found

    def rest(self, t: TensorType) -> list[int]:
        """The other axes, in order."""
        tokens = self.tokens(t)
        return [n for n in range(t.rank) if n not in tokens]

    def flat(self, t: TensorType) -> TensorType:
        """The type of a value that carries tokens, as [T, rest…]."""
        return t.with_(shape=(self.token, *(t.shape[n] for n in self.rest(t))))

    def axis(self, t: TensorType, axis: int) -> int:
        """Where an axis of `t` lies in the flat form; Mixes for a token axis."""
        if axis in self.tokens(t):
            raise Mixes(f"it works along axis {axis}, which is the token axis")
        return 1 + self.rest(t).index(axis)


def stretches(axes: Axes, t: TensorType) -> bool:
    """Whether any dimension depends on batch or sequence."""
    return any(not isinstance(d, int) and d.free_symbols & {axes.batch, axes.seq} for d in t.shape)


def reshape_shape(axes: Axes, old: TensorType, new: TensorType) -> tuple[object, ...]:
    """The flat result shape of a reshape; Mixes unless every token axis starts at the same element on both
    sides."""
    before, after = axes.tokens(old), axes.tokens(new)
    if not after or _starts(axes, old, before) != _starts(axes, new, after):
        raise Mixes(f"reshape of {list(old.shape)} to {list(new.shape)} mixes tokens with other axes")
    return axes.flat(new).shape


def _starts(axes: Axes, t: TensorType, tokens: Sequence[int]) -> tuple[object, ...]:
    """Elements before each token axis, batch and sequence counted apart; a fused axis counts as the two side
    by side."""
    at = [product(t.shape[:n]) for n in tokens]
    return (at[0], as_dim(at[0] * axes.batch)) if len(at) == 1 else tuple(at)


def transpose_perm(axes: Axes, old: TensorType, perm: Sequence[int]) -> tuple[int, ...] | None:
    """The flat permutation, None if it does nothing."""
    rest = axes.rest(old)
    order = [rest.index(p) + 1 for p in perm if p in rest]
    return None if order == sorted(order) else (0, *order)


def pairs_shape(axes: Axes, t: TensorType, values: Sequence[object]) -> tuple[object, ...]:
    """Per-axis amounts (one or several an axis) in the order of the flat form; Mixes if a token axis has
    any."""
    each = len(values) // t.rank
    per = [tuple(values[n * each : (n + 1) * each]) for n in range(t.rank)]
    neutral = per[axes.tokens(t)[0]]
    if any(per[n] != neutral or any(v not in (0, 1) for v in per[n]) for n in axes.tokens(t)):
        raise Mixes("it changes the length of a token axis")
    return tuple(v for n in [axes.tokens(t)[0], *axes.rest(t)] for v in per[n])


# ------------------------------------------------------------------ two graphs
@dataclass
class Flattening:
    """`old`: the graph being read. `b`: the graph being written. `tokens`: old values that now carry T in
    front."""

    old: View
    b: GraphBuilder
    axes: Axes
    tokens: set[str] = field(default_factory=set)

    def define(self, op: Op, new: Sequence[str]) -> None:
        """The op's results are these values of the new graph, which carry tokens."""
        for r, n in zip(op.results, new, strict=True):
            self.b.replace(f"%{r.name}", n)
            self.tokens.add(f"%{r.name}")

    def make(self, op: Op, operands: Sequence[str], **attrs: object) -> None:
        """The op over tokens, on operands of the new graph; `attrs` replace its attributes."""
        given = {**dict(op.attrs), **attrs}
        names = [r.name for r in op.results]
        # the old names are free again: every op of the new graph defines its own anew
        self.b._reserved.difference_update(names)
        self.define(op, self.b.multi(op.name, *operands, loc=op.loc, as_=names, **given))

    def aligned(self, operand: str, rank: int, tokens: tuple[int, ...], rest: list[int]) -> str:
        """An operand of the old graph as [T, rest…], for a result of this rank whose tokens lie on axes
        `tokens`: axes that it lacks become 1, and one without tokens loses its token axes."""
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
