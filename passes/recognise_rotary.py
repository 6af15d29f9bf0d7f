"""Rules for rotary embeddings: rotate-half over a whole head or its first channels, and interleaved pairs.

In: the add or concat a match ends in. Out: a `rope` op on [..., S, H, D] with half-width cos and sin tables.
"RoFormer: Enhanced Transformer with Rotary Position Embedding".
"""

from __future__ import annotations

from typing import Any

from tilewright.ir.graph.core import Op
from tilewright.ir.ops.base import OPS
from tilewright.ir.ops.common import same_dim
from tilewright.ir.types import as_dim
from tilewright.passes.patterns import View, op, var
from tilewright.passes.rewrite import Declined, Rewrite


# ------------------------------------------------------------------ x * cos + rotate(x) * sin
def rotary_sum(r: Rewrite, at: Op) -> str | None:
    """x * cos + rotate_half(x) * sin."""
    y = f"%{at.result.name}"
    for cosine, sine in (at.operands, at.operands[::-1]):
        m1, m2 = r.old.producer(cosine, "mul"), r.old.producer(sine, "mul")
        if m1 is None or m2 is None:
            continue
        for turned, sin in (m2.operands, m2.operands[::-1]):
            found = _rotated(r.old, turned)
            if found is None:
                continue
            x, interleaved = found
            if x in m1.operands:
                cos = m1.operands[1] if m1.operands[0] == x else m1.operands[0]
                return _rope(r, x, cos, sin, interleaved, y)
            raise Declined("the rotated value and the one scaled by the cosine differ")
    return None


def _rotated(v: View, operand: str) -> tuple[str, bool] | None:
    """(x, interleaved) if `operand` is rotate_half(x) or its interleaved form."""
    joined = v.producer(operand, "concat")
    if joined is not None and len(joined.operands) == 2:
        x = _halves(v, joined)
        return (x, False) if x else None
    flat = v.producer(operand, "reshape")
    pairs = v.producer(flat.operands[0], "concat") if flat is not None else None
    if pairs is None or len(pairs.operands) != 2:
        return None
    x = _pairs(v, pairs)
    return (x, True) if x else None


