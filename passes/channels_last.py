"""channels-last: images stay in the order that kernels read, [N, space…, C], from one window to the next.

In: a graph whose convolutions and pools stand between two transposes each, as capture leaves them. Out: the
same results, with the transposes only where a value with channels first is read: at the inputs and outputs of
the graph, and where an op depends on the order of elements. Pointwise ops, reductions and moves in between
are done on the other order; an operand that has channels first there is transposed, which is a view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.graph.live import tidy
from tilewright.ir.ops.base import OPS
from tilewright.ir.ops.common import same_shape
from tilewright.passes.base import Pass, PassContext
from tilewright.passes.lower.record import Form, form_of, lowering_of


@dataclass(frozen=True)
class ChannelsLast(Pass):
    """Do work on images in the order that convolutions read and write."""

    name: ClassVar[str] = "channels-last"
    needs: ClassVar[frozenset[str]] = frozenset({"recognised", "unfused"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical"})
    tolerance: ClassVar[float | None] = 1e-5

    def run(self, module: Module, ctx: PassContext) -> Module:
        for graph in module.graphs:
            module = _Layout(module, module.graph(graph.name), ctx).run()
        return module


def to_last(rank: int) -> tuple[int, ...]:
    """The transposition of [N, C, space…] to [N, space…, C]."""
    return (0, *range(2, rank), 1)


def to_first(rank: int) -> tuple[int, ...]:
    return (0, rank - 1, *range(1, rank - 1))


class _Layout:
    """A rewrite under way. `twins`: by value of the old graph that has channels first, the same with channels
    last in the new one."""

    def __init__(self, module: Module, graph: Graph, ctx: PassContext) -> None:
        self.old, self.ctx = graph, ctx
        self.b = GraphBuilder.over(module, graph, ChannelsLast.name)
        self.types = {f"%{n}": v.type for n, v in graph.values().items()}
        self.made = graph.producers()
        self.twins: dict[str, str] = {}
        self.turned: dict[str, str] = {}
        self.given: set[str] = set()

    def run(self) -> Module:
        for op in self.old.ops:
            self.b.loc = op.loc
            if not self._on_twins(op):
                for o in op.operands:
                    self.first(o)
                self.b.copy(op)
        for n, o in enumerate(self.old.outputs):
            self.b.output(self.first(o), self.old.results[n] if self.old.results else None)
        return tidy(self.b.module())

    # -------------------------------------------------------------- both orders of a value
    def first(self, operand: str) -> str:
        """A value as the old graph has it."""
        if operand in self.twins and operand not in self.given:
            rank = self.types[operand].rank
            self.b.replace(operand, self.b.op("transpose", self.twins[operand], perm=to_first(rank)))
            self.given.add(operand)
        return self.b.mapped(operand)

    def last(self, operand: str) -> str:
        """A value with channels last: its twin, or a view of it."""
        if operand in self.twins:
            return self.twins[operand]
        if operand not in self.turned:
            new = self.b.mapped(operand)
            rank = self.b.type(new).rank
            self.turned[operand] = self.b.op("transpose", new, perm=to_last(rank))
        return self.turned[operand]

    def again(self, op: Op, operands: Sequence[str], **changed: object) -> tuple[str, ...]:
        """The op over operands of the new graph."""
        attrs: dict[str, Any] = {**dict(op.attrs), **changed}
        return self.b.multi(op.name, *operands, **attrs)

    def define(self, op: Op, new: Sequence[str]) -> bool:
        for r, value in zip(op.results, new, strict=True):
            self.twins[f"%{r.name}"] = value
        return True

    # -------------------------------------------------------------- ops
    def _on_twins(self, op: Op) -> bool:
        """Whether the op's results were defined with channels last."""
        if op.name == "transpose":
            return self._transpose(op)
        if not any(o in self.twins for o in op.operands):
            return False
        if OPS[op.name].expr is not None:
            done = self._pointwise(op)
        else:
            handler = _MOVES.get(op.name)
            done = handler is not None and handler(self, op)
        if done:
            self.ctx.applied("channels last", op)
        return done

    def _transpose(self, op: Op) -> bool:
        """A transposition that begins with channels last, or ends there."""
        (x,), perm = op.operands, op.attr("perm")
        rank = op.result.type.rank
        if rank >= 3 and perm == to_last(rank) and (x in self.twins or rank > 3 or x in self.turned):
            self.b.replace(f"%{op.result.name}", self.last(x))
            return True
        maker = self.made.get(x[1:])
        image = rank > 3 or maker is not None and form_of(maker) is not Form.VIEW and _over_space(maker)
        if rank < 3 or perm != to_first(rank) or not image:
            return False
        self.first(x)
        return self.define(op, (self.b.mapped(x),))

    def _pointwise(self, op: Op) -> bool:
        """Every operand in the other order; what is one number per channel becomes a vector."""
        rank = op.result.type.rank
        if any(o in self.twins and self.types[o].rank != rank for o in op.operands):
            return False
        operands = [self._aligned(o, rank) for o in op.operands]
        return self.define(op, self.again(op, operands))

    def _aligned(self, operand: str, rank: int) -> str:
        """An operand that is broadcast against an image with channels last."""
        if operand in self.twins:
            return self.twins[operand]
        new = self.b.mapped(operand)
        shape = self.b.type(new).shape
        if all(d == 1 for d in shape):
            return new if not shape else self._shaped(new, ())
        full = (*[1] * (rank - len(shape)), *shape)
        turned = tuple(full[p] for p in to_last(rank))
        if sum(d != 1 for d in shape) == 1:
            while turned[0] == 1 and len(turned) > 1:
                turned = turned[1:]
            return self._shaped(new, turned)
        if len(shape) == rank:
            return self.last(operand)
        return self.b.op("transpose", self._shaped(new, full), perm=to_last(rank))

    def _shaped(self, operand: str, shape: tuple[object, ...]) -> str:
        return self.b.op("reshape", operand, shape=shape)


