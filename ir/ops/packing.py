"""Ops over packed rows: the tokens of all sequences along one axis, without padding between them.

In: values [N, ...] of N tokens, which sequence each belongs to, and where sequences begin. How many tokens
there are depends on data: `leading_rows` gives that number to a symbol, in which later shapes are written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.ir.ops.attention import Rules, attend_rows
from tilewright.ir.ops.base import Array, Attrs, AttrSpec, AxisRole, OpDef, register_op
from tilewright.ir.ops.common import (
    Roles,
    Types,
    dense,
    get_float,
    get_int,
    int_attr,
    mix_axes,
    product,
    require,
    require_float,
    require_int,
    require_rank,
    require_shape,
    rounded,
    same_dim,
    shape_of,
)  # fmt: skip
from tilewright.ir.types import TensorType, as_dim


def _moved(types: Types, at: Attrs) -> object:
    return 0


# ------------------------------------------------------------------ leading_rows
def _infer_leading(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, count = types
    size = as_dim(at["size"])
    require_rank("leading_rows", x, 1, "x")
    require(count.dtype == "i32" and count.shape == (1,), "leading_rows", "a count i32[1]", count)
    known = isinstance(size, int) or size.is_Symbol
    require(known, "leading_rows", "a size that is a symbol or a number", size)
    return [dense(x, shape=(size,))]


def _leading(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    n = shape_of(results[0])[0]
    if n > len(args[0]):
        raise IndexError(f"leading_rows: {n} rows of {len(args[0])}")
    return args[0][:n]


register_op(OpDef(
    "leading_rows", ("x", "count"), {"size": AttrSpec("dim")}, _infer_leading, _leading,
    lambda types, at: [mix_axes(types[0], [0]), [("mix", 0)]], _moved, moves=True, counts="size",
    doc="the first `count` entries of x; where `size` is a symbol, it has the value of `count` from here on",
))  # fmt: skip


# ------------------------------------------------------------------ place_rows
def _infer_place(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, slots = types
    require(x.rank >= 1, "place_rows", "x of rank 1 or more", x)
    require_int("place_rows", slots, "slots")
    return [dense(x, shape=(*slots.shape, *x.shape[1:]))]


def _place(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x, slots = args
    out = np.zeros(shape_of(results[0]), x.dtype)
    held = (slots >= 0) & (slots < len(x))
    out[held] = x[slots[held]]
    return out


def _axes_place(types: Types, at: Attrs) -> Roles:
    x, slots = types
    rows: list[AxisRole] = [("mix", 0), *(("keep", slots.rank + d) for d in range(x.rank - 1))]
    return [rows, [("keep", d) for d in range(slots.rank)]]


register_op(OpDef(
    "place_rows", ("x", "slots"), {}, _infer_place, _place, _axes_place, _moved, linear=((0,),),
    doc="row slots[i] of x for each i, zeros where it has no such row",
))  # fmt: skip


# ------------------------------------------------------------------ attend_packed
def _infer_attend(types: Types, at: Attrs) -> Sequence[TensorType]:
    q, k, v, seq, starts = types
    op, heads, kv_heads = "attend_packed", get_int(at, "heads"), get_int(at, "kv_heads")
    for t, what in ((q, "q"), (k, "k"), (v, "v")):
        require_rank(op, t, 3, what)
        require_float(op, t)
    require(kv_heads > 0 and heads % kv_heads == 0, op, "heads divisible by kv_heads", [heads, kv_heads])
    require(same_dim(q.shape[1], heads), op, f"{heads} heads in q", q)
    require_shape(op, k, (q.shape[0], kv_heads, q.shape[2]), "k")
    require_shape(op, v, (*k.shape[:2], v.shape[2]), "v")
    require(seq.dtype == starts.dtype == "i32", op, "seq and starts of type i32", [seq, starts])
    require_shape(op, seq, q.shape[:1], "seq")
    require_rank(op, starts, 1, "starts")
    return [dense(q, shape=(*q.shape[:2], v.shape[2]))]


def _attend(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    q, k, v, seq, starts = args
    out = np.zeros(shape_of(results[0]))
    rules = Rules(get_float(at, "scale"), get_float(at, "softcap"), causal=False)
    for s in np.unique(seq):
        rows, keys = np.flatnonzero(seq == s), slice(starts[s], starts[s + 1])
        places = np.arange(len(q))
        found = attend_rows(q[rows], k[keys], v[keys], places[rows], places[keys], rules)[0]
        out[rows] = found.transpose(1, 0, 2)
    return rounded(out, results[0])


def _axes_attend(types: Types, at: Attrs) -> Roles:
    head: AxisRole = ("keep", 1) if at["heads"] == at["kv_heads"] else ("mix", 1)
    return [
        [("keep", 0), ("keep", 1), ("reduce",)],
        [("mix", 0), head, ("reduce",)],
        [("mix", 0), head, ("keep", 2)],
        [("mix", 0)],
        [("mix", 0)],
    ]


def _cost_attend(types: Types, at: Attrs) -> object:
    """As many keys for each query as rows: an upper bound, since no shape says how sequences differ."""
    q, v = types[0], types[2]
    return as_dim(2 * product(q.shape[:2]) * q.shape[0] * (q.shape[2] + v.shape[2]))


register_op(OpDef(
    "attend_packed", ("q", "k", "v", "seq", "starts"),
    {
        "heads": int_attr(), "kv_heads": int_attr(), "scale": AttrSpec("float"),
        "softcap": AttrSpec("float", 0.0),
    },
    _infer_attend, _attend, _axes_attend, _cost_attend, linear=((2,),),
    doc="attention of each row n to the rows of its sequence, from starts[seq[n]] to below "
        "starts[seq[n] + 1]; seq ascends",
))  # fmt: skip
