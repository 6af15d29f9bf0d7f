"""The rule for convolutions over patches that do not overlap: a linear layer of each patch.

In: a convolution whose stride is its window, such as the patch embedding of a vision transformer. Out: a
linear layer on [N, patches, C * window], as the image's own axes.
"""

from __future__ import annotations

from typing import cast

from tilewright.ir.graph.core import Apply, Op
from tilewright.ir.types import TensorType
from tilewright.passes.rewrite import Declined, Rewrite

Sizes = tuple[int, ...]


def patches(r: Rewrite, op: Op) -> str | None:
    """conv(x, w) with windows side by side. Declined where windows overlap, or sizes are dynamic."""
    x, w = op.operands[:2]
    shape, matrix = r.old.type(x).shape, r.old.type(w)
    window, n = matrix.shape[2:], len(shape) - 2
    padding, dilation = op.attr("padding"), op.attr("dilation")
    if op.attr("stride") != window or any(cast(Sizes, padding)) or any(d != 1 for d in cast(Sizes, dilation)):
        raise Declined("its windows overlap, or leave gaps")
    if op.attr("groups") != 1 or w[0] != "@" or matrix.stored[1] is not None:
        raise Declined("its weights are in groups, or computed")
    if not all(isinstance(d, int) for d in shape[1:]):
        raise Declined(f"an image of dynamic size {list(shape)}")
    counts = tuple(cast(int, d) // cast(int, p) for d, p in zip(shape[2:], window, strict=True))
    y = r.b.op("linear", _rows(r, op, counts), _matrix(r, w, matrix), *map(r.b.mapped, op.operands[2:]))
    return r.b.op("transpose", y, perm=(0, n + 1, *range(1, n + 1)))


def _rows(r: Rewrite, op: Op, counts: Sizes) -> str:
    """[N, counts..., C * window]: every patch as a row; what is left at the end of an axis is left out."""
    x = r.b.mapped(op.operands[0])
    batch, channels, *sizes = r.b.type(x).shape
    window = cast(Sizes, op.attr("stride"))
    for axis, (size, count, p) in enumerate(zip(sizes, counts, window, strict=True)):
        if size != count * p:
            x = r.b.op("slice", x, axis=2 + axis, start=0, stop=count * p)
    pairs = [d for pair in zip(counts, window, strict=True) for d in pair]
    parts = r.b.op("reshape", x, shape=(batch, channels, *pairs))
    n = len(counts)
    order = (0, *range(2, 2 + 2 * n, 2), 1, *range(3, 3 + 2 * n, 2))
    turned = r.b.op("transpose", parts, perm=order)
    length = cast(int, channels)
    for p in window:
        length *= p
    return r.b.op("reshape", turned, shape=(batch, *counts, length))


def _matrix(r: Rewrite, w: str, t: TensorType) -> str:
    """The kernels as rows."""
    rows, *rest = (cast(int, d) for d in t.shape)
    length = 1
    for d in rest:
        length *= d
    stem, _, last = w[1:].rpartition(".")
    name = f"{stem}.patches.{last}" if stem else f"{last}.patches"
    source = Apply("reshape", (r.old.weights[w[1:]].source,), (("shape", (rows, length)),))
    return r.b.weight(name, t.with_(shape=(rows, length)), source)
