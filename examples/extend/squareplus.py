"""A user-defined op in one file: squareplus(x) = (x + sqrt(x^2 + 4)) / 2, a smooth relu.

Source: "Squareplus: A Softplus-Like Algebraic Rectifier".

The expression over scalar primitives is the op's meaning, its kernel on every backend and its inference; the
last lines tell capture which PyTorch operator it is.
"""

from __future__ import annotations

from typing import Any

import torch

from tilewright.capture.context import TABLE, Capture
from tilewright.ir.ops.pointwise import pointwise

pointwise(
    "squareplus",
    1,
    lambda p, x: p.mul(p.const(0.5), p.add(x, p.sqrt(p.fma(x, x, p.const(4.0))))),
    doc="a smooth relu",
)


@torch.library.custom_op("user::squareplus", mutates_args=())
def squareplus(x: torch.Tensor) -> torch.Tensor:
    return (x + torch.sqrt(x * x + 4)) / 2


@squareplus.register_fake
def _shape(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def _import(c: Capture, x: str, **more: Any) -> str:
    made: str = c.op("squareplus", x)
    return made


TABLE["user.squareplus"] = _import
