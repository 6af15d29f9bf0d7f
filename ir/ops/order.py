"""Ops by order: topk, sort, and the merging of sorted runs, of which long rows are sorted.

Orders are stable, and NaN is larger than any number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.ir.ops.base import Array, Attrs, AttrSpec, OpDef, register_op
from tilewright.ir.ops.common import (
    BOOL,
    Roles,
    Types,
    axis_attr,
    check_axis,
    dense,
    get_int,
    int_attr,
    mix_axes,
    product,
    replace_at,
    require,
    same_shape,
)  # fmt: skip
from tilewright.ir.types import TensorType


# ------------------------------------------------------------------ topk
def _order(x: Array, axis: int, descending: bool) -> Array:
    """Stable order along `axis`: equal values keep their order, whichever the direction."""
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    flipped = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    out: Array = x.shape[axis] - 1 - np.flip(flipped, axis)
    return out


def _infer_topk(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, k = types[0], get_int(at, "k")
    axis = check_axis("topk", get_int(at, "axis"), x)
    require(
        k >= 0 and not (isinstance(x.shape[axis], int) and k > x.shape[axis]),
        "topk",
        f"k within {x.shape[axis]}",
        f"k {k}",
    )
    shape = replace_at(x.shape, axis, k)
    return [dense(x, shape=shape), TensorType("i32", shape)]


def _topk(args: Sequence[Array], at: Attrs, results: Types) -> tuple[Array, ...]:
    axis = get_int(at, "axis")
    order = np.take(_order(args[0], axis, bool(at.get("largest", True))), np.arange(get_int(at, "k")), axis)
    return np.take_along_axis(args[0], order, axis), order.astype(np.int32)


def _axes_order(types: Types, at: Attrs) -> Roles:
    return [mix_axes(types[0], [get_int(at, "axis")])]


def _cost_order(types: Types, at: Attrs) -> object:
    return product(types[0].shape)


register_op(OpDef(
    "topk", ("x",), {"k": int_attr(), "axis": axis_attr(-1), "largest": AttrSpec("bool", True)},
    _infer_topk, _topk, _axes_order, _cost_order,
    doc="values and i32 indices of the k largest, descending (or smallest, ascending), ties by lower "
        "index; NaN is the largest",
))  # fmt: skip


# ------------------------------------------------------------------ sort
def _infer_sort(types: Types, at: Attrs) -> Sequence[TensorType]:
    check_axis("sort", get_int(at, "axis"), types[0])
    require(get_int(at, "run") >= 0, "sort", "runs of 0 (the whole axis) or more", f"run {at['run']}")
    return [dense(types[0]), TensorType("i32", types[0].shape)]


def _runs(x: Array, axis: int, run: int) -> list[Array]:
    """Stretches of an axis that are ordered by themselves; one if `run` is 0."""
    size = x.shape[axis]
    return np.split(x, range(run, size, run), axis) if run else [x]


def _sort(args: Sequence[Array], at: Attrs, results: Types) -> tuple[Array, ...]:
    """Each run in order, and the position along the axis that each element came from."""
    x, axis, run = args[0], get_int(at, "axis"), get_int(at, "run")
    parts, start = [], 0
    for part in _runs(x, axis, run):
        parts.append(_order(part, axis, bool(at["descending"])) + start)
        start += part.shape[axis]
    order = np.concatenate(parts, axis)
    return np.take_along_axis(x, order, axis), order.astype(np.int32)


def _infer_merge(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, places = types
    require(
        x.rank > 0 and same_shape(x.shape, places.shape), "merge_runs", "places of x's shape", list(types)
    )
    require(places.dtype == "i32", "merge_runs", "i32 places", places)
    width = get_int(at, "width")
    require(width > 0 and not width & (width - 1), "merge_runs", "runs of a power of two", f"width {width}")
    return [dense(x), dense(places)]


def _merge(args: Sequence[Array], at: Attrs, results: Types) -> tuple[Array, ...]:
    sort = {"axis": args[0].ndim - 1, "run": 2 * get_int(at, "width"), "descending": at["descending"]}
    values, order = _sort(args[:1], sort, results)
    return values, np.take_along_axis(args[1], order, -1)


def _axes_merge(types: Types, at: Attrs) -> Roles:
    return [mix_axes(t, [t.rank - 1]) for t in types]


register_op(OpDef(
    "sort", ("x",), {"axis": axis_attr(-1), "descending": BOOL, "run": int_attr(0)},
    _infer_sort, _sort, _axes_order, _cost_order,
    doc="values and i32 positions, equal values in their order; run: each run of so many elements by itself",
))  # fmt: skip
register_op(OpDef(
    "merge_runs", ("x", "places"), {"width": int_attr(), "descending": BOOL}, _infer_merge, _merge,
    _axes_merge, _cost_order,
    doc="x and places with each two neighbouring runs along the last axis, `width` long and in order, as one",
))  # fmt: skip
