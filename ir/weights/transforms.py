"""The transforms a weight expression may apply, on NumPy arrays.

In: held arrays and attributes. Out: a held array. Independent of files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.ir.numbers import HELD, hold
from tilewright.ir.ops.base import Array
from tilewright.ir.ops.rotation import hadamard
from tilewright.ir.weights.low_rank import part

Attrs = Mapping[str, Any]


def _slice(args: Sequence[Array], at: Attrs) -> Array:
    index: list[slice] = [slice(None)] * args[0].ndim
    index[at["axis"]] = slice(at.get("start", 0), at.get("stop"), at.get("step", 1))
    return args[0][tuple(index)]


def _lora(args: Sequence[Array], at: Attrs) -> Array:
    """base [N, K] + scale * B @ A; the factors A [r, K] and B [N, r] are told apart by their shapes, A first
    if both fit."""
    base, a, b = args
    if b.shape[0] != base.shape[0] or a.shape[1] != base.shape[1] or a.shape[0] != b.shape[1]:
        a, b = b, a
    out: Array = base + np.float32(at.get("scale", 1.0)) * (b.astype(np.float32) @ a.astype(np.float32))
    return out


def _fill(args: Sequence[Array], at: Attrs) -> Array:
    return np.full(at["shape"], at.get("value", 0), HELD[at.get("dtype", "f32")])


def _sum(args: Sequence[Array], at: Attrs) -> Array:
    out = args[0]
    for x in args[1:]:
        out = out + x
    return out


def _product(args: Sequence[Array], at: Attrs) -> Array:
    out = args[0]
    for x in args[1:]:
        out = out * x
    return out


def _rotate(args: Sequence[Array], at: Attrs) -> Array:
    """Along `axis`, elements start..stop times random signs (`seed` 0: none), then runs of `block` times the
    Hadamard matrix over its norm: x Q for the rows of an orthogonal Q."""
    axis, block = at["axis"], at["block"]
    out = np.array(args[0], np.float32)
    part = np.moveaxis(out, axis, -1)[..., at.get("start", 0) : at.get("stop")]
    part[...] = hadamard(part * signs(part.shape[-1], at.get("seed", 0)), block)
    return out


def _join_groups(args: Sequence[Array], at: Attrs) -> Array:
    """The kernels [O, taps * C] of a convolution in groups as [O, taps * together * C]: every `together`
    groups are one, in which each keeps its own channels and has zeros for the others'."""
    groups, together, taps = at["groups"], at["together"], at["taps"]
    w = args[0].reshape(groups // together, together, -1, taps, args[0].shape[1] // taps)
    out = np.zeros((*w.shape[:4], together, w.shape[4]), w.dtype)
    for n in range(together):
        out[:, n, :, :, n] = w[:, n]
    return out.reshape(len(args[0]), -1)


def signs(n: int, seed: int) -> Array:
    """n random signs; all 1 for seed 0."""
    drawn = np.random.default_rng(seed).integers(0, 2, n) if seed else np.zeros(n)
    return (1 - 2 * drawn).astype(np.float32)


WEIGHT_FNS: dict[str, Callable[[Sequence[Array], Attrs], Array]] = {
    "concat": lambda args, at: np.concatenate(args, at["axis"]),
    "stack": lambda args, at: np.stack(args, at["axis"]),
    "slice": _slice,
    "reshape": lambda args, at: args[0].reshape(at["shape"]),
    "transpose": lambda args, at: args[0].transpose(at["perm"]),
    "cast": lambda args, at: hold(args[0], at["dtype"]),
    "lora": _lora,
    "add": _sum,
    "mul": _product,
    "neg": lambda args, at: -args[0],
    "rsqrt": lambda args, at: np.asarray(1 / np.sqrt(args[0]), args[0].dtype),
    "fill": _fill,
    "rotate": _rotate,
    "join_groups": _join_groups,
    "low_rank": lambda args, at: part(args[0], at["rank"], at["part"]),
    "solved": lambda args, at: args[0],
}
