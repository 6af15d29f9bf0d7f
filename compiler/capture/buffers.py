"""Constants that a module computes for itself (rotary frequencies, position tables), stored as weights.

In: a CPU tensor. Out: its type and its bytes as an expression, in pieces no larger than a constant of the
text may be.
"""

from __future__ import annotations

import numpy as np
import torch

from tilewright.capture.elements import RECIPE, Table, element_of
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Apply, Inline, WeightExpr
from tilewright.ir.numbers import HELD, to_bits
from tilewright.ir.types import TensorType

PIECE, MOST = 1 << 20, 64 << 20


def inline(name: str, tensor: torch.Tensor, table: Table = RECIPE) -> tuple[TensorType, WeightExpr]:
    """`tensor` as a constant of the type that `table` says; RefusedError beyond 64 MiB."""
    dtype = element_of(tensor.dtype, table)
    values = tensor.detach().float() if dtype == "f32" else tensor.detach()
    array = to_bits(np.asarray(values.contiguous().numpy(), HELD[dtype]), dtype)
    if array.nbytes > MOST:
        raise RefusedError(
            f"constant {name!r} has {array.nbytes >> 20} MiB, at most {MOST >> 20}", "", "make it a parameter"
        )
    shape = tuple(array.shape)
    if array.nbytes <= PIECE:
        return TensorType(dtype, shape), Inline(dtype, shape, array.tobytes())
    flat, step = array.reshape(-1), PIECE // array.itemsize
    pieces = tuple(
        Inline(dtype, p.shape, p.tobytes()) for p in (flat[n : n + step] for n in range(0, flat.size, step))
    )
    joined = Apply("concat", pieces, (("axis", 0),))
    return TensorType(dtype, shape), Apply("reshape", (joined,), (("shape", shape),))
