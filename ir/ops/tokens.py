"""Ops that apply a choice of tokens (`ops.token_choice`): take_tokens, merge_tokens, restore_tokens.

In: values [B, N, ...] and an index map. Out: values over fewer tokens, or over all of them again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.ir.ops.base import Array, Attrs, AttrSpec, AxisRole, OpDef, register_op
from tilewright.ir.ops.common import (
    Roles,
    Types,
    dense,
    product,
    replace_at,
    require,
    require_float,
    require_int,
    require_rank,
    require_shape,
    rounded,
    shape_of,
    wide,
)  # fmt: skip
from tilewright.ir.ops.indexing import checked
from tilewright.ir.types import TensorType, as_dim

#: smaller weights count as this much, so that tokens whose weights are all 0 have a mean
LEAST = 1e-30


# ------------------------------------------------------------------ take_tokens
def _infer_take(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, ids = types
    require(x.rank >= 2, "take_tokens", "x [B, N, ...]", x)
    require_int("take_tokens", ids, "ids")
    require_rank("take_tokens", ids, 2, "ids")
    require_shape("take_tokens", ids, (x.shape[0], ids.shape[1]), "ids")
    return [dense(x, shape=replace_at(x.shape, 1, ids.shape[1]))]


def _take(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x, ids = args
    return x[np.arange(len(x))[:, None], checked("take_tokens", ids, x.shape[1])]


def _tokens_mix(t: TensorType) -> list[AxisRole]:
    return [("mix" if d == 1 else "keep", d) for d in range(t.rank)]


register_op(OpDef(
    "take_tokens", ("x", "ids"), {}, _infer_take, _take,
    lambda types, at: [_tokens_mix(types[0]), [("keep", 0), ("keep", 1)]], lambda types, at: 0,
    linear=((0,),), moves=True,
    doc="row b of the result holds the tokens ids[b] of row b of x",
))  # fmt: skip


# ------------------------------------------------------------------ merge_tokens
def _infer_merge(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, slots = types[:2]
    require(x.rank >= 2, "merge_tokens", "x [B, N, ...]", x)
    require_float("merge_tokens", x, *types[2:])
    require_int("merge_tokens", slots, "slots")
    for t, what in zip(types[1:], ("slots", "weights"), strict=False):
        require_shape("merge_tokens", t, x.shape[:2], what)
    return [dense(x, shape=replace_at(x.shape, 1, as_dim(at["count"])))]


def _merged(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x, slots = args[:2]
    count = shape_of(results[0])[1]
    hit = slots[:, None, :] == np.arange(count)[None, :, None]
    weights = wide(args[2]) if len(args) > 2 else np.ones(slots.shape)
    shares = np.where(hit, np.maximum(weights, LEAST)[:, None], 0.0)
    if at["mean"]:
        total = shares.sum(-1, keepdims=True)
        shares = shares / np.where(total == 0, 1.0, total)
    flat = wide(x).reshape(*x.shape[:2], -1)
    return rounded((shares @ flat).reshape(len(x), count, *x.shape[2:]), results[0])


def _axes_merge(types: Types, at: Attrs) -> Roles:
    return [_tokens_mix(t) for t in types]


def _cost_merge(types: Types, at: Attrs) -> object:
    return as_dim(2 * product(types[0].shape) * as_dim(at["count"]))


register_op(OpDef(
    "merge_tokens", ("x", "slots", "weights?"), {"count": AttrSpec("dim"), "mean": AttrSpec("bool", True)},
    _infer_merge, _merged, _axes_merge, _cost_merge, linear=((0,),),
    doc="each place as the mean of its tokens, weighted if weights [B, N] are given, or as their sum; a "
        "token whose slot is `count` is left out",
))  # fmt: skip


# ------------------------------------------------------------------ restore_tokens
def _infer_restore(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, slots, before = types
    require_int("restore_tokens", slots, "slots")
    require(x.rank >= 2 and x.dtype == before.dtype, "restore_tokens", "x [B, M, ...]", x)
    require_shape("restore_tokens", slots, before.shape[:2], "slots")
    require_shape("restore_tokens", before, replace_at(x.shape, 1, before.shape[1]), "the tokens before")
    return [dense(before)]


def _restore(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x, slots, before = args
    held = (slots >= 0) & (slots < x.shape[1])
    back = x[np.arange(len(x))[:, None], np.where(held, slots, 0)]
    return np.where(held.reshape(*held.shape, *[1] * (x.ndim - 2)), back, before)


def _axes_restore(types: Types, at: Attrs) -> Roles:
    x, slots, before = types
    return [_tokens_mix(x), [("keep", 0), ("keep", 1)], [("keep", d) for d in range(before.rank)]]


register_op(OpDef(
    "restore_tokens", ("x", "slots", "before"), {}, _infer_restore, _restore, _axes_restore,
    lambda types, at: 0, linear=((0, 2),), moves=True,
    doc="every token of the longer sequence: the value of its place in x, or its own before if it was "
        "dropped",
))  # fmt: skip
