"""canonicalize: one form for equal graphs; folds constants, merges equal ops, drops dead ones.

In and out: a module with the same results: bit for bit, but that constant powers become products and roots.
Which rewrites hold for an op, its rules say (`passes.rules`). Every pass may leave a mess and rely on this
one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Inline, Module, Op
from tilewright.ir.graph.live import live_weights
from tilewright.ir.numbers import STORED, from_bits
from tilewright.ir.ops.base import OPS, Array
from tilewright.ir.ops.common import shape_of
from tilewright.ir.types import TensorType
from tilewright.passes.base import Pass, PassContext
from tilewright.passes.rules import rules_of

#: results of at most this many elements are folded
SMALL = 1024


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Fold constants, merge equal ops, simplify reshapes, transposes, casts and arithmetic with neutral
    elements, drop what is not used (ops, weights)."""

    name = "canonicalize"
    needs: ClassVar[frozenset[str]] = frozenset({"unfused"})
    gives: ClassVar[frozenset[str]] = frozenset({"canonical"})
    tolerance = 1e-6

    def run(self, module: Module, ctx: PassContext) -> Module:
        for g in module.graphs:
            module = _to_fixpoint(module, g.name, ctx)
        return live_weights(module)


def _to_fixpoint(module: Module, name: str, ctx: PassContext) -> Module:
    for _ in range(32):
        before = module.graph(name)
        after = _Round(module, before, ctx).run()
        module = after
        if module.graph(name) == before:
            return module
    names = ", ".join(sorted({op.name for op in module.graph(name).ops if rules_of(op).canonical}))
    raise AssertionError(
        f"canonicalize does not reach a fixed point on @{name}: rules of {names} undo each other"
    )


class _Round:
    """One walk over a graph: fold, simplify, merge; then drop dead ops."""

    def __init__(self, module: Module, g: Graph, ctx: PassContext) -> None:
        self.old, self.ctx = g, ctx
        self.b = GraphBuilder.over(module, g, Canonicalize.name)
        self.made: dict[str, Op] = {}
        self.seen: dict[object, tuple[str, ...]] = {}
        self.live = live_ops(g)

    def run(self) -> Module:
        for n, op in enumerate(self.old.ops):
            if n in self.live:
                self.one(op)
        for k, o in enumerate(self.old.outputs):
            self.b.output(self.b.mapped(o), self.old.results[k] if self.old.results else None)
        return self.b.module()

    def one(self, op: Op) -> None:
        op = replace(op, operands=tuple(self.b.mapped(o) for o in op.operands))
        new = self.simplified(op)
        if not isinstance(new, Op):
            for r, y in zip(op.results, (new,) if isinstance(new, str) else new, strict=True):
                self.b.replace("%" + r.name, y)
            return
        key = (new.name, new.operands, new.attrs, new.region)
        if key in self.seen and not OPS[new.name].state:
            for r, kept in zip(op.results, self.seen[key], strict=True):
                self.b.replace("%" + r.name, kept)
            self.ctx.applied("merge equal ops", op)
            return
        results = self.b.append(new)
        self.seen[key] = results
        self.made.update((r, new) for r in results)

    def simplified(self, op: Op) -> Op | str | tuple[str, ...]:
        """The op, another op with the same results, or the operands that are its results already."""
        if op.region is None:
            folded = self.folded(op)
            if folded is not None:
                return folded
        for rule in rules_of(op).canonical:
            new = rule(self, op)
            if new is not None:
                self.ctx.applied(rule.__name__.strip("_").replace("_", " "), op)
                return new
        return op

    # -------------------------------------------------------------- asking
    def type(self, operand: str) -> TensorType:
        return self.b.type(operand)

    def producer(self, operand: str, name: str) -> Op | None:
        """The op that made an operand, if it is of this kind."""
        op = self.made.get(operand)
        return op if op is not None and op.name == name else None

    def constant(self, operand: str) -> Array | None:
        """The value of a small constant: of an op that reads nothing, or an inline weight stored densely."""
        if operand[0] == "@":
            w = self.b.weights.get(operand[1:])
            if w is None or not isinstance(w.source, Inline) or w.type.encoding is not None:
                return None
            bits = np.frombuffer(w.source.data, STORED[w.source.dtype]).reshape(w.source.shape)
            return from_bits(bits, w.source.dtype) if bits.size <= SMALL else None
        op = self.made.get(operand)
        if op is None or OPS[op.name].operands or not _small(op.result.type):
            return None
        return np.asarray(OPS[op.name].meaning([], dict(op.attrs), [op.result.type]))

    def scalar(self, operand: str) -> float | None:
        """The one number that every element of a constant is."""
        x = self.constant(operand)
        return float(x.flat[0]) if x is not None and x.size and (x == x.flat[0]).all() else None

    def changed(self, op: Op, operands: tuple[str, ...], **attrs: object) -> Op:
        """The op over other operands, marked as touched by this pass."""
        passes = op.passes if Canonicalize.name in op.passes else (*op.passes, Canonicalize.name)
        return replace(op.with_attrs(**attrs), operands=operands, passes=passes)

    # -------------------------------------------------------------- folding
    def folded(self, op: Op) -> Op | str | None:
        """An op over constants as a constant."""
        if not op.operands or len(op.results) != 1 or not _small(op.result.type):
            return None
        if OPS[op.name].state or _symbolic(op) or op.result.type.encoding is not None:
            return None
        args = [self.constant(o) for o in op.operands]
        if any(a is None for a in args):
            return None
        try:
            with np.errstate(all="ignore"):
                out = np.asarray(OPS[op.name].meaning(args, dict(op.attrs), [op.result.type]))
        except (ValueError, IndexError):
            return None  # the error belongs to the run, where values and place can be named
        return self.as_constant(op, out)

    def as_constant(self, op: Op, x: Array) -> Op | str:
        t = op.result.type
        self.ctx.applied("fold", op)
        if x.size and (x == x.flat[0]).all():
            value = x.flat[0].item()
            passes = self.changed(op, ()).passes
            attrs = {"value": value, "dtype": t.dtype, "shape": t.shape}
            return Op("const", (), op.results, tuple(sorted(attrs.items())), op.loc, passes)
        name = f"const.{op.result.name}"
        while name in self.b.weights or name in self.b.states:
            name += "_"
        return self.b.inline(name, x, t.dtype)


def _small(t: TensorType) -> bool:
    return all(isinstance(d, int) for d in t.shape) and int(np.prod(shape_of(t), dtype=np.int64)) <= SMALL


def _symbolic(op: Op) -> bool:
    return any(hasattr(d, "free_symbols") for _, v in op.attrs for d in (v if isinstance(v, tuple) else (v,)))


def live_ops(g: Graph) -> set[int]:
    """Places of the ops whose results reach an output, and of all ordered ones."""
    needed, live = set(g.outputs), set[int]()
    for n in range(len(g.ops) - 1, -1, -1):
        op = g.ops[n]
        if OPS[op.name].state or any("%" + r.name in needed for r in op.results):
            live.add(n)
            needed.update(op.operands)
    return live
