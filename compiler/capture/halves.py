"""Half precision: values of f16 and bf16, which the graph holds in f32 rounded to what their type can hold.

In: f32 operands. Out: the same, rounded unless that would change nothing. An operator computes in f32 and its
result is rounded, as in PyTorch; what only moves or chooses values needs no rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tilewright.capture.context import Capture
from tilewright.capture.elements import HALVES
from tilewright.ir.numbers import hold

#: ops whose results are values of their operands, or these with another sign
_MOVES = (
    "reshape", "expand", "transpose", "slice", "split", "gather", "gather_elements", "repeat", "flip", "roll",
    "concat", "select",
    "max", "min", "max_reduce", "min_reduce", "neg", "abs", "relu", "topk", "sort",
)  # fmt: skip
#: operands that are values, where not all are
_VALUES = {"gather": slice(0, 1), "gather_elements": slice(0, 1), "select": slice(1, 3)}


def widened(c: Capture, x: str, half: str) -> str:
    """Values of a half type as f32."""
    out = c.op("cast", x, dtype="f32")
    c.held[out] = half
    return out


def rounded(c: Capture, x: str, half: str) -> str:
    """f32 values rounded to those of a half type."""
    return x if holds(c, x, half) else widened(c, c.op("cast", x, dtype=half), half)


def cast_to(c: Capture, x: Any, dtype: torch.dtype) -> str:
    """A tensor, Python number or dimension as values of a PyTorch type."""
    out = c.operand(x, c.element(dtype))
    return rounded(c, out, HALVES[dtype]) if c.exact and dtype in HALVES else out


def holds(c: Capture, x: str, half: str, depth: int = 20) -> bool:
    """Whether f32 values are known to be those of a half type: made by rounding, or moved and chosen from
    such."""
    if c.held.get(x) == half:
        return True
    op = c.producer(x)
    if op is None or depth == 0 or c.dtype(x) != "f32":
        return False
    if op.name in ("const", "full"):
        value = np.array(op.attr("value"), np.float32)
        return bool(np.array_equal(hold(value, half), value, equal_nan=True))
    read = op.operands[_VALUES.get(op.name, slice(None))]
    if op.name not in _MOVES or not all(holds(c, o, half, depth - 1) for o in read):
        return False
    c.held[x] = half
    return True
