"""canonicalize: one form for equal graphs; folds constants, merges equal ops, drops dead ones.

In and out: a module with the same results: bit for bit, but that constant powers become products and roots.
Rules are a table: an op name and functions from the op to what may stand in its place. Every pass may leave a
mess and rely on this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Inline, Module, Op
from tilewright.ir.graph.live import live_weights
from tilewright.ir.numbers import STORED, from_bits
from tilewright.ir.ops.base import OPS, Array
from tilewright.ir.ops.common import same_dim, same_shape, shape_of
from tilewright.ir.types import TensorType
from tilewright.passes.base import Pass, PassContext

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
    raise AssertionError(
        f"canonicalize does not reach a fixed point on @{name}: rules {', '.join(sorted(RULES))} undo each "
        "other"
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
        if isinstance(new, str):
            self.b.replace("%" + op.result.name, new)
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

    def simplified(self, op: Op) -> Op | str:
        """The op, another op with the same results, or an operand that is the result already."""
        if op.region is None:
            folded = self.folded(op)
            if folded is not None:
                return folded
        for rule in RULES.get(op.name, ()):
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
        """The value of a small constant: a `const`, `full`, `iota`, or an inline weight stored densely."""
        if operand[0] == "@":
            w = self.b.weights.get(operand[1:])
            if w is None or not isinstance(w.source, Inline) or w.type.encoding is not None:
                return None
            bits = np.frombuffer(w.source.data, STORED[w.source.dtype]).reshape(w.source.shape)
            return from_bits(bits, w.source.dtype) if bits.size <= SMALL else None
        op = self.made.get(operand)
        if op is None or op.name not in ("const", "full", "iota") or not _small(op.result.type):
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
        if (
            not op.operands
            or len(op.results) != 1
            or op.name in ("encode", "decode")
            or not _small(op.result.type)
        ):
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


# ------------------------------------------------------------------ rules
Rule = Callable[[_Round, Op], "Op | str | None"]


def _drop_a_move_that_changes_nothing(r: _Round, op: Op) -> str | None:
    x = r.type(op.operands[0])
    same = x.encoding is None and same_shape(x.shape, op.result.type.shape)
    return op.operands[0] if same else None


def _reshape_of_reshape(r: _Round, op: Op) -> Op | None:
    inner = r.producer(op.operands[0], "reshape")
    return r.changed(op, inner.operands) if inner else None


def _identity_transpose(r: _Round, op: Op) -> str | None:
    perm = op.attr("perm")
    return op.operands[0] if perm == tuple(range(len(op.result.type.shape))) else None


def _transpose_of_transpose(r: _Round, op: Op) -> Op | None:
    inner = r.producer(op.operands[0], "transpose")
    if inner is None:
        return None
    outer, first = op.attr("perm"), inner.attr("perm")
    perm = tuple(first[p] for p in outer)  # type: ignore[attr-defined, index]
    return r.changed(op, inner.operands, perm=perm)


def _expand_of_expand(r: _Round, op: Op) -> Op | None:
    inner = r.producer(op.operands[0], "expand")
    return r.changed(op, inner.operands) if inner else None


def _repeat_as_expand(r: _Round, op: Op) -> Op | str:
    """Copies side by side are copies along a new axis before the repeated one: kernels and patterns know that
    form."""
    counts: tuple[int, ...] = op.attr("repeats")  # type: ignore[assignment]
    shape = r.type(op.operands[0]).shape
    if all(n == 1 for n in counts):
        return op.operands[0]
    pairs = list(zip(counts, shape, strict=True))
    narrow, wide = ([d for n, size in pairs for d in ((m or n, size) if n != 1 else (size,))] for m in (1, 0))
    split = r.b.op("reshape", op.operands[0], shape=tuple(narrow), loc=op.loc)
    spread = r.b.op("expand", split, shape=tuple(wide), loc=op.loc)
    return replace(r.changed(op, (spread,)), name="reshape", attrs=(("shape", op.result.type.shape),))


def _cast_to_the_same_type(r: _Round, op: Op) -> str | None:
    return op.operands[0] if r.type(op.operands[0]).dtype == op.attr("dtype") else None


#: element types that hold every value of another, which a cast there and back leaves alone
_WIDER: dict[str, tuple[str, ...]] = {
    "bf16": ("f32", "f64"), "f16": ("f32", "f64"), "f32": ("f64",), "i8": ("i16", "i32", "i64", "f32", "f64"),
    "u8": ("i16", "i32", "i64", "f32", "f64"), "i16": ("i32", "i64", "f32", "f64"), "i32": ("i64", "f64"),
}  # fmt: skip


def _cast_there_and_back(r: _Round, op: Op) -> str | None:
    inner = r.producer(op.operands[0], "cast")
    first = r.type(inner.operands[0]) if inner is not None else None
    same = first is not None and first.encoding is None and first.dtype == op.attr("dtype")
    wide = same and first is not None and r.type(op.operands[0]).dtype in _WIDER.get(first.dtype, ())
    return inner.operands[0] if wide and inner is not None else None


def _whole_slice(r: _Round, op: Op) -> str | None:
    size = r.type(op.operands[0]).shape[int(str(op.attr("axis")))]
    whole = op.attr("start") == 0 and op.attr("step") == 1 and same_dim(cast(int, op.attr("stop")), size)
    return op.operands[0] if whole else None


def _split_in_one(r: _Round, op: Op) -> str | None:
    return op.operands[0] if len(op.results) == 1 else None


def _concat_of_one(r: _Round, op: Op) -> str | None:
    return op.operands[0] if len(op.operands) == 1 else None


def _concat_of_a_split(r: _Round, op: Op) -> str | None:
    inner = r.producer(op.operands[0], "split")
    same = inner is not None and inner.attr("axis") == op.attr("axis")
    whole = same and inner is not None and op.operands == tuple("%" + x.name for x in inner.results)
    return inner.operands[0] if whole and inner is not None else None


def _empty_pad(r: _Round, op: Op) -> str | None:
    return op.operands[0] if not any(d != 0 for d in op.attr("pads")) else None  # type: ignore[attr-defined]


def _neutral(value: float, sides: tuple[int, ...]) -> Rule:
    def neutral_element(r: _Round, op: Op) -> str | None:
        for side in sides:
            kept = op.operands[1 - side]
            t = r.type(kept)
            same = t.encoding is None and same_shape(t.shape, op.result.type.shape)
            if same and r.scalar(op.operands[side]) == value:
                return kept
        return None

    return neutral_element


def _power_as_product(r: _Round, op: Op) -> Op | str | None:
    """x^1 is x, x^2 is x x, x^0.5 a root: closer to the truth and cheaper than exp and log."""
    n = r.scalar(op.operands[1])
    if n is None or not same_shape(r.type(op.operands[0]).shape, op.result.type.shape):
        return None
    base = op.operands[0]
    if n == 1.0:
        return base if r.type(base).encoding is None else None
    form = {2.0: ("mul", (base, base)), 0.5: ("sqrt", (base,)), -0.5: ("rsqrt", (base,))}.get(n)
    return replace(r.changed(op, form[1]), name=form[0]) if form else None


def _double_negation(r: _Round, op: Op) -> str | None:
    inner = r.producer(op.operands[0], op.name)
    return inner.operands[0] if inner else None


def _open_clamp(r: _Round, op: Op) -> str | None:
    return op.operands[0] if op.attr("lo") is None and op.attr("hi") is None else None


def _decode_of_dense(r: _Round, op: Op) -> str | None:
    return op.operands[0] if r.type(op.operands[0]).encoding is None else None


#: rules by op, tried in order; adding 0 is left alone: it turns -0 into 0
RULES: dict[str, tuple[Rule, ...]] = {
    "reshape": (_drop_a_move_that_changes_nothing, _reshape_of_reshape),
    "transpose": (_identity_transpose, _transpose_of_transpose),
    "expand": (_drop_a_move_that_changes_nothing, _expand_of_expand),
    "cast": (_cast_to_the_same_type, _cast_there_and_back),
    "slice": (_whole_slice,),
    "split": (_split_in_one,),
    "repeat": (_repeat_as_expand,),
    "concat": (_concat_of_one, _concat_of_a_split),
    "pad": (_empty_pad,),
    "mul": (_neutral(1.0, (0, 1)),),
    "div": (_neutral(1.0, (1,)),),
    "sub": (_neutral(0.0, (1,)),),
    "pow": (_power_as_product,),
    "neg": (_double_negation,),
    "not": (_double_negation,),
    "clamp": (_open_clamp,),
    "decode": (_decode_of_dense,),
}
