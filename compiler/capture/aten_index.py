"""PyTorch's operators that pick elements: embedding, index, gather, diagonals, windows, strided views.

In: tensors and indices. Out: gathers whose indices count from the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewright.capture.aten_move import count, cut
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
    if not c.rank(x):
        return c.reshape(_gathered(c, c.reshape(x, (1,)), listed, 0), ())
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
    """One index tensor gathers an axis; several gather their axes merged into one. Axes that are apart are
    brought to the front, where PyTorch puts those of the indices."""
    axes = [d for d, i in enumerate(indices) if i is not None]
    ids = [i for i in indices if i is not None]
    if any(c.dtype(i) == "bool" for i in ids):
        raise c.no(
            "a boolean index, whose result size depends on the data",
            "use torch.where, or multiply by the mask",
        )
    if not adjacent(axes):
        x, axes = c.transpose(x, to_front(c, x, axes)), list(range(len(axes)))
    return _whole_grid(c, x, axes[0], ids) or _gather_merged(c, x, axes[0], ids)


def adjacent(axes: Sequence[int]) -> bool:
    return list(axes) == list(range(axes[0], axes[-1] + 1))


def to_front(c: Capture, x: str, axes: Sequence[int]) -> list[int]:
    """The permutation that puts these axes before the others."""
    return [*axes, *(d for d in range(c.rank(x)) if d not in axes)]


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
    merged, at = merged_axes(c, x, first, ids)
    return c.op("gather", merged, at, axis=first)


def merged_axes(c: Capture, x: str, first: int, ids: Sequence[str]) -> tuple[str, str]:
    """x with the axes that the indices count, from `first` on, as one, and the indices along it."""
    shape, many = c.shape(x), len(ids)
    sizes = shape[first : first + many]
    at = wrapped(c, ids[0], x, first)
    for n, (k, size) in enumerate(zip(ids[1:], sizes[1:], strict=True), first + 1):
        at = c.op("add", c.op("mul", at, c.number(size)), wrapped(c, k, x, n))
    return c.reshape(x, [*shape[:first], as_dim(count(sizes)), *shape[first + many :]]), at


# ------------------------------------------------------------------ places that strides decide
@aten("diagonal", "diagonal_copy")
def diagonal(c: Capture, x: str, offset: int = 0, dim1: int = 0, dim2: int = 1) -> str:
    """Every (columns + 1)th element of the two axes as one, which stand last."""
    rows, columns = c.axis(x, dim1), c.axis(x, dim2)
    x = c.transpose(x, [d for d in range(c.rank(x)) if d not in (rows, columns)] + [rows, columns])
    *lead, m, n = c.shape(x)
    if not isinstance(n, int):
        raise c.no("a diagonal of rows of dynamic length", "fix the size of the matrix")
    start = offset if offset >= 0 else -offset * n
    ids = c.op("iota", size=c.result().shape[-1], start=start, step=n + 1)
    return c.op("gather", c.reshape(x, [*lead, as_dim(m * n)]), ids, axis=len(lead))


@aten("unfold", "unfold_copy")
def unfold(c: Capture, x: str, dim: int, size: int, step: int) -> str:
    """Windows side by side: the place within a window is a new last axis."""
    if not c.rank(x):
        return c.reshape(x, (size,))
    axis = c.axis(x, dim)
    at = grid_of(c, [(c.result().shape[axis], step), (size, 1)], 0)
    y = c.op("gather", x, at, axis=axis)
    rest = [d for d in range(c.rank(y)) if d != axis + 1]
    return c.transpose(y, [*rest, axis + 1])


@aten("as_strided", "as_strided_copy")
def as_strided(
    c: Capture, x: str, size: Sequence[Any], stride: Sequence[Any], storage_offset: Any = None
) -> str:
    """Elements of a contiguous tensor by their distance from the first."""
    example = c.node.args[0].meta["val"]
    known = all(isinstance(n, int) for n in (*size, *stride, storage_offset or 0))
    if not known or not example.is_contiguous() or example.storage_offset():
        raise c.no("strides of a tensor that is a view itself, or of dynamic size", "use indexing")
    at = grid_of(c, list(zip(size, stride, strict=True)), storage_offset or 0)
    return c.op("gather", c.reshape(x, [as_dim(count(c.shape(x)))]), at, axis=0)


def grid_of(c: Capture, axes: Sequence[tuple[Dim, int]], start: int) -> str:
    """i32: start + the sum over axes, (size, step), of position times step."""
    at = c.const(start, "i32")
    for d, (size, step) in enumerate(axes):
        along = c.op("iota", size=size, step=step)
        at = c.op("add", at, c.reshape(along, (size, *[1] * (len(axes) - 1 - d))))
    return at
