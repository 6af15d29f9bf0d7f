"""Importers of adaptive pools: means and maxima of a given number of parts.

In: x [N, C, …] or [C, …]. Out: a reduction where the parts are of equal length; gathers where they are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.capture.context import Capture, aten
from tilewright.capture.windows import (
    Windows,
    axes_of,
    combined,
    largest_with_places,
    parts_of,
    reads,
    weighted_runs,
)


@aten("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max_pool(c: Capture, x: str, output_size: Any) -> tuple[str, str | None]:
    """To a divisor of the size, windows side by side."""
    n, out = axes_of(c), c.result().shape
    sizes: Any = list(zip(c.shape(x)[-n:], out[-n:], strict=True))
    if not all(isinstance(a, int) and isinstance(b, int) and b and a % b == 0 for a, b in sizes):
        raise c.no(
            "adaptive maximum pooling into uneven parts", "use an output size that divides the input size"
        )
    windows = [Windows(a // b, a // b, 0, 1, b) for a, b in sizes]
    if not reads(c, 1):
        return combined(c, x, "max", windows), None
    return largest_with_places(c, x, windows)


@aten(
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "_adaptive_avg_pool2d",
    "_adaptive_avg_pool3d",
)
def adaptive_avg_pool(c: Capture, x: str, output_size: Any) -> str:
    """To one element it is a mean; to a divisor of the size, windows side by side; else parts of uneven
    length."""
    n, out = axes_of(c), c.result().shape
    axes = range(c.rank(x) - n, c.rank(x))
    if all(out[d] == 1 for d in axes):
        return c.op("mean", x, axes=tuple(axes), keepdims=True)
    shape = c.shape(x)
    sizes = [(shape[d], out[d]) for d in axes]
    if not all(isinstance(a, int) and isinstance(b, int) for a, b in sizes):
        raise c.no("adaptive average pooling of a dynamic size", "fix the size of the image")
    if all(a % b == 0 for a, b in sizes):
        return _even_parts(c, x, axes, out)
    for d in axes:
        x = _uneven_mean(c, x, d, int(out[d]))
    return x


def _even_parts(c: Capture, x: str, axes: Sequence[int], out: Sequence[Any]) -> str:
    shape: Any = c.shape(x)
    split, over = list(shape[: axes[0]]), []
    for d in axes:
        split += [out[d], shape[d] // out[d]]
        over.append(len(split) - 1)
    return c.op("mean", c.reshape(x, split), axes=tuple(over), keepdims=False)


def _uneven_mean(c: Capture, x: str, axis: int, number: int) -> str:
    size = c.shape(x)[axis]
    assert isinstance(size, int)
    first, end = parts_of(size, number)
    return weighted_runs(c, x, axis, first, end, np.ones(number), end - first)
