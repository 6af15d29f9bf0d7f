"""Contractions: linear, matmul, grouped_linear. NumPy accumulates in float64 and rounds once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.ir.ops.base import Array, Attrs, AxisRole, OpDef, register_op
from tilewright.ir.ops.common import (
    BOOL,
    Roles,
    Types,
    broadcast_shapes,
    dense,
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
    for e in np.unique(ids[ids < len(w)]):
        if e < 0:
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
    doc="for each token and each of its chosen experts e: x @ w[e]^T (+ bias[e]); zeros for e >= E",
))  # fmt: skip
