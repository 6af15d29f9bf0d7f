"""Rules of ops that move elements: moves that change nothing or undo each other, and moves over flat tokens.

In: an op over operands of the new graph; over tokens, an op of the old graph. Out: what stands in its place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from tilewright.ir.graph.core import Op
from tilewright.ir.ops.common import same_dim, same_shape
from tilewright.ir.types import TensorType
from tilewright.passes.rules.record import Canonical, FlatForm, OpRules, register_rules
from tilewright.passes.tokens import Flattening, reshape_shape, stretches, transpose_perm


# ------------------------------------------------------------------ one form for equal moves
def _drop_a_move_that_changes_nothing(r: Canonical, op: Op) -> str | None:
    x = r.type(op.operands[0])
    same = x.encoding is None and same_shape(x.shape, op.result.type.shape)
    return op.operands[0] if same else None


def _reshape_of_reshape(r: Canonical, op: Op) -> Op | None:
    inner = r.producer(op.operands[0], "reshape")
    return r.changed(op, inner.operands) if inner else None


def _identity_transpose(r: Canonical, op: Op) -> str | None:
    perm = op.attr("perm")
    return op.operands[0] if perm == tuple(range(len(op.result.type.shape))) else None


def _transpose_of_transpose(r: Canonical, op: Op) -> Op | None:
    inner = r.producer(op.operands[0], "transpose")
    if inner is None:
        return None
    outer, first = op.attr("perm"), inner.attr("perm")
    perm = tuple(first[p] for p in outer)  # type: ignore[attr-defined, index]
    return r.changed(op, inner.operands, perm=perm)


def _expand_of_expand(r: Canonical, op: Op) -> Op | None:
    inner = r.producer(op.operands[0], "expand")
    return r.changed(op, inner.operands) if inner else None


def _repeat_as_expand(r: Canonical, op: Op) -> Op | str:
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


def _whole_slice(r: Canonical, op: Op) -> str | None:
    return op.operands[0] if _takes_all(op, r.type(op.operands[0])) else None


def _takes_all(op: Op, t: TensorType) -> bool:
    """Whether a slice is the whole of its axis."""
    size = t.shape[cast(int, op.attr("axis"))]
    return op.attr("start") == 0 and op.attr("step") == 1 and same_dim(cast(int, op.attr("stop")), size)


def _split_in_one(r: Canonical, op: Op) -> str | None:
    return op.operands[0] if len(op.results) == 1 else None


def _concat_of_one(r: Canonical, op: Op) -> str | None:
    return op.operands[0] if len(op.operands) == 1 else None


def _concat_of_a_split(r: Canonical, op: Op) -> str | None:
    inner = r.producer(op.operands[0], "split")
    same = inner is not None and inner.attr("axis") == op.attr("axis")
    whole = same and inner is not None and op.operands == tuple("%" + x.name for x in inner.results)
    return inner.operands[0] if whole and inner is not None else None


def _empty_pad(r: Canonical, op: Op) -> str | None:
    return op.operands[0] if not any(d != 0 for d in op.attr("pads")) else None  # type: ignore[attr-defined]


def spread_scalar(r: Canonical, operand: str) -> float | None:
    """The one number that a value is, which may be spread out to any shape."""
    while (spread := r.producer(operand, "expand") or r.producer(operand, "reshape")) is not None:
        operand = spread.operands[0]
    return r.scalar(operand)


# ------------------------------------------------------------------ over tokens
def _flat_reshape(s: Flattening, op: Op) -> bool:
    if op.operands[0] not in s.tokens:
        return False
    shape = reshape_shape(s.axes, s.old.type(op.operands[0]), op.result.type)
    new = s.b.mapped(op.operands[0])
    if s.b.type(new).shape == shape:
        s.define(op, [new])
    else:
        s.make(op, [new], shape=shape)
    return True


def _flat_transpose(s: Flattening, op: Op) -> bool:
    if op.operands[0] not in s.tokens:
        return False
    perm = transpose_perm(s.axes, s.old.type(op.operands[0]), cast("tuple[int, ...]", op.attr("perm")))
    new = s.b.mapped(op.operands[0])
    if perm is None:
        s.define(op, [new])
    else:
        s.make(op, [new], perm=perm)
    return True


def _flat_expand(s: Flattening, op: Op) -> bool:
    """Over tokens if it reads them; a value that is the same for every token is kept narrow."""
    x, result = op.operands[0], op.result.type
    if x in s.tokens:
        shape = s.axes.flat(result).shape
        aligned = s.aligned(x, result.rank, s.axes.tokens(result), s.axes.rest(result))
        s.tokens.add(f"%{op.result.name}")
    else:
        shape = tuple(1 if stretches(s.axes, TensorType("f32", (d,))) else d for d in result.shape)
        aligned = s.b.mapped(x)
    if s.b.type(aligned).shape != shape:
        aligned = s.b.op("expand", aligned, shape=shape, loc=op.loc)
    s.b.replace(f"%{op.result.name}", aligned)
    return True


def _flat_slice(s: Flattening, op: Op) -> bool:
    if op.operands[0] not in s.tokens:
        return False
    t, axis = s.old.type(op.operands[0]), cast(int, op.attr("axis"))
    if axis in s.axes.tokens(t) and _takes_all(op, t):
        s.define(op, [s.b.mapped(op.operands[0])])
    else:
        s.make(op, [s.b.mapped(op.operands[0])], axis=s.axes.axis(t, axis))
    return True


def _flat_concat(s: Flattening, op: Op) -> bool:
    """Parts without a token axis are repeated for every token."""
    carrying = [o for o in op.operands if o in s.tokens]
    if not carrying:
        return False
    t = s.old.type(carrying[0])
    tokens, rest = s.axes.tokens(t), s.axes.rest(t)
    parts: list[str] = []
    for o in op.operands:
        aligned = s.aligned(o, t.rank, tokens, rest)
        if o not in s.tokens:
            aligned = s.b.op("expand", aligned, shape=(s.axes.token, *s.b.type(aligned).shape))
        parts.append(aligned)
    s.make(op, parts, axis=s.axes.axis(t, cast(int, op.attr("axis"))))
    return True


for _rules in (
    OpRules("reshape", (_drop_a_move_that_changes_nothing, _reshape_of_reshape), FlatForm(_flat_reshape)),
    OpRules("transpose", (_identity_transpose, _transpose_of_transpose), FlatForm(_flat_transpose)),
    OpRules("expand", (_drop_a_move_that_changes_nothing, _expand_of_expand), FlatForm(_flat_expand)),
    OpRules("slice", (_whole_slice,), FlatForm(_flat_slice)),
    OpRules("split", (_split_in_one,)),
    OpRules("repeat", (_repeat_as_expand,)),
    OpRules("concat", (_concat_of_one, _concat_of_a_split), FlatForm(_flat_concat)),
    OpRules("pad", (_empty_pad,)),
):
    register_rules(_rules)
