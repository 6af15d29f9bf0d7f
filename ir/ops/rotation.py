"""fwht: multiplies blocks of the last axis by the normalised Hadamard matrix, by the fast algorithm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.ir.ops.base import Array, Attrs, OpDef, register_op
from tilewright.ir.ops.common import (
    Roles,
    Types,
    dense,
    get_int,
    int_attr,
    mix_axes,
    product,
    require,
    require_float,
    rounded,
    wide,
)
from tilewright.ir.types import TensorType, as_dim


def hadamard(x: Array, block: int) -> Array:
    """Each run of `block` elements of the last axis multiplied by H / sqrt(block); applying it twice gives x.
    `block` is a power of two."""
    y = np.array(x, np.float64).reshape(-1, block)
    h = 1
    while h < block:
        pairs = y.reshape(len(y), -1, 2, h)
        y = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(
            len(y), block
        )
        h *= 2
    return np.asarray((y / np.sqrt(block)).reshape(x.shape))


def _infer(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, block = types[0], get_int(at, "block")
    require_float("fwht", x)
    fits = (
        block >= 1
        and block & (block - 1) == 0
        and x.rank >= 1
        and isinstance(x.shape[-1], int)
        and x.shape[-1] % block == 0
    )
    require(
        fits,
        "fwht",
        "a block that is a power of two and divides the last axis",
        f"block {block} on {x.shape}",
    )
    return [dense(x)]


def _meaning(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    return rounded(hadamard(wide(args[0]), get_int(at, "block")), results[0])


def _axes(types: Types, at: Attrs) -> Roles:
    return [mix_axes(types[0], [types[0].rank - 1])]


def _cost(types: Types, at: Attrs) -> object:
    return as_dim(get_int(at, "block").bit_length() * product(types[0].shape))


register_op(OpDef(
    "fwht", ("x",), {"block": int_attr()}, _infer, _meaning, _axes, _cost, linear=((0,),),
    doc="runs of `block` along the last axis times the Hadamard matrix over its norm; its own inverse",
))  # fmt: skip
