"""Importers of pooling: maximum or mean over windows.

In: x [N, C, …] or [C, …] over one to three axes of space. Out: `max_pool`, or `sum_pool` and a division,
between two transposes; slices where the places of maxima are asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.capture.aten_convolution import channels_first, channels_last
from tilewright.capture.context import Capture, aten
from tilewright.capture.windows import largest_with_places, reads, windows_of


def _each(value: Any, n: int) -> list[int]:
    listed = list(value) if isinstance(value, list | tuple) else [value]
    return listed * n if len(listed) == 1 else listed


@dataclass(frozen=True)
class _Pooling:
    """Windows over the last axes, one entry for each. `out`: how many there are; `pads`: elements before and
    after each axis."""

    window: tuple[int, ...]
    stride: tuple[int, ...]
    around: tuple[int, ...]
    dilation: tuple[int, ...]
    out: tuple[Any, ...]
    sizes: tuple[Any, ...]

    @property
    def pads(self) -> tuple[int, ...]:
        """A last window that begins inside, as `ceil_mode` has it, may end beyond the padding."""
        found: list[int] = []
        for n, p in enumerate(self.around):
            known = isinstance(self.out[n], int) and isinstance(self.sizes[n], int)
            found += [p, max(0, self.end(n) - self.sizes[n]) if known else p]
        return tuple(found)

    def end(self, axis: int) -> int:
        """Where the last window ends, counted from the first element."""
        span = self.dilation[axis] * (self.window[axis] - 1) + 1
        return int((self.out[axis] - 1) * self.stride[axis] + span - self.around[axis])


def _pooling(
    c: Capture, x: str, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool
) -> _Pooling:
    n = int(next(ch for ch in str(c.node.target) if ch.isdigit()))
    window = tuple(_each(kernel, n))
    out, sizes = c.result().shape[-n:], c.shape(x)[-n:]
    if ceil and not all(isinstance(d, int) for d in (*out, *sizes)):
        raise c.no("pooling with ceil_mode over an axis of dynamic length", "fix the size of the image")
    steps = tuple(_each(stride, n)) if stride else window
    return _Pooling(window, steps, tuple(_each(padding, n)), tuple(_each(dilation, n)), out, sizes)


def _pool(c: Capture, op: str, x: str, p: _Pooling) -> str:
    """[N, out…, C] of an image with channels first, batched or not."""
    x = x if c.rank(x) == len(p.window) + 2 else c.reshape(x, (1, *c.shape(x)))
    return c.op(
        op, channels_last(c, x), window=p.window, stride=p.stride, padding=p.pads, dilation=p.dilation
    )


@aten("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices")
def max_pool(
    c: Capture, x: str, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:  # fmt: skip
    pair = isinstance(c.node.meta["val"], list | tuple)
    if pair and reads(c, 1):
        windows = windows_of(c, c.result().shape, kernel, stride, padding, dilation)
        return largest_with_places(c, x, windows)
    p = _pooling(c, x, kernel, stride, padding, dilation, ceil_mode)
    y = c.reshape(channels_first(c, _pool(c, "max_pool", x, p)), c.result().shape)
    return (y, None) if pair else y


@aten("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(
    c: Capture, x: str, kernel: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> str:  # fmt: skip
    p = _pooling(c, x, kernel, stride, padding, 1, ceil_mode)
    y = _pool(c, "sum_pool", x, p)
    if divisor_override or not (any(p.pads) and (ceil_mode or not count_include_pad)):
        count = c.const(divisor_override or math.prod(p.window), c.dtype(y))
    else:
        count = _counts(c, p, count_include_pad, c.dtype(y))
    return c.reshape(channels_first(c, c.op("div", y, count)), c.result().shape)


def _counts(c: Capture, p: _Pooling, padded: bool, dtype: str) -> str:
    """[out…, 1]: how many elements of the image, or of its padding too, each window has."""
    if not all(isinstance(d, int) for d in (*p.out, *p.sizes)):
        raise c.no("average pooling whose windows differ, over an axis of dynamic length", "fix the size")
    total = np.ones((), np.float64)
    for n, (size, around) in enumerate(zip(p.sizes, p.around, strict=True)):
        start = np.arange(p.out[n]) * p.stride[n] - around
        lo, hi = (-around, size + around) if padded else (0, size)
        held = np.minimum(start + p.window[n], hi) - np.maximum(start, lo)
        total = total[..., None] * held
    return c.b.inline(f"{c.node.name}.counts", total[..., None], dtype)
