"""Importers of the gradients of average pooling: each element gets its share of every window that counts it.

In: the gradient of the result and the pooled tensor, whose shape matters. Out: sums of shifted copies, one
axis at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.capture.aten_move import cut
from tilewright.capture.context import Capture, aten
from tilewright.capture.symbols import Dim
from tilewright.capture.windows import (
    Windows,
    divisors,
    parts_of,
    weighted_runs,
    windows_of,
)
from tilewright.ir.types import as_dim


@aten("avg_pool2d_backward", "avg_pool3d_backward")
def avg_pool_backward(
    c: Capture, grad: str, x: str, kernel: Any, stride: Any, padding: Any, ceil_mode: bool,
    count_include_pad: bool, divisor_override: int | None,
) -> str:  # fmt: skip
    windows = windows_of(c, c.shape(grad), kernel, stride, padding, 1)
    space = c.shape(x)[c.rank(x) - len(windows) :]
    y = c.op("div", grad, divisors(c, grad, windows, space, count_include_pad, divisor_override))
    for axis, (w, size) in enumerate(zip(windows, space, strict=True), c.rank(x) - len(windows)):
        y = _spread_back(c, y, axis, w, size)
    return y


def _spread_back(c: Capture, g: str, axis: int, w: Windows, size: Dim) -> str:
    """What each window has, at each of its places; sums where windows meet."""
    apart = _with_gaps(c, g, axis, w.stride)
    total, long = "", as_dim(size + 2 * w.around + w.missing(size))
    for place in range(w.length):
        behind = as_dim(long - place - c.shape(apart)[axis])
        moved = c.op("pad", apart, pads=_along(c, apart, axis, place, behind), value=0.0)
        total = c.op("add", total, moved) if total else moved
    return cut(c, total, axis, w.around, as_dim(w.around + size))


def _along(c: Capture, x: str, axis: int, before: Dim, after: Dim) -> tuple[Dim, ...]:
    """Amounts of padding for one axis."""
    return (*[0, 0] * axis, before, after, *[0, 0] * (c.rank(x) - 1 - axis))


def _with_gaps(c: Capture, x: str, axis: int, step: int) -> str:
    """Zeros between neighbours, so that they are `step` apart."""
    if step == 1:
        return x
    shape = c.shape(x)
    n = shape[axis]
    apart = c.reshape(x, (*shape[: axis + 1], 1, *shape[axis + 1 :]))
    wide = c.op("pad", apart, pads=_along(c, apart, axis + 1, 0, step - 1), value=0.0)
    joined = c.reshape(wide, (*shape[:axis], as_dim(n * step), *shape[axis + 1 :]))
    return cut(c, joined, axis, 0, as_dim((n - 1) * step + 1))


@aten("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward")
def adaptive_avg_pool_backward(c: Capture, grad: str, x: str) -> str:
    n = int(next(ch for ch in str(c.node.target) if ch.isdigit()))
    sizes: Sequence[Any] = c.shape(x)
    if not all(isinstance(d, int) for d in (*sizes[-n:], *c.shape(grad)[-n:])):
        raise c.no("adaptive average pooling of a dynamic size", "fix the size of the image")
    for axis in range(c.rank(x) - n, c.rank(x)):
        grad = _shared_back(c, grad, axis, sizes[axis])
    return grad


def _shared_back(c: Capture, g: str, axis: int, size: int) -> str:
    """An element lies in adjoining parts, of which it gets its share each."""
    number: Any = c.shape(g)[axis]
    first, end = parts_of(size, number)
    column = (number, *[1] * (c.rank(g) - 1 - axis))
    lengths = c.numbers((end - first).reshape(column).astype(np.float32))
    shares = c.op("div", g, c.cast(lengths, c.dtype(g)))
    inside = (first[:, None] <= np.arange(size)) & (np.arange(size) < end[:, None])
    begin = inside.argmax(0)
    return weighted_runs(c, shares, axis, begin, begin + inside.sum(0), np.ones(size), np.ones(size))
