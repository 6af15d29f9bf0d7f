"""Ops over windows of space: conv, max_pool, sum_pool. Channels are the last axis of images and of windows.

`x` is [N, space…, C] with one to three axes of space. The weight of a convolution is a matrix
[O, window… * C / groups], a row of which is the window of one output, its channels innermost: it is stored
and encoded like the matrix of a linear layer. NumPy accumulates in float64 and rounds once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tilewright.ir.ops.base import Array, Attrs, AttrSpec, AxisRole, OpDef, register_op
from tilewright.ir.ops.common import (
    Roles,
    Types,
    dense,
    get_int,
    get_ints,
    int_attr,
    product,
    require,
    require_float,
    require_rank,
    require_shape,
    rounded,
    same_dim,
    wide,
    wrapped,
)  # fmt: skip
from tilewright.ir.types import FLOATS, TensorType, as_dim

if TYPE_CHECKING:
    import sympy

_INTS = AttrSpec("ints")
#: `padding`: elements before and after each axis of space, in pairs
_WINDOW = {"window": _INTS, "stride": _INTS, "padding": _INTS, "dilation": _INTS}


# ------------------------------------------------------------------ windows
def _check_window(name: str, x: TensorType, at: Attrs) -> None:
    n = x.rank - 2
    require(1 <= n <= 3, name, "x [N, space…, C] with 1 to 3 axes of space", x)
    for key in ("window", "stride", "dilation"):
        values = get_ints(at, key)
        require(len(values) == n and min(values) >= 1, name, f"{n} positive values of {key}", values)
    pads = get_ints(at, "padding")
    require(len(pads) == 2 * n and min(pads) >= 0, name, f"{n} pairs of padding, 0 or more", pads)


def _spatial(name: str, x: TensorType, at: Attrs) -> list[int | sympy.Expr]:
    """How many windows fit along each axis of space."""
    import sympy

    pads, out = get_ints(at, "padding"), list[int | sympy.Expr]()
    steps = zip(get_ints(at, "window"), get_ints(at, "stride"), get_ints(at, "dilation"), strict=True)
    for d, (k, s, f) in enumerate(steps):
        room = as_dim(x.shape[1 + d] + pads[2 * d] + pads[2 * d + 1] - f * (k - 1) - 1)
        require(not isinstance(room, int) or room >= 0, name, "windows that fit in the padded space", x)
        fits = room if s == 1 else room // s if isinstance(room, int) else sympy.floor(room / s)
        out.append(as_dim(fits + 1))
    return out


def _windows(x: Array, at: Attrs, fill: float) -> Array:
    """[N, places…, C, window…] of an array [N, space…, C]."""
    n, pads = x.ndim - 2, get_ints(at, "padding")
    pairs = [(0, 0), *zip(pads[0::2], pads[1::2], strict=True), (0, 0)]
    x = np.pad(x, pairs, constant_values=np.asarray(fill, x.dtype))
    dilation = get_ints(at, "dilation")
    spans = [f * (k - 1) + 1 for f, k in zip(dilation, get_ints(at, "window"), strict=True)]
    view = sliding_window_view(x, spans, axis=tuple(range(1, 1 + n)))
    places = [slice(None, None, s) for s in get_ints(at, "stride")]
    inside = [slice(None, None, f) for f in dilation]
    return view[(slice(None), *places, slice(None), *inside)]


# ------------------------------------------------------------------ conv
def _infer_conv(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, w = types[:2]
    groups = get_int(at, "groups")
    require_float("conv", *types)
    _check_window("conv", x, at)
    require_rank("conv", w, 2, "a weight [O, window * C / groups]")
    taps = math.prod(get_ints(at, "window"))
    fits = groups >= 1 and same_dim(as_dim(w.shape[1] * groups), as_dim(taps * x.shape[-1]))
    require(fits, "conv", f"{w.shape[1]} = {taps} * C / {groups} columns", [x, w])
    outputs = w.shape[0]
    require(
        not isinstance(outputs, int) or outputs % groups == 0, "conv", f"{groups} equal groups of outputs", w
    )
    if len(types) == 3:
        require_shape("conv", types[2], w.shape[:1], "a bias")
    return [dense(x, shape=(x.shape[0], *_spatial("conv", x, at), outputs))]


def _conv(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    n, groups, window = args[0].ndim - 2, get_int(at, "groups"), get_ints(at, "window")
    view = _windows(wide(args[0]), at, 0.0)
    cols = view.reshape(*view.shape[: 1 + n], groups, -1, *window)
    kernels = wide(args[1]).reshape(groups, len(args[1]) // groups, *window, cols.shape[2 + n])
    space, taps = "xyz"[:n], "pqr"[:n]
    y = np.einsum(f"b{space}gc{taps},go{taps}c->b{space}go", cols, kernels)
    y = y.reshape(*y.shape[: 1 + n], -1)
    return rounded(y + wide(args[2]) if len(args) == 3 else y, results[0])


def _axes_conv(types: Types, at: Attrs) -> Roles:
    last = types[0].rank - 1
    channels: AxisRole = ("reduce",) if at["groups"] == 1 else ("mix", last)
    space: list[AxisRole] = [("shift", d) for d in range(1, last)]
    roles: list[list[AxisRole]] = [[("keep", 0), *space, channels], [("keep", last), ("reduce",)]]
    return roles + ([[("keep", last)]] if len(types) == 3 else [])


def _cost_conv(types: Types, at: Attrs) -> object:
    return as_dim(2 * product(_infer_conv(types, at)[0].shape) * types[1].shape[1])


register_op(OpDef(
    "conv", ("x", "w", "bias?"), {**_WINDOW, "groups": int_attr(1)}, _infer_conv, _conv, _axes_conv,
    _cost_conv, linear=((0, 2), (1, 2)),
    doc="x [N, space…, C], w [O, window… * C / groups], channels innermost; padding: pairs, before and after",
))  # fmt: skip


# ------------------------------------------------------------------ pooling
def _pool(
    name: str, fn: Callable[..., Array], fill: float, linear: tuple[tuple[int, ...], ...], doc: str
) -> None:
    def infer(types: Types, at: Attrs) -> Sequence[TensorType]:
        (x,) = types
        require(x.dtype != "bool", name, "numbers", x)
        _check_window(name, x, at)
        return [dense(x, shape=(x.shape[0], *_spatial(name, x, at), x.shape[-1]))]

    def meaning(args: Sequence[Array], at: Attrs, results: Types) -> Array:
        x, n = wide(args[0]), args[0].ndim - 2
        lowest = fill if results[0].dtype in FLOATS or not fill else np.iinfo(args[0].dtype).min
        return wrapped(fn(_windows(x, at, lowest), axis=tuple(range(-n, 0))), results[0])

    def axes(types: Types, at: Attrs) -> Roles:
        last = types[0].rank - 1
        return [[("keep", 0), *(("shift", d) for d in range(1, last)), ("keep", last)]]

    def cost(types: Types, at: Attrs) -> object:
        return as_dim(product(infer(types, at)[0].shape) * math.prod(get_ints(at, "window")))

    register_op(OpDef(name, ("x",), _WINDOW, infer, meaning, axes, cost, linear=linear, doc=doc))


_pool("max_pool", np.max, -math.inf, (), "the largest element of each window, per channel; NaN wins")
_pool("sum_pool", np.sum, 0.0, ((0,),), "the sum of each window, per channel")
