"""Normalisations (rms_norm, layer_norm, group_norm, softmax, log_softmax): float64, rounded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tilewright.ir.ops.base import Array, Attrs, AttrSpec, AxisRole, Gain, OpDef, register_op
from tilewright.ir.ops.common import (
    Roles,
    Types,
    axis_attr,
    check_axis,
    dense,
    get_float,
    get_int,
    int_attr,
    mix_axes,
    product,
    require,
    require_float,
    require_shape,
    rounded,
    wide,
)  # fmt: skip
from tilewright.ir.types import TensorType, as_dim

EPS = AttrSpec("float")


def _infer_norm(name: str) -> Callable[[Types, Attrs], Sequence[TensorType]]:
    def infer(types: Types, at: Attrs) -> Sequence[TensorType]:
        x = types[0]
        require_float(name, *types)
        axis = check_axis(name, get_int(at, "axis"), x)
        for t in types[1:]:
            require_shape(name, t, x.shape[axis:], "a weight or bias")
        return [dense(x)]

    return infer


def _axes_norm(types: Types, at: Attrs) -> Roles:
    x, axis = types[0], get_int(at, "axis")
    params: list[AxisRole] = [("keep", d) for d in range(axis, x.rank)]
    return [mix_axes(x, range(axis, x.rank)), *[params for _ in types[1:]]]


def _cost(per_element: int) -> Callable[[Types, Attrs], object]:
    return lambda types, at: as_dim(per_element * product(types[0].shape))


def _over(x: Array, axis: int) -> tuple[int, ...]:
    return tuple(range(axis, x.ndim))


def _rms_norm(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x = wide(args[0])
    over = _over(x, get_int(at, "axis"))
    y = x / np.sqrt((x * x).mean(over, keepdims=True) + get_float(at, "eps"))
    return rounded(y * (get_float(at, "offset") + wide(args[1])) if len(args) == 2 else y, results[0])


def _layer_norm(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x = wide(args[0])
    over = _over(x, get_int(at, "axis"))
    y = (x - x.mean(over, keepdims=True)) / np.sqrt(x.var(over, keepdims=True) + get_float(at, "eps"))
    y = y * wide(args[1]) if len(args) > 1 else y
    return rounded(y + wide(args[2]) if len(args) > 2 else y, results[0])


register_op(
    OpDef(
        "rms_norm",
        ("x", "weight?"),
        {"eps": EPS, "axis": axis_attr(-1), "offset": AttrSpec("float", 0.0)},
        _infer_norm("rms_norm"),
        _rms_norm,
        _axes_norm,
        _cost(4),
        gain=Gain(offset="offset", turns=True),
        doc="x / sqrt(mean(x^2) + eps) * (offset + weight), over axes from `axis` on",
    )
)
register_op(OpDef(
    "layer_norm", ("x", "weight?", "bias?"), {"eps": EPS, "axis": axis_attr(-1)},
    _infer_norm("layer_norm"), _layer_norm, _axes_norm, _cost(6), gain=Gain(),
    doc="normalises over the axes from `axis` to the last",
))  # fmt: skip


# ------------------------------------------------------------------ group_norm
def _infer_group(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, groups = types[0], get_int(at, "groups")
    require_float("group_norm", *types)
    require(
        x.rank >= 2 and groups > 0 and as_dim(x.shape[1]) % groups == 0,
        "group_norm",
        f"channels divisible by {groups}",
        x,
    )
    for t in types[1:]:
        require_shape("group_norm", t, x.shape[1:2], "a weight or bias")
    return [dense(x)]


def _group_norm(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x = wide(args[0])
    g = x.reshape(x.shape[0], get_int(at, "groups"), -1)
    y = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + get_float(at, "eps"))
    y, per = y.reshape(x.shape), (-1, *[1] * (x.ndim - 2))
    y = y * wide(args[1]).reshape(per) if len(args) > 1 else y
    return rounded(y + wide(args[2]).reshape(per) if len(args) > 2 else y, results[0])


def _axes_group(types: Types, at: Attrs) -> Roles:
    return [mix_axes(types[0], range(1, types[0].rank)), *[[("keep", 1)] for _ in types[1:]]]


register_op(OpDef(
    "group_norm", ("x", "weight?", "bias?"), {"groups": int_attr(), "eps": EPS}, _infer_group, _group_norm,
    _axes_group, _cost(6),
))  # fmt: skip


# ------------------------------------------------------------------ softmax
def _infer_softmax(name: str) -> Callable[[Types, Attrs], Sequence[TensorType]]:
    def infer(types: Types, at: Attrs) -> Sequence[TensorType]:
        require_float(name, types[0])
        check_axis(name, get_int(at, "axis"), types[0])
        return [dense(types[0])]

    return infer


def _shifted(x: Array, axis: int) -> Array:
    """x minus its largest value along `axis`; a row of -inf becomes zeros minus infinity, not NaN."""
    top = wide(x).max(axis, keepdims=True, initial=-np.inf)
    return wide(x) - np.where(np.isinf(top), 0.0, top)


def _softmax(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    axis = get_int(at, "axis")
    e = np.exp(_shifted(args[0], axis))
    return rounded(e / e.sum(axis, keepdims=True), results[0])


def _log_softmax(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    axis = get_int(at, "axis")
    s = _shifted(args[0], axis)
    return rounded(s - np.log(np.exp(s).sum(axis, keepdims=True)), results[0])


def _axes_softmax(types: Types, at: Attrs) -> Roles:
    return [mix_axes(types[0], [get_int(at, "axis")])]


for _name, _meaning in (("softmax", _softmax), ("log_softmax", _log_softmax)):
    register_op(
        OpDef(_name, ("x",), {"axis": axis_attr()}, _infer_softmax(_name), _meaning, _axes_softmax, _cost(5))
    )
