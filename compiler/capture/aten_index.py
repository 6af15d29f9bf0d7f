"""PyTorch's operators that pick or replace elements: embedding, index, gather, scatter, assignment to slices.

In: tensors and indices. Out: gathers and scatters whose indices count from the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewright.capture.aten_move import begin_of, count, cut
from tilewright.capture.context import Capture, aten
from tilewright.capture.indices import check
from tilewright.capture.known_values import not_negative
from tilewright.capture.symbols import Dim
from tilewright.ir.types import as_dim


def wrapped(c: Capture, ids: str, x: str, axis: int) -> str:
    """Indices of an axis of x that count from the front: PyTorch's may count from the end, unless they are
    made so that they cannot."""
    check(c, ids, x, axis, negative=True)
    ids, size = c.index(ids), c.shape(x)[axis]
    if not_negative(c, ids):
        return ids
    below = c.op("lt", ids, c.const(0, "i32"))
    return c.op("select", below, c.op("add", ids, c.number(size)), ids)


@aten("embedding")
def embedding(c: Capture, w: str, ids: str, *_: Any, **__: Any) -> str:
    return _gathered(c, w, ids, 0)


def _gathered(c: Capture, x: str, ids: str, axis: int) -> str:
    """Entries of an axis; an index from the end is an error."""
    check(c, ids, x, axis)
    return c.op("gather", x, c.index(ids), axis=axis)


@aten("index_select")
def index_select(c: Capture, x: str, dim: int, ids: str) -> str:
    listed = c.reshape(ids, (1,)) if c.rank(ids) == 0 else ids
    return _gathered(c, x, listed, c.axis(x, dim))


@aten("gather")
def gather(c: Capture, x: str, dim: int, ids: str, *, sparse_grad: bool = False) -> str:
    """Along the only axis longer than one it is a plain gather."""
    axis, index = c.axis(x, dim), c.index(ids)
    if not c.rank(x) or not c.rank(index):  # what has no axes has one element
        shape = c.result().shape
        flat, listed = (c.reshape(t, (1,)) if not c.rank(t) else t for t in (x, ids))
        return c.reshape(_gathered(c, flat, listed, 0), shape)
    check(c, ids, x, axis)
    if any(n != 1 for d, n in enumerate(c.shape(index)) if d != axis):
        return c.op("gather_elements", x, index, axis=axis)
    for d in range(c.rank(x)):
        x = x if d == axis else cut(c, x, d, 0, 1)
    return c.op("gather", c.reshape(x, [c.shape(x)[axis]]), index, axis=0)


@aten("index.Tensor", "_unsafe_index.Tensor")
def index(c: Capture, x: str, indices: Sequence[str | None]) -> str:
    """One index tensor gathers an axis; several adjacent ones gather the axes merged into one."""
    axes = [d for d, i in enumerate(indices) if i is not None]
    ids = [i for i in indices if i is not None]
    if any(c.dtype(i) == "bool" for i in ids):
        raise c.no(
            "a boolean index, whose result size depends on the data",
            "use torch.where, or multiply by the mask",
        )
    if axes != list(range(axes[0], axes[-1] + 1)):
        raise c.no("index tensors with an unindexed axis between them", "index one axis after the other")
    return _whole_grid(c, x, axes[0], ids) or _gather_merged(c, x, axes[0], ids)


def _whole_grid(c: Capture, x: str, first: int, ids: Sequence[str]) -> str | None:
    """Indices that count through whole axes of x, each along an axis of the result of its own and in x's
    order, move nothing: x[arange(B)[:, None, None], arange(S)] is x as [B, 1, S]. None for any others."""
    shape, out, n = c.shape(x), c.result().shape, len(ids)
    rank = len(out) - (len(shape) - n)  # of the indices, broadcast together
    places = [_counts(c, i, size, rank) for i, size in zip(ids, shape[first : first + n], strict=True)]
    known = [p for p in places if p is not None]
    if len(known) < n or known != sorted(set(known)):
        return None
    spread = [shape[first + known.index(p)] if p in known else 1 for p in range(rank)]
    return c.expand(c.reshape(x, [*shape[:first], *spread, *shape[first + n :]]), out)


def _counts(c: Capture, ids: str, size: Dim, rank: int) -> int | None:
    """The axis (of `rank`) along which an index counts 0, 1, … size - 1; None if it is anything else."""
    shape = c.shape(ids)
    long = [d for d, n in enumerate(shape) if n != 1]
    op = c.producer(ids)
    while op is not None and op.name == "reshape":
        op = c.producer(op.operands[0])
    if op is None or op.name != "iota" or len(long) != 1 or shape[long[0]] != size:
        return None
    whole = op.attr("start") == 0 and op.attr("step") == 1 and op.attr("size") == size
    return rank - len(shape) + long[0] if whole else None


def _gather_merged(c: Capture, x: str, first: int, ids: Sequence[str]) -> str:
    shape, many = c.shape(x), len(ids)
    sizes = shape[first : first + many]
    at = wrapped(c, ids[0], x, first)
    for n, (k, size) in enumerate(zip(ids[1:], sizes[1:], strict=True), first + 1):
        at = c.op("add", c.op("mul", at, c.number(size)), wrapped(c, k, x, n))
    merged = c.reshape(x, [*shape[:first], as_dim(count(sizes)), *shape[first + many :]])
    return c.op("gather", merged, at, axis=first)


@aten("scatter.src", "scatter_add")
def scatter(c: Capture, x: str, dim: int, ids: str, src: str) -> str:
    reduce = "add" if "scatter_add" in str(c.node.target) else "none"
    index = c.index(ids)
    check(c, ids, x, c.axis(x, dim))
    if c.shape(src) != c.shape(index):
        for axis, d in enumerate(c.shape(index)):
            src = cut(c, src, axis, 0, d)
    return c.op("scatter", x, index, src, axis=c.axis(x, dim), reduce=reduce)


@aten("scatter.value")
def scatter_value(c: Capture, x: str, dim: int, ids: str, value: Any) -> str:
    index = c.index(ids)
    check(c, ids, x, c.axis(x, dim))
    src = c.op("full", value=c.scalar(value, c.dtype(x)), dtype=c.dtype(x), shape=c.shape(index))
    return c.op("scatter", x, index, src, axis=c.axis(x, dim), reduce="none")


@aten("slice_scatter")
def slice_scatter(
    c: Capture, x: str, src: str, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> str:
    """x with a part of one axis replaced: what lies before, the part, what lies after."""
    axis = c.axis(x, dim)
    if step != 1:
        raise c.no(f"assignment to a slice of step {step}", "assign to adjacent elements")
    size = c.shape(x)[axis]
    begin = begin_of(size, 0 if start is None else start)
    stop = as_dim(begin + c.shape(src)[axis])
    parts = [cut(c, x, axis, 0, begin)] if begin != 0 else []
    parts.append(src)
    if stop != size:
        parts.append(cut(c, x, axis, stop, size))
    return src if len(parts) == 1 else c.op("concat", *parts, axis=axis)


@aten("select_scatter")
def select_scatter(c: Capture, x: str, src: str, dim: int, index: Any) -> str:
    axis = c.axis(x, dim)
    shape = list(c.shape(x))
    at = as_dim(shape[axis] + index) if isinstance(index, int) and index < 0 else index
    part = c.reshape(src, [*shape[:axis], 1, *shape[axis + 1 :]])
    return slice_scatter(c, x, part, axis, at)


@aten("index_put")
def index_put(
    c: Capture, x: str, indices: Sequence[str | None], values: str, accumulate: bool = False
) -> str:
    if len(indices) != 1 or indices[0] is None or c.dtype(indices[0]) == "bool":
        raise c.no(
            "assignment through anything but one integer index of the first axis",
            "use torch.where or scatter",
        )
    ids = wrapped(c, indices[0], x, 0)
    return c.op("index_put", x, ids, c.cast(values, c.dtype(x)), accumulate=accumulate)
