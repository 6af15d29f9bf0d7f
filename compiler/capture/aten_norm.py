"""PyTorch's softmax, normalisations and dropout.

In: tensors, weights, running figures. Out: norms of Graph IR. Figures that only a backward pass reads are
computed where something reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tilewright.capture.aten_contract import safe_softmax
from tilewright.capture.aten_move import count
from tilewright.capture.context import Capture, aten
from tilewright.capture.windows import reads
from tilewright.ir.types import as_dim


# ------------------------------------------------------------------ softmax
@aten("_safe_softmax")
def rows_or_zeros(c: Capture, x: str, dim: int, *_: Any, **__: Any) -> str:
    x = c.cast(x, c.result().dtype)
    return safe_softmax(c, x, c.axis(x, dim))


@aten("softmax.int", "_softmax", "special_softmax")
def softmax(c: Capture, x: str, dim: int, *_: Any, **__: Any) -> str:
    x = c.cast(x, c.result().dtype)
    return c.op("softmax", x, axis=c.axis(x, dim)) if c.rank(x) else c.op("exp", c.op("sub", x, x))


@aten("log_softmax.int", "_log_softmax", "special_log_softmax")
def log_softmax(c: Capture, x: str, dim: int, *_: Any, **__: Any) -> str:
    x = c.cast(x, c.result().dtype)
    return c.op("log_softmax", x, axis=c.axis(x, dim)) if c.rank(x) else c.op("sub", x, x)


@aten("layer_norm")
def layer_norm(
    c: Capture, x: str, shape: Sequence[int], w: str | None = None, b: str | None = None, eps: float = 1e-5,
    cudnn: bool = True,
) -> str:  # fmt: skip
    axis = c.rank(x) - len(shape)
    if w is None and b is None:
        return c.op("layer_norm", x, eps=eps, axis=axis)
    if w is None:
        return c.op("add", c.op("layer_norm", x, eps=eps, axis=axis), b or "")
    return c.op("layer_norm", x, w, *([b] if b else []), eps=eps, axis=axis)


@aten("native_layer_norm")
def native_layer_norm(
    c: Capture, x: str, shape: Sequence[int], w: str | None, b: str | None, eps: float,
) -> tuple[str | None, ...]:  # fmt: skip
    axes = tuple(range(c.rank(x) - len(shape), c.rank(x)))
    return layer_norm(c, x, shape, w, b, eps), *_figures(c, x, axes, eps, True)


def _figures(
    c: Capture, x: str, axes: Sequence[int], eps: float, keepdims: bool
) -> tuple[str | None, str | None]:
    """Mean and inverse deviation, which the backward pass reads."""
    if not (reads(c, 1) or reads(c, 2)):
        return None, None
    mean = c.op("mean", x, axes=tuple(axes), keepdims=keepdims)
    spread = c.op("var", x, axes=tuple(axes), keepdims=keepdims, correction=0)
    return mean, c.op("rsqrt", c.op("add", spread, c.const(eps, c.dtype(x))))


@aten("rms_norm")
def rms_norm(c: Capture, x: str, shape: Sequence[int], w: str | None = None, eps: float | None = None) -> str:
    small = torch.finfo(c.node.meta["val"].dtype).eps if eps is None else eps
    return c.op("rms_norm", x, *([w] if w else []), eps=small, axis=c.rank(x) - len(shape))


@aten("group_norm")
def group_norm(
    c: Capture, x: str, groups: int, w: str | None = None, b: str | None = None, eps: float = 1e-5,
    cudnn: bool = True,
) -> str:  # fmt: skip
    return c.op("group_norm", x, *[p for p in (w, b) if p], groups=groups, eps=eps)


@aten("native_group_norm")
def native_group_norm(
    c: Capture, x: str, w: str | None, b: str | None, n: Any, channels: Any, space: Any, groups: int,
    eps: float,
) -> tuple[str | None, ...]:  # fmt: skip
    rows = c.reshape(x, (c.shape(x)[0], groups, as_dim(count(c.shape(x)[1:]) // groups)))
    return group_norm(c, x, groups, w, b, eps), *_figures(c, rows, (2,), eps, False)


@aten("instance_norm")
def instance_norm(
    c: Capture, x: str, w: str | None, b: str | None, mean: str | None, spread: str | None, *rest: Any
) -> str:
    """Each channel of each example by its own figures, or all by the running ones."""
    if not rest[0]:
        assert mean and spread
        return str(batch_norm(c, x, w, b, mean, spread, False, rest[1], rest[2]))
    return c.op("group_norm", x, *[p for p in (w, b) if p], groups=c.shape(x)[1], eps=rest[2])


@aten("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(c: Capture, x: str, w: str | None, b: str | None, mean: str, spread: str, *rest: Any) -> Any:
    """In evaluation a product and a sum per channel, of the running figures."""
    eps = rest[-1] if not isinstance(rest[-1], bool) else rest[-2]
    training = next((r for r in rest if isinstance(r, bool)), False)
    if training:
        raise c.no("batch normalisation in training", "call model.eval() first")
    factor = c.op("rsqrt", c.op("add", spread, c.const(eps, c.dtype(spread))))
    factor = c.op("mul", factor, w) if w else factor
    offset = c.op("neg", c.op("mul", mean, factor))
    offset = c.op("add", offset, b) if b else offset
    column = (c.shape(mean)[0], *[1] * (c.rank(x) - 2))
    y = c.op("add", c.op("mul", x, c.reshape(factor, column)), c.reshape(offset, column))
    return (y, None, None) if isinstance(c.node.meta["val"], list | tuple) else y


# ------------------------------------------------------------------ dropout
@aten("native_dropout")
def native_dropout(c: Capture, x: str, p: float, train: bool | None) -> tuple[str, str]:
    """Nothing in evaluation, and what drops none or all."""
    if train is not False and 0 < p < 1:
        raise c.no("dropout in training, which draws random numbers", "call model.eval() first")
    kept = train is False or p == 0
    mask = c.expand(c.const(kept, "bool"), c.shape(x))
    return (x if kept else c.expand(c.const(0, c.dtype(x)), c.shape(x))), mask
