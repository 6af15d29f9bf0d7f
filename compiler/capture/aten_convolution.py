"""PyTorch's convolutions, which have channels before space: as `conv` between two transposes.

In: x [N, C, space…] or [C, space…], kernels [O, C / groups, window…]; of a transposed convolution
[C, O / groups, window…]. Out: `conv`, whose weight is a matrix. A transposed convolution is one that computes
all results between two neighbouring inputs as channels of one place, which are then laid out in space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.capture.context import Capture, aten
from tilewright.ir.graph.core import Apply, WeightExpr
from tilewright.ir.types import as_dim


def each(values: Any, n: int) -> tuple[int, ...]:
    """One number for each of n axes of space."""
    listed = list(values) if isinstance(values, list | tuple) else [values]
    return tuple(listed * n if len(listed) == 1 else listed)


def channels_last(c: Capture, x: str) -> str:
    """[N, C, space…] as [N, space…, C]."""
    return c.transpose(x, (0, *range(2, c.rank(x)), 1))


def channels_first(c: Capture, x: str) -> str:
    """[N, space…, C] as [N, C, space…]."""
    return c.transpose(x, (0, c.rank(x) - 1, *range(1, c.rank(x) - 1)))


# ------------------------------------------------------------------ convolution
@aten("conv1d", "conv2d", "conv3d")
def conv(
    c: Capture, x: str, w: str, bias: str | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> str:  # fmt: skip
    """Of `same` padding, what is odd comes after the image."""
    n = c.rank(w) - 2
    window = tuple(int(k) for k in c.shape(w)[2:])
    spread = each(dilation, n)
    if padding == "same":
        spans = [f * (k - 1) for f, k in zip(spread, window, strict=True)]
        pads = tuple(p for s in spans for p in (s // 2, s - s // 2))
    else:
        pads = tuple(p for d in each(0 if padding == "valid" else padding, n) for p in (d, d))
    batched = x if c.rank(x) == n + 2 else c.reshape(x, (1, *c.shape(x)))
    matrix = _Kernels(c, w).transpose((0, *range(2, n + 2), 1)).matrix(int(c.shape(w)[0]), "windows")
    attrs = {"window": window, "stride": each(stride, n), "padding": pads, "dilation": spread}
    operands = (channels_last(c, batched), matrix, *([bias] if bias else []))
    y = channels_first(c, c.op("conv", *operands, **attrs, groups=groups))
    return c.reshape(y, c.result().shape)


@aten("convolution", "_convolution")
def convolution(
    c: Capture, x: str, w: str, bias: str | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any,
    groups: int, *_: Any,
) -> str:  # fmt: skip
    if transposed:
        return conv_transpose(c, x, w, bias, stride, padding, output_padding, groups, dilation)
    return conv(c, x, w, bias, stride, padding, dilation, groups)


class _Kernels:
    """Kernels on their way to a matrix: another weight if they are stored, ops if they are computed."""

    def __init__(self, c: Capture, w: str) -> None:
        self.c, self.value, self.shape = c, w, tuple(int(d) for d in c.shape(w))
        self.name = w[1:] if w[0] == "@" else ""
        self.source: WeightExpr | None = c.b.weights[self.name].source if self.name else None

    def _apply(self, fn: str, new: tuple[int, ...], /, **attrs: object) -> _Kernels:
        """Step `fn`, after which the shape is `new`."""
        self.shape = new
        if self.source is not None:
            self.source = Apply(fn, (self.source,), tuple(sorted(attrs.items())))
        else:
            self.value = self.c.op(fn, self.value, **attrs)
        return self

    def transpose(self, perm: tuple[int, ...]) -> _Kernels:
        return self._apply("transpose", tuple(self.shape[p] for p in perm), perm=perm)

    def reshape(self, shape: tuple[int, ...]) -> _Kernels:
        return self._apply("reshape", shape, shape=shape)

    def reverse(self, axis: int) -> _Kernels:
        if self.source is None:
            self.value = self.c.op("flip", self.value, axes=(axis,))
            return self
        return self._apply("slice", self.shape, axis=axis, start=self.shape[axis] - 1, step=-1)

    def lengthen(self, axis: int, by: int) -> _Kernels:
        """Zeros at the end of an axis."""
        more = tuple(by if d == axis else n for d, n in enumerate(self.shape))
        self.shape = tuple(n + by if d == axis else n for d, n in enumerate(self.shape))
        if self.source is not None:
            zeros = Apply("fill", (), (("shape", more), ("value", 0.0)))
            self.source = Apply("concat", (self.source, zeros), (("axis", axis),))
        else:
            zeros_ = self.c.op("full", value=0.0, dtype=self.c.dtype(self.value), shape=more)
            self.value = self.c.op("concat", self.value, zeros_, axis=axis)
        return self

    def matrix(self, rows: int, kind: str) -> str:
        """The operand [rows, …]; `kind` becomes part of a weight's name."""
        shape = (rows, math.prod(self.shape) // rows)
        self.reshape(shape)
        if self.source is None:
            return self.value
        stem, _, last = self.name.rpartition(".")
        name = f"{stem}.{kind}.{last}" if stem else f"{last}.{kind}"
        return self.c.b.weight(name, self.c.b.weights[self.name].type.with_(shape=shape), self.source)


# ------------------------------------------------------------------ transposed convolution
@aten("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(
    c: Capture, x: str, w: str, bias: str | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> str:  # fmt: skip
    """Result s * q + a (counted from the padding on), for a in 0..s, is the sum over t of x[q - t] times tap
    a + s * t: a convolution with s times as many outputs, of windows of ceil(taps / s)."""
    n = c.rank(w) - 2
    steps, around, spread = each(stride, n), each(padding, n), each(dilation, n)
    if any(s > 1 and f > 1 for s, f in zip(steps, spread, strict=True)):
        raise c.no("a transposed convolution with both a stride and a dilation", "use one of the two")
    x = x if c.rank(x) == n + 2 else c.reshape(x, (1, *c.shape(x)))
    taps = [int(k) for k in c.shape(w)[2:]]
    window = tuple(-(-k // s) for k, s in zip(taps, steps, strict=True))
    matrix = _phases(c, w, groups, window, steps)
    out = c.result().shape[-n:]
    ends = [
        max(0, -(-(k - p + extra - s * t) // s) if s > 1 else f * (k - 1) + 1 - p + extra - (f * (k - 1) + 1))
        for k, p, extra, s, t, f in zip(
            taps, around, each(output_padding, n), steps, window, spread, strict=True
        )
    ]
    pads = tuple(
        q for t, f, end in zip(window, spread, ends, strict=True) for q in (f * (t - 1), f * (t - 1) + end)
    )
    y = c.op(
        "conv", channels_last(c, x), matrix, window=window, stride=(1,) * n, padding=pads, dilation=spread,
        groups=groups,
    )  # fmt: skip
    y = _laid_out(c, y, groups, steps)
    for d, (p, size) in enumerate(zip(around, out, strict=True)):
        y = c.op("slice", y, axis=1 + d, start=p, stop=as_dim(p + size), step=1)
    y = channels_first(c, c.op("add", y, bias) if bias else y)
    return c.reshape(y, c.result().shape)


def _phases(c: Capture, w: str, groups: int, window: Sequence[int], steps: Sequence[int]) -> str:
    """[groups, phases…, O / groups; window…, C / groups] of kernels [C, O / groups, taps…]."""
    n = len(window)
    kernels = _Kernels(c, w)
    channels, each_group, *taps = kernels.shape
    for d, (k, t, s) in enumerate(zip(taps, window, steps, strict=True)):
        if t * s > k:
            kernels.lengthen(2 + d, t * s - k)
    pairs = [size for pair in zip(window, steps, strict=True) for size in pair]
    kernels.reshape((groups, channels // groups, each_group, *pairs))
    for d, t in enumerate(window):
        if t > 1:
            kernels.reverse(3 + 2 * d)
    kernels.transpose((0, *range(4, 4 + 2 * n, 2), 2, *range(3, 3 + 2 * n, 2), 1))
    return kernels.matrix(groups * math.prod(steps) * each_group, "phases")


def _laid_out(c: Capture, y: str, groups: int, steps: Sequence[int]) -> str:
    """[N, q…, groups * phases… * O / groups] as [N, q * phase…, O]."""
    if math.prod(steps) == 1:
        return y
    batch, *places, outputs = c.shape(y)
    n, each_group = len(places), outputs // (groups * math.prod(steps))
    y = c.op("reshape", y, shape=(batch, *places, groups, *steps, each_group))
    order = [axis for d in range(n) for axis in (1 + d, 2 + n + d)]
    y = c.transpose(y, (0, *order, 1 + n, 2 + 2 * n))
    wide = [as_dim(q * s) for q, s in zip(places, steps, strict=True)]
    return c.op("reshape", y, shape=(batch, *wide, groups * each_group))
