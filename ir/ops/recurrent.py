"""`recurrent`: the steps of an LSTM, a GRU or a plain recurrent layer over time. NumPy computes in float64.

Every state that there was is kept, so that a step reads the one before it and the op has one result: of it,
the outputs of all steps and the last state are slices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tilewright.ir.ops.base import Array, Attrs, AttrSpec, AxisRole, OpDef, register_op
from tilewright.ir.ops.common import (
    BOOL,
    Roles,
    Types,
    dense,
    product,
    require,
    require_float,
    require_rank,
    require_shape,
    rounded,
    wide,
)  # fmt: skip
from tilewright.ir.types import TensorType, as_dim

#: a step of each kind: how many gates it has, and how many states it carries
GATES: Mapping[str, tuple[int, int]] = {"lstm": (4, 2), "gru": (3, 1), "rnn_tanh": (1, 1), "rnn_relu": (1, 1)}


def _infer(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, w, bias = types[:3]
    kind = str(at["kind"])
    require_float("recurrent", *types)
    require(kind in GATES, "recurrent", f"kind among {', '.join(GATES)}", kind)
    gates, states = GATES[kind]
    require_rank("recurrent", x, 3, "input [T, B, gates * H]")
    require_rank("recurrent", w, 2, "a matrix [H, gates * H]")
    steps, batch, width = x.shape
    hidden = w.shape[0]
    require(width == as_dim(gates * hidden), "recurrent", f"{gates} gates of width {hidden}", x)
    require_shape("recurrent", w, (hidden, width), "the matrix")
    require_shape("recurrent", bias, (width,), "a bias")
    require(len(types) == 3 + states, "recurrent", f"{states} initial states", len(types) - 3)
    for t in types[3:]:
        require_shape("recurrent", t, (batch, hidden), "an initial state")
    return [dense(x, shape=(as_dim(steps + 1), states, batch, hidden))]


def _sigmoid(x: Array) -> Array:
    y: Array = 1 / (1 + np.exp(-x))
    return y


def _lstm(x: Array, h: Array, states: Array) -> tuple[Array, ...]:
    i, f, g, o = np.split(x + h, 4, -1)
    c = _sigmoid(f) * states[1] + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(c), c


def _gru(x: Array, h: Array, states: Array) -> tuple[Array, ...]:
    (xr, xz, xn), (hr, hz, hn) = np.split(x, 3, -1), np.split(h, 3, -1)
    n = np.tanh(xn + _sigmoid(xr + hr) * hn)
    return (n + _sigmoid(xz + hz) * (states[0] - n),)


_STEP: Mapping[str, Callable[[Array, Array, Array], tuple[Array, ...]]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": lambda x, h, states: (np.tanh(x + h),),
    "rnn_relu": lambda x, h, states: (np.maximum(x + h, 0),),
}


def _recurrent(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x, w, bias = (wide(a) for a in args[:3])
    steps, step, back = len(x), _STEP[str(at["kind"])], bool(at["reverse"])
    out = np.zeros((steps + 1, len(args) - 3, *args[3].shape))
    out[steps if back else 0] = [wide(a) for a in args[3:]]
    for t in reversed(range(steps)) if back else range(steps):
        states, after = out[t + 1 if back else t], t if back else t + 1
        with np.errstate(over="ignore"):
            out[after] = step(x[t], states[0] @ w + bias, states)
    return rounded(out, results[0])


def _axes(types: Types, at: Attrs) -> Roles:
    state: list[AxisRole] = [("keep", 2), ("mix", 3)]
    return [[("mix", 0), *state], [("mix", 3), ("mix", 3)], [("mix", 3)], *[state for _ in types[3:]]]


def _cost(types: Types, at: Attrs) -> object:
    return as_dim(2 * product(types[0].shape) * types[1].shape[0])


register_op(OpDef(
    "recurrent", ("x", "w", "bias", "h", "c?"), {"kind": AttrSpec("str", "lstm"), "reverse": BOOL},
    _infer, _recurrent, _axes, _cost,
    doc="states [T + 1, states, B, H] of a recurrent layer (lstm: h and c; gru, rnn_tanh, rnn_relu: h) from "
        "inputs already multiplied, x; step t adds state @ w + bias; reverse: from the last step to the "
        "first, the initial state last",
))  # fmt: skip
