"""Ops by index: gather, gather_elements, scatter, index_put, select_rows.

An index outside its axis is an error in the interpreter, never a wrap-around.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.ir.ops.base import Array, Attrs, AttrSpec, AxisRole, OpDef, register_op
from tilewright.ir.ops.common import (
    BOOL,
    Roles,
    Types,
    axis_attr,
    broadcast_shapes,
    check_axis,
    dense,
    get_int,
    keep_axes,
    mix_axes,
    require,
    require_int,
    require_rank,
    rounded,
    same_dim,
    same_dtype,
    same_shape,
)  # fmt: skip
from tilewright.ir.types import TensorType


def checked(op: str, ids: Array, size: int) -> Array:
    """The indices; IndexError names the first outside 0..size."""
    bad = ids[(ids < 0) | (ids >= size)]
    if bad.size:
        raise IndexError(f"{op}: index {bad.flat[0]} is outside 0..{size - 1}")
    return ids


def _moved(types: Types, at: Attrs) -> object:
    return 0


# ------------------------------------------------------------------ gather
def _infer_gather(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, ids = types
    axis = check_axis("gather", get_int(at, "axis"), x)
    require_int("gather", ids, "indices")
    return [dense(x, shape=(*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :]))]


def _gather(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    axis = get_int(at, "axis")
    return np.take(args[0], checked("gather", args[1], args[0].shape[axis]), axis)


def _axes_gather(types: Types, at: Attrs) -> Roles:
    axis, n = get_int(at, "axis"), types[1].rank
    x: list[AxisRole] = [("keep", d if d < axis else d + n - 1) for d in range(types[0].rank)]
    x[axis] = ("mix", axis) if n else ("reduce",)
    return [x, keep_axes(types[1], axis)]


register_op(
    OpDef(
        "gather",
        ("x", "ids"),
        {"axis": axis_attr(0)},
        _infer_gather,
        _gather,
        _axes_gather,
        _moved,
        linear=((0,),),
        moves=True,
    )
)


def _infer_elements(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, ids = types
    check_axis("gather_elements", get_int(at, "axis"), x)
    require_int("gather_elements", ids, "indices")
    require_rank("gather_elements", ids, x.rank, "indices")
    return [dense(x, shape=ids.shape)]


def _elements(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x, ids = args
    axis = get_int(at, "axis")
    box = tuple(slice(None) if d == axis else slice(0, n) for d, n in enumerate(ids.shape))
    return np.take_along_axis(x[box], checked("gather_elements", ids, x.shape[axis]).astype(np.int64), axis)


def _axes_elements(types: Types, at: Attrs) -> Roles:
    return [mix_axes(types[0], [get_int(at, "axis")]), *[keep_axes(t) for t in types[1:]]]


register_op(
    OpDef(
        "gather_elements",
        ("x", "ids"),
        {"axis": axis_attr()},
        _infer_elements,
        _elements,
        _axes_elements,
        _moved,
        linear=((0,),),
        moves=True,
    )
)


# ------------------------------------------------------------------ scatter
#: how a source element is combined with what its place holds
COMBINED = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _infer_scatter(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, ids, src = types
    check_axis("scatter", get_int(at, "axis"), x)
    require_int("scatter", ids, "indices")
    require(
        same_shape(ids.shape, src.shape) and ids.rank == x.rank,
        "scatter",
        "indices and source of the same shape, with x's rank",
        list(types),
    )
    known = ("none", *COMBINED)
    require(at["reduce"] in known, "scatter", f"reduce among {', '.join(known)}", at["reduce"])
    return [dense(x, dtype=same_dtype("scatter", [x, src]))]


def _scatter(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x, ids, src = args
    axis, out = get_int(at, "axis"), np.array(x)
    index: list[Array] = list(np.indices(ids.shape))
    index[axis] = checked("scatter", ids, x.shape[axis]).astype(np.int64)
    combine = COMBINED.get(str(at["reduce"]))
    if combine is None:
        out[tuple(index)] = src
        return out
    combine.at(out, tuple(index), src)
    return rounded(out, results[0]) if out.dtype.kind == "f" else out


def _axes_scatter(types: Types, at: Attrs) -> Roles:
    """An axis of the indices and the source is the result's only where it is as long as x's; a shorter one is
    mixed."""
    x, ids, src = types
    mixed = [d for d in range(x.rank) if d == get_int(at, "axis") or not same_dim(ids.shape[d], x.shape[d])]
    return [keep_axes(x), mix_axes(ids, mixed), mix_axes(src, mixed)]


register_op(OpDef(
    "scatter", ("x", "ids", "src"), {"axis": axis_attr(), "reduce": AttrSpec("str", "none")},
    _infer_scatter, _scatter, _axes_scatter, _moved,
    doc="x with src written along `axis` at ids, or combined: add, mul, max, min",
))  # fmt: skip


def _infer_put(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, ids, values = types
    require_int("index_put", ids, "indices")
    require(x.rank >= 1, "index_put", "x of rank 1 or more", x)
    rows = (*ids.shape, *x.shape[1:])
    require(
        same_shape(broadcast_shapes("index_put", [values.shape, rows]), rows),
        "index_put",
        "values that broadcast to the rows",
        values,
    )
    return [dense(x, dtype=same_dtype("index_put", [x, values]))]


def _put(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x, ids, values = args
    out = np.array(x)
    at_rows = checked("index_put", ids, len(x))
    if at["accumulate"]:
        np.add.at(out, at_rows, values)
    else:
        out[at_rows] = values
    return out


def _axes_put(types: Types, at: Attrs) -> Roles:
    x, ids, values = types
    rank = ids.rank + x.rank - 1
    mixed: list[AxisRole] = [("mix", 0)] * ids.rank
    rows: list[AxisRole] = [*mixed, *(("keep", d) for d in range(1, x.rank))]
    return [keep_axes(x), mixed, rows[rank - values.rank :]]


register_op(
    OpDef(
        "index_put",
        ("x", "ids", "values"),
        {"accumulate": BOOL},
        _infer_put,
        _put,
        _axes_put,
        _moved,
        doc="x with the rows `ids` of axis 0 replaced",
    )
)


# ------------------------------------------------------------------ select_rows
def _infer_rows(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, rows = types
    require(x.rank >= 1, "select_rows", "x of rank 1 or more", x)
    require_int("select_rows", rows, "rows")
    require_rank("select_rows", rows, 1, "rows")
    return [dense(x, shape=(*rows.shape, *x.shape[1:]))]


def _rows(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    return args[0][checked("select_rows", args[1], len(args[0]))]


def _axes_rows(types: Types, at: Attrs) -> Roles:
    return [mix_axes(types[0], [0]), [("keep", 0)]]


register_op(
    OpDef(
        "select_rows", ("x", "rows"), {}, _infer_rows, _rows, _axes_rows, _moved, linear=((0,),), moves=True
    )
)