def _halves(v: View, joined: Op) -> str | None:
    """x of concat(-x[half:], x[:half]) along the last axis."""
    minus = v.producer(joined.operands[0], "neg")
    if minus is None or joined.attr("axis") != joined.result.type.rank - 1:
        return None
    hi, lo = part_of(v, minus.operands[0]), part_of(v, joined.operands[1])
    if hi is None or lo is None or hi[0] != lo[0]:
        return None
    n = v.type(lo[0]).shape[-1]
    ok = isinstance(n, int) and lo[1:] == (0, n // 2, 1) and hi[1:] == (n // 2, n, 1)
    return lo[0] if ok else None


def _pairs(v: View, joined: Op) -> str | None:
    """x of stack(-x[1::2], x[0::2], -1).flatten(-2)."""
    first, second = (_unsqueezed(v, o) for o in joined.operands)
    minus = v.producer(first, "neg")
    if minus is None or joined.attr("axis") != joined.result.type.rank - 1:
        return None
    odd, even = part_of(v, minus.operands[0]), part_of(v, second)
    if odd is None or even is None or odd[0] != even[0]:
        return None
    n = v.type(even[0]).shape[-1]
    ok = even[1:] == (0, n, 2) and odd[1:] == (1, n, 2)
    return even[0] if ok else None


def _unsqueezed(v: View, operand: str) -> str:
    r = v.producer(operand, "reshape")
    return r.operands[0] if r is not None and r.result.type.shape[-1] == 1 else operand


def part_of(v: View, operand: str) -> tuple[str, object, object, object] | None:
    """(x, start, stop, step) if `operand` is a slice or a split part of x along the last axis."""
    s = v.producer(operand, "slice", "split")
    if s is None:
        return None
    if s.name == "slice" and s.attr("axis") == s.result.type.rank - 1:
        stop = s.attr("stop")
        return s.operands[0], s.attr("start"), stop, s.attr("step")
    if s.name == "split" and s.attr("axis") == s.results[0].type.rank - 1:
        at = [r.name for r in s.results].index(operand[1:])
        sizes = s.attr("sizes")
        assert isinstance(sizes, tuple)
        start = as_dim(sum(sizes[:at]))
        return s.operands[0], start, as_dim(start + sizes[at]), 1
    return None


def _rope(r: Rewrite, x: str, cos: str, sin: str, interleaved: bool, y: str) -> str:
    t = r.old.type(x)
    if t.rank < 3 or not isinstance(t.shape[-1], int):
        raise Declined(
            f"the rotated value has shape {list(t.shape)}; expected [..., S, H, D] or [..., H, S, D]"
        )
    heads_first = _heads_first(r.old, x, cos)
    perm = (*range(t.rank - 3), t.rank - 2, t.rank - 3, t.rank - 1)
    value = r.emit("transpose", x, perm=perm) if heads_first else r.b.mapped(x)
    c, s = (half_table(r, o, interleaved, heads_first) for o in (cos, sin))
    turned = r.b.op("rope", value, c, s, interleaved=interleaved, dim=t.shape[-1])
    return r.b.op("transpose", turned, perm=perm) if heads_first else turned


def _heads_first(v: View, x: str, cos: str) -> bool:
    """Whether x is [..., H, S, D]: the table has one entry where the heads are."""
    tx, tc = v.type(x), v.type(cos)
    if tc.rank >= 3 and tc.shape[-2] == 1 and tx.shape[-2] != 1:
        return False
    if tc.rank < 3 or tc.shape[-3] == 1 and same_dim(tc.shape[-2], tx.shape[-2]):
        return True
    raise Declined(f"heads and positions cannot be distinguished: x {list(tx.shape)}, cos {list(tc.shape)}")


def half_table(r: Rewrite, table: str, interleaved: bool, heads_first: bool) -> str:
    """[..., S, D/2] from a full-width table: the arithmetic before the concat is repeated at half width."""
    rank = r.old.type(table).rank
    head = rank - 3 if heads_first else rank - 2
    narrow = _narrow(r, table, interleaved)
    if narrow is None:
        shape = r.old.type(table).shape
        n = shape[-1]
        stop, step = (n, 2) if interleaved else (n // 2, 1)
        narrow = r.once("slice", table, axis=rank - 1, start=0, stop=stop, step=step)
    t = r.b.type(narrow)
    if t.rank >= 3 and t.rank == rank:
        narrow = _reshaped(r, narrow, tuple(d for n, d in enumerate(t.shape) if n != head))
    return narrow


def _reshaped(r: Rewrite, operand: str, shape: tuple[object, ...]) -> str:
    key = ("drop", operand, shape)
    if key not in r.memo:
        r.memo[key] = r.b.op("reshape", operand, shape=shape)
    return r.memo[key]


def _narrow(r: Rewrite, table: str, interleaved: bool) -> str | None:
    """The table at half width, through pointwise ops, casts and reshapes that keep the last axis; None: not
    of that form."""
    key = ("narrow", table, interleaved)
    if key in r.memo:
        return r.memo[key]
    made = r.old.producer(table)
    if made is None:
        return None
    out = _doubled(r, made, interleaved)
    if out is None and made.name == "reshape" and _same_last(r.old, made):
        inner = _narrow(r, made.operands[0], interleaved)
        shape = made.result.type.shape
        out = None if inner is None else r.b.op("reshape", inner, shape=(*shape[:-1], as_dim(shape[-1]) // 2))
    if out is None and OPS[made.name].expr is not None:
        out = _narrow_pointwise(r, made, interleaved)
    if out is not None:
        r.memo[key] = out
    return out


def _same_last(v: View, made: Op) -> bool:
    return same_dim(v.type(made.operands[0]).shape[-1], made.result.type.shape[-1])


def _narrow_pointwise(r: Rewrite, made: Op, interleaved: bool) -> str | None:
    parts: list[str] = []
    made_attrs: dict[str, Any] = dict(made.attrs)
    for o in made.operands:
        t = r.old.type(o)
        part = r.b.mapped(o) if t.rank == 0 or t.shape[-1] == 1 else _narrow(r, o, interleaved)
        if part is None:
            return None
        parts.append(part)
    return r.b.op(made.name, *parts, **made_attrs)


def _doubled(r: Rewrite, made: Op, interleaved: bool) -> str | None:
    """f of concat(f, f), or of repeat-interleave written as expand and reshape."""
    if not interleaved and made.name == "concat" and made.attr("axis") == made.result.type.rank - 1:
        same = len(made.operands) == 2 and made.operands[0] == made.operands[1]
        return r.b.mapped(made.operands[0]) if same else None
    if interleaved and made.name == "reshape":
        e = r.old.producer(made.operands[0], "expand", "concat")
        if e is None or e.result.type.shape[-1] != 2 or len(set(e.operands)) != 1:
            return None
        f = r.old.producer(e.operands[0], "reshape")
        return r.b.mapped(f.operands[0]) if f is not None and f.result.type.shape[-1] == 1 else None
    return None


# ------------------------------------------------------------------ (x1 cos - x2 sin) and (x2 cos + x1 sin),
def rotary_concat(r: Rewrite, at: Op) -> str | None:
    """concat(x1 * cos - x2 * sin, x2 * cos + x1 * sin) with half-width tables."""
    axis = at.result.type.rank - 1
    if at.attr("axis") != axis or len(at.operands) != 2:
        return None
    found = _crossed(r.old, *at.operands)
    if found is None:
        return None
    x1, x2, cos, sin = found
    a, b = part_of(r.old, x1), part_of(r.old, x2)
    if a is None or b is None or a[0] != b[0]:
        raise Declined("the two halves are not slices of one value")
    n = r.old.type(a[0]).shape[-1]
    if a[1:] != (0, as_dim(n) // 2, 1) or b[1:] != (as_dim(n) // 2, n, 1):
        raise Declined("the halves are not the first and second half of the last axis")
    return _rope_half(r, a[0], cos, sin, False)


def _crossed(v: View, first: str, second: str) -> tuple[str, str, str, str] | None:
    difference = v.match(op("sub", op("mul", var("x1"), var("cos")), op("mul", var("x2"), var("sin"))), first)
    if difference is None:
        return None
    for x1, cos in (("x1", "cos"), ("cos", "x1")):
        for x2, sin in (("x2", "sin"), ("sin", "x2")):
            d = difference
            want = op("add", op("mul", var("a"), var("b")), op("mul", var("c"), var("d")))
            m = v.match(want, second)
            if m is None:
                return None
            pairs = {frozenset((m["a"], m["b"])), frozenset((m["c"], m["d"]))}
            if pairs == {frozenset((d[x2], d[cos])), frozenset((d[x1], d[sin]))}:
                return d[x1], d[x2], d[cos], d[sin]
    return None


def _rope_half(r: Rewrite, x: str, cos: str, sin: str, interleaved: bool) -> str:
    t = r.old.type(x)
    if t.rank < 3:
        raise Declined(
            f"the rotated value has shape {list(t.shape)}; expected [..., S, H, D] or [..., H, S, D]"
        )
    heads_first = _heads_first(r.old, x, cos)
    perm = (*range(t.rank - 3), t.rank - 2, t.rank - 3, t.rank - 1)
    value = r.emit("transpose", x, perm=perm) if heads_first else r.b.mapped(x)
    tables: list[str] = []
    for o in (cos, sin):
        rank = r.old.type(o).rank
        head = rank - 3 if heads_first else rank - 2
        shape = tuple(d for n, d in enumerate(r.old.type(o).shape) if n != head)
        tables.append(r.b.mapped(o) if rank < 3 else _reshaped(r, r.b.mapped(o), shape))
    turned = r.b.op("rope", value, *tables, interleaved=interleaved, dim=t.shape[-1])
    return r.b.op("transpose", turned, perm=perm) if heads_first else turned


def rotary_part(r: Rewrite, at: Op) -> str | None:
    """concat(rope(x[..., :r]), x[..., r:]) is rope(x) with dim = r, transposes looked through."""
    if at.attr("axis") != at.result.type.rank - 1 or len(at.operands) != 2:
        return None
    if r.old.type(at.operands[1]).shape[-1] == 0:
        return r.b.mapped(at.operands[0])
    turned, perm = at.operands[0], None
    outer = r.old.producer(turned, "transpose")
    if outer is not None:
        turned, perm = outer.operands[0], outer.attr("perm")
    rope = r.old.producer(turned, "rope")
    if rope is None:
        return None
    head = rope.operands[0]
    inner = r.old.producer(head, "transpose")
    if perm is not None:
        if inner is None or inner.attr("perm") != perm:
            raise Declined("the rotated part is transposed differently before and after")
        head = inner.operands[0]
    a, b = part_of(r.old, head), part_of(r.old, at.operands[1])
    if a is None or b is None or a[0] != b[0] or a[1] != 0 or a[2] != b[1]:
        raise Declined("the remaining channels are not those after the rotated ones")
    x = r.emit("transpose", a[0], perm=perm) if perm is not None else r.b.mapped(a[0])
    tables = [r.b.mapped(o) for o in rope.operands[1:]]
    whole = r.b.op("rope", x, *tables, interleaved=rope.attr("interleaved"), dim=rope.attr("dim"))
    return r.b.op("transpose", whole, perm=perm) if perm is not None else whole


def rotary_interleaved(r: Rewrite, at: Op) -> str | None:
    """stack(x1 * cos - x2 * sin, x2 * cos + x1 * sin, -1) flattened, x1 and x2 the even and odd channels."""
    pairs = r.old.producer(at.operands[0], "concat")
    if pairs is None or len(pairs.operands) != 2 or pairs.result.type.shape[-1] != 2:
        return None
    found = _crossed(r.old, *(_unsqueezed(r.old, o) for o in pairs.operands))
    if found is None:
        return None
    x1, x2, cos, sin = found
    a, b = part_of(r.old, x1), part_of(r.old, x2)
    if a is None or b is None or a[0] != b[0] or a[1] != 0 or b[1] != 1 or a[3] != 2 or b[3] != 2:
        raise Declined("the two parts are not the even and odd channels of one value")
    return _rope_half(r, a[0], cos, sin, True)