def _over_space(op: Op) -> bool:
    """Whether an op works on an image with channels last."""
    record = lowering_of(op)
    return "window" in dict(op.attrs) or record is not None and record.form_of(op) is Form.CONTRACTION


# ------------------------------------------------------------------ ops that know axes
def _axis(axis: object, rank: int) -> int:
    return to_last(rank).index(cast(int, axis))


def _along_an_axis(s: _Layout, op: Op) -> bool:
    """slice, split, concat, softmax: the same along the other axis."""
    rank = s.types[op.operands[0]].rank if op.operands[0] in s.types else 0
    if not all(o in s.types and s.types[o].rank == rank for o in op.operands):
        return False
    operands = [s.last(o) for o in op.operands]
    return s.define(op, s.again(op, operands, axis=_axis(op.attr("axis"), rank)))


def _reduction(s: _Layout, op: Op) -> bool:
    """Over any axes: what is left has channels last too, or no order to speak of."""
    x = op.operands[0]
    rank = s.types[x].rank
    axes = cast("tuple[int, ...]", op.attr("axes"))
    moved = tuple(sorted(_axis(a, rank) for a in axes))
    (new,) = s.again(op, (s.twins[x],), axes=moved)
    if op.attr("keepdims") or (0 not in axes and 1 not in axes and len(axes) < rank - 2):
        return s.define(op, (new,))
    if 0 in axes and 1 not in axes and len(axes) < rank - 1:
        new = s.b.op("transpose", new, perm=(rank - 1 - len(axes), *range(rank - 1 - len(axes))))
    s.b.replace(f"%{op.result.name}", new)
    return True


def _pad(s: _Layout, op: Op) -> bool:
    pads = cast("tuple[int, ...]", op.attr("pads"))
    pairs = list(zip(pads[0::2], pads[1::2], strict=True))
    turned = tuple(p for axis in to_last(len(pairs)) for p in pairs[axis])
    return s.define(op, s.again(op, (s.twins[op.operands[0]],), pads=turned))


def _reshape(s: _Layout, op: Op) -> bool:
    """Axes of space merged or split among themselves; or no space, where both orders are one."""
    x, shape = op.operands[0], op.result.type.shape
    old = s.types[x].shape
    if all(d == 1 for d in old[2:]):
        s.b.replace(f"%{op.result.name}", s.b.op("reshape", s.twins[x], shape=shape))
        return True
    if len(shape) < 3 or not same_shape(old[:2], shape[:2]):
        return False
    return s.define(op, (s.b.op("reshape", s.twins[x], shape=(shape[0], *shape[2:], shape[1])),))


def _expand(s: _Layout, op: Op) -> bool:
    x, shape = op.operands[0], op.result.type.shape
    if s.types[x].rank != len(shape):
        return False
    turned = tuple(shape[p] for p in to_last(len(shape)))
    return s.define(op, (s.b.op("expand", s.twins[x], shape=turned),))


_MOVES: Mapping[str, Callable[[_Layout, Op], bool]] = {
    **dict.fromkeys(("slice", "split", "concat", "softmax", "log_softmax"), _along_an_axis),
    **dict.fromkeys(("sum", "mean", "max_reduce", "min_reduce", "prod", "var", "logsumexp"), _reduction),
    "pad": _pad, "reshape": _reshape, "expand": _expand,
}  # fmt: skip
