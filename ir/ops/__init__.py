"""The graph ops: importing this package registers all of them; use `make_op` and `infer`."""

from tilewright.ir.ops import (
    attention,
    cached_attention,
    chosen_attention,
    contraction,
    convolution,
    indexing,
    make,
    move,
    normalise,
    order,
    packing,
    pointwise,
    recurrent,
    reduce,
    rotation,
    sequence,
    token_choice,
    tokens,
    trigonometry,
)
from tilewright.ir.ops.base import OPS, OpDef, OpTypeError, find_op, register_op
from tilewright.ir.ops.build import infer, make_op

__all__ = [
    "OPS", "OpDef", "OpTypeError", "attention", "cached_attention", "chosen_attention", "contraction",
    "convolution", "find_op", "indexing", "infer", "make", "make_op", "move",
    "normalise", "order", "packing", "pointwise", "recurrent", "reduce", "register_op", "rotation",
    "sequence", "token_choice", "tokens", "trigonometry",
]  # fmt: skip
