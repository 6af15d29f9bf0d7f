"""The table of PyTorch operators: importing this module fills it. One file per kind of operator."""

from tilewright.capture import (
    aten_contract,
    aten_convolution,
    aten_experts,
    aten_functions,
    aten_index,
    aten_make,
    aten_move,
    aten_norm,
    aten_pad,
    aten_pairs,
    aten_pointwise,
    aten_pool,
    aten_pool_adaptive,
    aten_pool_backward,
    aten_put,
    aten_recurrent,
    aten_reduce,
)
from tilewright.capture.context import TABLE

__all__ = [
    "TABLE", "aten_contract", "aten_convolution", "aten_experts", "aten_functions", "aten_index",
    "aten_make", "aten_move", "aten_norm", "aten_pad", "aten_pairs", "aten_pointwise", "aten_pool",
    "aten_pool_adaptive", "aten_pool_backward", "aten_put", "aten_recurrent", "aten_reduce",
]  # fmt: skip
