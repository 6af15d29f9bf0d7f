"""The rule for convolutions over patches that do not overlap: a linear layer of each patch.

In: a convolution whose stride is its window, such as the patch embedding of a vision transformer, or one of
single pixels. Out: a linear layer on [N, patches, window * C].
"""

from __future__ import annotations

import math
from typing import cast

from tilewright.ir.graph.core import Op
from tilewright.passes.rewrite import Declined, Rewrite

Sizes = tuple[int, ...]


def patches(r: Rewrite, op: Op) -> str | None:
    """conv(x, w) with windows side by side. Declined where windows overlap, or sizes are dynamic."""
    x, w = op.operands[:2]
    window = cast(Sizes, op.attr("window"))
    if op.attr("stride") != window or any(cast(Sizes, op.attr("padding"))):
        raise Declined("its windows overlap, or leave gaps")
    if op.attr("dilation") != (1,) * len(window) and any(k > 1 for k in window):
        raise Declined("its windows have gaps")
    if op.attr("groups") != 1 or w[0] != "@":
        raise Declined("its weights are in groups, or computed")
    rows = r.b.mapped(x) if all(k == 1 for k in window) else _rows(r, x, window)
    return r.b.op("linear", rows, *map(r.b.mapped, op.operands[1:]))


def _rows(r: Rewrite, image: str, window: Sizes) -> str:
    """[N, counts..., window * C]: every patch as a row; what is left at the end of an axis is left out."""
    x, shape = r.b.mapped(image), r.old.type(image).shape
    if not all(isinstance(d, int) for d in shape[1:]):
        raise Declined(f"an image of dynamic size {list(shape)}")
    batch, *sizes, channels = shape
    counts = [cast(int, d) // k for d, k in zip(sizes, window, strict=True)]
    for axis, (size, count, k) in enumerate(zip(sizes, counts, window, strict=True)):
        if size != count * k:
            x = r.b.op("slice", x, axis=1 + axis, start=0, stop=count * k)
    n = len(counts)
    pairs = [d for pair in zip(counts, window, strict=True) for d in pair]
    parts = r.b.op("reshape", x, shape=(batch, *pairs, channels))
    order = (0, *range(1, 1 + 2 * n, 2), *range(2, 2 + 2 * n, 2), 1 + 2 * n)
    turned = r.b.op("transpose", parts, perm=order)
    return r.b.op("reshape", turned, shape=(batch, *counts, math.prod(window) * cast(int, channels)))
