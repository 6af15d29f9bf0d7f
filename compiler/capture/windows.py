"""Windows over the last axes as strided slices: for places of maxima, and for gradients of pooling.

In: x [N, C, …] or [C, …] over one to three axes of space. Out: slices, one for each place of a window; what
reads an axis in runs of uneven length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.capture.aten_move import count, cut
from tilewright.capture.context import Capture
from tilewright.capture.symbols import Dim
from tilewright.ir.numbers import int_range
from tilewright.ir.types import FLOATS, as_dim


@dataclass(frozen=True)
class Windows:
    """Windows along one axis: their length, the distance from one to the next, from one element to the next,
    what is added on either side, and how many there are."""

    length: int
    stride: int
    around: int
    spread: int
    number: Dim

    @property
    def reach(self) -> Dim:
        """Elements of the padded axis that the windows read."""
        return as_dim((self.number - 1) * self.stride + (self.length - 1) * self.spread + 1)

    def missing(self, size: Dim) -> int:
        """Elements behind the axis and its padding that the last window reads, where it is cut off."""
        beyond = as_dim(self.reach - size - 2 * self.around)
        return max(beyond, 0) if isinstance(beyond, int) else 0

    def pick(self, c: Capture, x: str, axis: int, place: int) -> str:
        """The element at this place of every window."""
        start = place * self.spread
        stop = as_dim(start + (self.number - 1) * self.stride + 1)
        return cut(c, x, axis, start, stop, self.stride)


def each(value: Any, n: int) -> list[int]:
    listed = list(value) if isinstance(value, list | tuple) else [value]
    return listed * n if len(listed) == 1 else listed


def windows_of(
    c: Capture, out: Sequence[Dim], kernel: Any, stride: Any, padding: Any, dilation: Any
) -> list[Windows]:
    """The windows of each axis of space; `out`: the shape that PyTorch gives the result."""
    n = axes_of(c)
    lengths = each(kernel, n)
    steps = each(stride, n) if stride else lengths
    found = zip(lengths, steps, each(padding, n), each(dilation, n), out[len(out) - n :], strict=True)
    windows = [Windows(*w) for w in found]
    if any(w.stride > 1 and not isinstance(w.number, int) for w in windows):
        raise c.no("strided pooling over an axis of dynamic length", "fix the size of the image")
    return windows


def axes_of(c: Capture) -> int:
    return int(next(ch for ch in str(c.node.target) if ch.isdigit()))


def surrounded(c: Capture, x: str, windows: Sequence[Windows], value: float) -> str:
    """x with what the windows read around it."""
    shape = c.shape(x)[c.rank(x) - len(windows) :]
    pads = [0, 0] * (c.rank(x) - len(windows))
    for w, size in zip(windows, shape, strict=True):
        pads += [w.around, w.around + w.missing(size)]
    return c.op("pad", x, pads=tuple(pads), value=c.scalar(value, c.dtype(x))) if any(pads) else x


def combined(c: Capture, x: str, op: str, windows: Sequence[Windows]) -> str:
    """`op` over the windows of the last axes."""
    for axis, w in enumerate(windows, c.rank(x) - len(windows)):
        parts = [w.pick(c, x, axis, place) for place in range(w.length)]
        x = parts[0]
        for part in parts[1:]:
            x = c.op(op, x, part)
    return x


def reads(c: Capture, n: int) -> bool:
    """Whether anything reads result n of this operator."""
    return any(user.args[1] == n for user in c.node.users if "getitem" in str(user.target))


def largest_with_places(c: Capture, x: str, windows: Sequence[Windows]) -> tuple[str, str]:
    """The first of the largest values of a window in the order of memory, or its last NaN, and its place in
    the plane of x."""
    lowest = -math.inf if c.dtype(x) in FLOATS else int_range(c.dtype(x))[0]
    space = c.shape(x)[c.rank(x) - len(windows) :]
    plane = c.reshape(c.op("iota", size=as_dim(count(space)), dtype="i64"), space)
    y, at = surrounded(c, x, windows, lowest), surrounded(c, plane, windows, 0)
    for back, w in enumerate(reversed(windows), 1):
        y, at = _first_largest(c, y, at, back, w)
    return y, c.expand(at, c.shape(y))


def _first_largest(c: Capture, y: str, at: str, back: int, w: Windows) -> tuple[str, str]:
    """Along one axis, counted from the last."""

    def pick(place: int) -> tuple[str, str]:
        return w.pick(c, y, c.rank(y) - back, place), w.pick(c, at, c.rank(at) - back, place)

    value, there = pick(0)
    for k in range(1, w.length):
        other, place = pick(k)
        take = c.op("or", c.op("gt", other, value), c.op("ne", other, other))
        value, there = c.op("select", take, other, value), c.op("select", take, place, there)
    return value, there


def divisors(
    c: Capture, y: str, windows: Sequence[Windows], space: Sequence[Dim], padded: bool, given: int | None
) -> str:
    """How many elements each window counts: fewer at an edge beyond which nothing is counted."""
    whole = math.prod(w.length for w in windows)
    even = padded and not any(w.missing(n) for w, n in zip(windows, space, strict=True))
    if given or even or not any(w.around for w in windows) and even:
        return c.const(given or whole, c.dtype(y))
    if not all(isinstance(n, int) for n in (*space, *(w.number for w in windows))):
        raise c.no("average pooling with fewer elements at the edges of a dynamic axis", "pad explicitly")
    counts = np.ones((), np.float32)
    for w, n in zip(windows, space, strict=True):
        counts = counts[..., None] * _elements(w, int(n), padded)
    return c.cast(c.numbers(counts.astype(np.float32)), c.dtype(y))


def _elements(w: Windows, size: int, padded: bool) -> Any:
    """How many elements each window of an axis has, with or without those of the padding."""
    starts = np.arange(w.number) * w.stride - w.around
    lo, hi = (-w.around, size + w.around) if padded else (0, size)
    return np.minimum(starts + w.length, hi) - np.maximum(starts, lo)


def parts_of(size: int, number: int) -> tuple[Any, Any]:
    """First element and end of each part of an adaptive pool."""
    n = np.arange(number)
    return n * size // number, -(-(n + 1) * size // number)


def weighted_runs(c: Capture, x: str, axis: int, first: Any, end: Any, weight: Any, over: Any) -> str:
    """For each n the sum of the elements first[n] … end[n] - 1 of an axis, over `over[n]`; one gather for
    each place of the longest run, with zeros behind a shorter one."""
    column = (len(first), *[1] * (c.rank(x) - 1 - axis))
    total = ""
    for place in range(int((end - first).max())):
        at, inside = first + place, (first + place < end) * weight
        ids = c.numbers(np.minimum(at, end - 1).astype(np.int32))
        part = c.op("gather", x, ids, axis=axis)
        if not (inside == 1).all():
            kept = c.numbers(inside.reshape(column).astype(np.float32))
            part = c.op("mul", part, c.cast(kept, c.dtype(x)))
        total = c.op("add", total, part) if total else part
    if (over == 1).all():
        return total
    sizes = c.numbers(over.reshape(column).astype(np.float32))
    return c.op("div", total, c.cast(sizes, c.dtype(x)))
