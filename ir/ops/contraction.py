"""Contractions: linear, matmul, grouped_linear, conv. NumPy accumulates in float64 and rounds once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from tilewright.ir.ops.base import Array, Attrs, AttrSpec, AxisRole, OpDef, register_op
from tilewright.ir.ops.common import (
    BOOL,
    Roles,
    Types,
    broadcast_shapes,
    dense,
    get_int,
    get_ints,
    int_attr,
    no_attrs,
    product,
    require,
    require_float,
    require_int,
    require_rank,
    require_shape,
    rounded,
    same_dim,
    wide,
)  # fmt: skip
from tilewright.ir.types import TensorType, as_dim

if TYPE_CHECKING:
    import sympy

#: x and the bias, or the matrix and the bias
_LINEAR = ((0, 2), (1, 2))


# ------------------------------------------------------------------ linear
def _infer_linear(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, w = types[0], types[1]
    require_float("linear", *types)
    require_rank("linear", w, 2, "a weight [N, K]")
    require(
        x.rank >= 1 and same_dim(x.shape[-1], w.shape[1]),
        "linear",
        f"x whose last axis is K = {w.shape[1]}",
        x,
    )
    if len(types) == 3:
        require_shape("linear", types[2], w.shape[:1], "a bias")
    return [dense(x, shape=(*x.shape[:-1], w.shape[0]))]


def _linear(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    y = wide(args[0]) @ wide(args[1]).T
    return rounded(y + wide(args[2]) if len(args) == 3 else y, results[0])


def _axes_linear(types: Types, at: Attrs) -> Roles:
    last = types[0].rank - 1
    roles: list[list[AxisRole]] = [
        [*(("keep", d) for d in range(last)), ("reduce",)],
        [("keep", last), ("reduce",)],
    ]
    return roles + ([[("keep", last)]] if len(types) == 3 else [])


def _cost_linear(types: Types, at: Attrs) -> object:
    return as_dim(2 * product(types[0].shape) * types[1].shape[0])


register_op(
    OpDef(
        "linear",
        ("x", "w", "bias?"),
        no_attrs(),
        _infer_linear,
        _linear,
        _axes_linear,
        _cost_linear,
        linear=_LINEAR,
    )
)


# ------------------------------------------------------------------ matmul
def _sides(types: Types, at: Attrs) -> tuple[tuple[int, int], tuple[int, int]]:
    """Axes (m, k) of a and (n, k) of b."""
    a, b = types[0].rank, types[1].rank
    ma, ka = (a - 1, a - 2) if at["transpose_a"] else (a - 2, a - 1)
    nb, kb = (b - 2, b - 1) if at["transpose_b"] else (b - 1, b - 2)
    return (ma, ka), (nb, kb)


def _infer_matmul(types: Types, at: Attrs) -> Sequence[TensorType]:
    a, b = types
    require_float("matmul", a, b)
    require(a.rank >= 2 and b.rank >= 2, "matmul", "operands of rank 2 or more", list(types))
    (ma, ka), (nb, kb) = _sides(types, at)
    require(
        same_dim(a.shape[ka], b.shape[kb]),
        "matmul",
        "operands with equal contracted axes",
        list(types),
    )
    lead = broadcast_shapes("matmul", [a.shape[:-2], b.shape[:-2]])
    return [dense(a, shape=(*lead, a.shape[ma], b.shape[nb]))]


def _matmul(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    a, b = wide(args[0]), wide(args[1])
    a = np.swapaxes(a, -1, -2) if at["transpose_a"] else a
    b = np.swapaxes(b, -1, -2) if at["transpose_b"] else b
    return rounded(a @ b, results[0])


def _axes_matmul(types: Types, at: Attrs) -> Roles:
    rank = max(t.rank for t in types)
    (ma, ka), (nb, kb) = _sides(types, at)
    out: list[list[AxisRole]] = []
    for t, free, red, place in ((types[0], ma, ka, rank - 2), (types[1], nb, kb, rank - 1)):
        roles: list[AxisRole] = [
            ("broadcast" if t.shape[d] == 1 else "keep", rank - t.rank + d) for d in range(t.rank)
        ]
        roles[free], roles[red] = ("keep", place), ("reduce",)
        out.append(roles)
    return out


def _cost_matmul(types: Types, at: Attrs) -> object:
    (_, ka), _ = _sides(types, at)
    return as_dim(2 * product(_infer_matmul(types, at)[0].shape) * types[0].shape[ka])


register_op(OpDef(
    "matmul", ("a", "b"), {"transpose_a": BOOL, "transpose_b": BOOL}, _infer_matmul, _matmul, _axes_matmul,
    _cost_matmul, linear=((0,), (1,)),
))  # fmt: skip


# ------------------------------------------------------------------ grouped_linear
def _infer_grouped(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, w, ids = types[:3]
    require_float("grouped_linear", x, w)
    require_rank("grouped_linear", w, 3, "weights [E, N, K]")
    require_int("grouped_linear", ids, "expert ids")
    require_rank("grouped_linear", ids, 2, "expert ids [T, A]")
    lead = ids.shape[: x.rank - 1]
    require(x.rank in (2, 3), "grouped_linear", "x of shape [T, K] or [T, A, K]", x)
    require_shape("grouped_linear", x, (*lead, w.shape[2]), "x")
    if len(types) == 4:
        require_shape("grouped_linear", types[3], w.shape[:2], "a bias")
    return [dense(x, shape=(*ids.shape, w.shape[1]))]


def _grouped(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x, w, ids = args[:3]
    rows = np.broadcast_to(x[:, None] if x.ndim == 2 else x, (*ids.shape, x.shape[-1]))
    out = np.zeros((*ids.shape, w.shape[1]), np.float64)
    for e in np.unique(ids):
        if not 0 <= e < len(w):
            raise IndexError(f"grouped_linear: expert {e} of {len(w)}")
        chosen = ids == e
        out[chosen] = wide(rows[chosen]) @ wide(w[e]).T + (wide(args[3][e]) if len(args) == 4 else 0)
    return rounded(out, results[0])


def _axes_grouped(types: Types, at: Attrs) -> Roles:
    lead: list[AxisRole] = [("keep", d) for d in range(types[0].rank - 1)]
    roles: list[list[AxisRole]] = [
        [*lead, ("reduce",)], [("mix", 2), ("keep", 2), ("reduce",)], [("keep", 0), ("keep", 1)],
    ]  # fmt: skip
    return roles + ([[("mix", 2), ("keep", 2)]] if len(types) == 4 else [])


def _cost_grouped(types: Types, at: Attrs) -> object:
    return as_dim(2 * product(types[2].shape) * product(types[1].shape[1:]))


register_op(OpDef(
    "grouped_linear", ("x", "w", "ids", "bias?"), no_attrs(), _infer_grouped, _grouped, _axes_grouped,
    _cost_grouped, linear=((0, 3), (1, 3)),
    doc="for each token and each of its chosen experts e: x @ w[e]^T (+ bias[e])",
))  # fmt: skip


# ------------------------------------------------------------------ conv
def _spatial(types: Types, at: Attrs) -> list[int | sympy.Expr]:
    import sympy

    out: list[int | sympy.Expr] = []
    stride, padding, dilation = (get_ints(at, k) for k in ("stride", "padding", "dilation"))
    for d, (s, p, f) in enumerate(zip(stride, padding, dilation, strict=True)):
        size, k = types[0].shape[2 + d], types[1].shape[2 + d]
        span = as_dim(size + 2 * p - f * (k - 1) - 1)
        out.append(
            as_dim((span if s == 1 else span // s if isinstance(span, int) else sympy.floor(span / s)) + 1)
        )
    return out


def _infer_conv(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, w = types[:2]
    groups, n = get_int(at, "groups"), x.rank - 2
    require_float("conv", *types)
    require(
        1 <= n <= 3 and w.rank == x.rank,
        "conv",
        "x [N, C, …] and w [O, C/groups, …] of the same rank, 3 to 5",
        [x, w],
    )
    for key in ("stride", "padding", "dilation"):
        require(len(get_ints(at, key)) == n, "conv", f"{n} values of {key}", at[key])
    require(
        groups >= 1 and min(*get_ints(at, "stride"), *get_ints(at, "dilation")) >= 1,
        "conv",
        "positive steps",
        dict(at),
    )
    require(same_dim(x.shape[1], as_dim(w.shape[1] * groups)), "conv", f"{w.shape[1] * groups} channels", x)
    if len(types) == 3:
        require_shape("conv", types[2], w.shape[:1], "a bias")
    return [dense(x, shape=(x.shape[0], w.shape[0], *_spatial(types, at)))]


def _conv(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x, w = wide(args[0]), wide(args[1])
    n, groups = x.ndim - 2, get_int(at, "groups")
    stride, padding, dilation = (get_ints(at, k) for k in ("stride", "padding", "dilation"))
    x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    window = [f * (k - 1) + 1 for f, k in zip(dilation, w.shape[2:], strict=True)]
    view = sliding_window_view(x, window, axis=tuple(range(2, 2 + n)))
    view = view[
        (
            slice(None),
            slice(None),
            *(slice(None, None, s) for s in stride),
            *(slice(None, None, f) for f in dilation),
        )
    ]
    cols = view.reshape(view.shape[0], groups, -1, *view.shape[2:])
    kernels = w.reshape(groups, -1, *w.shape[1:])
    space, taps = "xyz"[:n], "pqr"[:n]
    y = np.einsum(f"bgc{space}{taps},goc{taps}->bgo{space}", cols, kernels)
    y = y.reshape(y.shape[0], -1, *y.shape[3:])
    return rounded(y + wide(args[2]).reshape(-1, *[1] * n) if len(args) == 3 else y, results[0])


def _axes_conv(types: Types, at: Attrs) -> Roles:
    space: list[AxisRole] = [("shift", d) for d in range(2, types[0].rank)]
    taps: list[AxisRole] = [("reduce",)] * (types[0].rank - 2)
    roles: list[list[AxisRole]] = [[("keep", 0), ("mix", 1), *space], [("keep", 1), ("reduce",), *taps]]
    return roles + ([[("keep", 1)]] if len(types) == 3 else [])


def _cost_conv(types: Types, at: Attrs) -> object:
    return as_dim(2 * product(_infer_conv(types, at)[0].shape) * product(types[1].shape[1:]))


_INTS = AttrSpec("ints")
register_op(OpDef(
    "conv", ("x", "w", "bias?"), {"stride": _INTS, "padding": _INTS, "dilation": _INTS,
    "groups": int_attr(1)},
    _infer_conv, _conv, _axes_conv, _cost_conv, linear=_LINEAR,
))  # fmt: skip
