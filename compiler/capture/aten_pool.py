"""Importers of pooling: maximum or mean over windows, one axis at a time, as combined strided slices.

In: x [N, C, …] or [C, …] over one to three axes of space. Out: slices, `max` or `add`. A global pool is a
reduction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.capture.aten_move import cut
from tilewright.capture.context import Capture, aten
from tilewright.ir.types import as_dim


def _each(value: Any, n: int) -> list[int]:
    listed = list(value) if isinstance(value, list | tuple) else [value]
    return listed * n if len(listed) == 1 else listed


def _padded(c: Capture, x: str, padding: Sequence[int], value: float) -> str:
    pads = [0, 0] * (c.rank(x) - len(padding)) + [p for p in padding for _ in range(2)]
    return c.op("pad", x, pads=tuple(pads), value=value) if any(pads) else x


def _windows(
    c: Capture, x: str, op: str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> str:
    """`op` over the windows of the last axes; the result is as long as PyTorch says."""
    n = len(kernel)
    for d, (k, s, f) in enumerate(zip(kernel, stride, dilation, strict=True)):
        axis = c.rank(x) - n + d
        length = c.result().shape[axis]
        if s > 1 and not isinstance(length, int):
            raise c.no("strided pooling over an axis of dynamic length", "fix the size of the image")
        reach = as_dim((length - 1) * s + 1)
        parts = [cut(c, x, axis, t * f, as_dim(t * f + reach), s) for t in range(k)]
        x = parts[0]
        for part in parts[1:]:
            x = c.op(op, x, part)
    return x


@aten("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices")
def max_pool(
    c: Capture, x: str, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:  # fmt: skip
    n = int(next(ch for ch in str(c.node.target) if ch.isdigit()))
    size = _each(kernel, n)
    if ceil_mode:
        raise c.no("pooling with ceil_mode", "pad explicitly")
    y = _padded(c, x, _each(padding, n), -math.inf)
    y = _windows(c, y, "max", size, _each(stride, n) if stride else size, _each(dilation, n))
    return (y, None) if isinstance(c.node.meta["val"], list | tuple) else y


@aten("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(
    c: Capture, x: str, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> str:  # fmt: skip
    n = int(next(ch for ch in str(c.node.target) if ch.isdigit()))
    size, around = _each(kernel, n), _each(padding, n)
    if ceil_mode or (any(around) and not count_include_pad):
        raise c.no(
            "average pooling whose windows have fewer elements at the edge",
            "pad explicitly, with count_include_pad=True",
        )
    y = _windows(c, _padded(c, x, around, 0.0), "add", size, _each(stride, n) if stride else size, [1] * n)
    return c.op("div", y, c.const(divisor_override or math.prod(size), c.dtype(y)))


@aten(
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
)
def adaptive_avg_pool(c: Capture, x: str, output_size: Any) -> str:
    """To one element it is a mean; to a divisor of the size, windows side by side."""
    n = int(next(ch for ch in str(c.node.target) if ch.isdigit()))
    axes, out = range(c.rank(x) - n, c.rank(x)), c.result().shape
    if all(out[d] == 1 for d in axes):
        return c.op("mean", x, axes=tuple(axes), keepdims=True)
    shape, over = list(c.shape(x)), []
    split: list[Any] = shape[: axes[0]]
    for d in axes:
        if not (isinstance(shape[d], int) and isinstance(out[d], int) and shape[d] % out[d] == 0):
            raise c.no(
                f"adaptive average pooling of {shape[d]} into {out[d]} uneven parts",
                "use an output size that divides the input size",
            )
        split += [out[d], shape[d] // out[d]]
        over.append(len(split) - 1)
    return c.op("mean", c.reshape(x, split), axes=tuple(over), keepdims=False)
