"""sequence_length: the length of a position's sequence, for rotary factors that depend on it.

In: positions [B, S]. Out: the largest position of each row plus one, at every position of the row. In a step
function it becomes an input: a step sees only part of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.ir.ops.base import Array, Attrs, OpDef, register_op
from tilewright.ir.ops.common import Roles, Types, dense, mix_axes, product, require_int, require_rank
from tilewright.ir.types import TensorType


def _infer(types: Types, at: Attrs) -> Sequence[TensorType]:
    require_int("sequence_length", types[0], "positions")
    require_rank("sequence_length", types[0], 2, "positions")
    return [dense(types[0])]


def _meaning(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    longest = args[0].max(axis=1, keepdims=True, initial=-1) + 1
    return np.broadcast_to(longest, args[0].shape).astype(args[0].dtype)


def _axes(types: Types, at: Attrs) -> Roles:
    return [mix_axes(types[0], [1])]


def _cost(types: Types, at: Attrs) -> object:
    return product(types[0].shape)


register_op(OpDef(
    "sequence_length", ("pos",), {}, _infer, _meaning, _axes, _cost,
    doc="each row's largest position plus one, at every position of the row",
))  # fmt: skip
