"""PyTorch's operators that replace elements: scatter, index_put, masked_scatter, assignment to slices.

In: tensors, indices, what is written. Out: scatters whose indices count from the front; of equal indices the
last one wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.capture.aten_index import adjacent, merged_axes, to_front
from tilewright.capture.aten_move import begin_of, count, cut
from tilewright.capture.context import Capture, aten
from tilewright.capture.indices import check
from tilewright.ir.numbers import int_range
from tilewright.ir.ops.common import broadcast_shapes
from tilewright.ir.types import FLOATS, as_dim

#: PyTorch's reductions as those of `scatter`
_REDUCE = {"sum": "add", "add": "add", "prod": "mul", "multiply": "mul", "amax": "max", "amin": "min"}


# ------------------------------------------------------------------ scatter
@aten("scatter.src", "scatter_add")
def scatter(c: Capture, x: str, dim: int, ids: str, src: str) -> str:
    return _scattered(c, x, dim, ids, src, "add" if "scatter_add" in str(c.node.target) else "none")


@aten("scatter.reduce")
def scatter_combined(c: Capture, x: str, dim: int, ids: str, src: str, *, reduce: str) -> str:
    return _scattered(c, x, dim, ids, src, _REDUCE[reduce])


@aten("scatter.value", "scatter.value_reduce")
def scatter_value(c: Capture, x: str, dim: int, ids: str, value: Any, *, reduce: str = "") -> str:
    src = _alike(c, ids, value, c.dtype(x))
    return _scattered(c, x, dim, ids, src, _REDUCE.get(reduce, "none"))


def _alike(c: Capture, ids: str, value: Any, dtype: str) -> str:
    """The one value for every index."""
    if isinstance(value, str):
        return c.expand(c.cast(value, dtype), c.shape(ids))
    return c.op("full", value=c.scalar(value, dtype), dtype=dtype, shape=c.shape(ids))


def _scattered(c: Capture, x: str, dim: int, ids: str, src: str, reduce: str) -> str:
    """Without axes there is one place; a source may be longer than the indices."""
    if not c.rank(x):
        one = _scattered(c, c.reshape(x, (1,)), 0, _listed(c, ids), _listed(c, src), reduce)
        return c.reshape(one, ())
    ids, src, axis = _listed(c, ids), _listed(c, src), c.axis(x, dim)
    check(c, ids, x, axis)
    if c.shape(src) != c.shape(ids):
        for d, size in enumerate(c.shape(ids)):
            src = cut(c, src, d, 0, size)
    if c.dtype(x) == "bool" and reduce != "none":
        wide = _scattered(c, c.cast(x, "u8"), dim, ids, c.cast(src, "u8"), reduce)
        return c.cast(wide, "bool")
    return c.op("scatter", x, c.index(ids), src, axis=axis, reduce=reduce)


def _listed(c: Capture, x: str) -> str:
    return x if c.rank(x) else c.reshape(x, (1,))


@aten("scatter_reduce.two")
def scatter_reduce(
    c: Capture, x: str, dim: int, ids: str, src: str, reduce: str, *, include_self: bool = True
) -> str:
    """Without x's own values, every place that is written starts from the neutral one. A mean is a sum over
    the number of values, of integers rounded down."""
    dtype = c.dtype(x)
    how = "add" if reduce == "mean" else _REDUCE[reduce]
    counted = reduce == "mean" or not include_self
    ones = _alike(c, ids, 1, "i32")
    zeros = c.op("full", value=0, dtype="i32", shape=c.shape(x)) if c.rank(x) else c.const(0, "i32")
    hits = _scattered(c, zeros, dim, ids, ones, "add") if counted else ""
    if not include_self:
        written = c.op("gt", hits, c.const(0, "i32"))
        x = c.op("select", written, c.const(_neutral(how, dtype), dtype), x)
    total = _scattered(c, x, dim, ids, src, how)
    if reduce != "mean":
        return total
    least = 1 if include_self else 0
    number = c.cast(c.op("max", c.op("add", hits, c.const(least, "i32")), c.const(1, "i32")), dtype)
    quotient = c.op("div", total, number)
    if dtype in FLOATS:
        return quotient
    below = c.op("and", c.op("ne", c.op("rem", total, number), c.const(0, dtype)),
                 c.op("lt", total, c.const(0, dtype)))  # fmt: skip
    return c.op("select", below, c.op("sub", quotient, c.const(1, dtype)), quotient)


def _neutral(how: str, dtype: str) -> float:
    if how in ("add", "mul"):
        return 0 if how == "add" else 1
    if dtype in FLOATS:
        return -math.inf if how == "max" else math.inf
    return int_range(dtype)[0 if how == "max" else 1]


@aten("slice_scatter")
def slice_scatter(
    c: Capture, x: str, src: str, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> str:
    """x with a part of one axis replaced: what lies before, the part, what lies after."""
    axis = c.axis(x, dim)
    size = c.shape(x)[axis]
    begin = begin_of(size, 0 if start is None else start)
    if step != 1:
        places = c.op("iota", size=c.shape(src)[axis], start=0, step=step)
        return _rows_put(c, x, axis, c.op("add", places, c.number(begin)), src)
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


def _rows_put(c: Capture, x: str, axis: int, places: str, src: str) -> str:
    """x with the entries at these places of an axis replaced."""
    perm = list(range(c.rank(x)))
    perm[0], perm[axis] = axis, 0
    y = c.op("index_put", c.transpose(x, perm), places, c.transpose(src, perm), accumulate=False)
    return c.transpose(y, perm)


@aten("diagonal_scatter")
def diagonal_scatter(c: Capture, x: str, src: str, offset: int = 0, dim1: int = 0, dim2: int = 1) -> str:
    """The diagonal is every (columns + 1)th element of the two axes as one."""
    rows, columns = c.axis(x, dim1), c.axis(x, dim2)
    perm = [rows, columns, *(d for d in range(c.rank(x)) if d not in (rows, columns))]
    turned = c.transpose(x, perm)
    m, n, *rest = c.shape(turned)
    if not isinstance(n, int):
        raise c.no("a diagonal of rows of dynamic length", "fix the size of the matrix")
    start = offset if offset >= 0 else -offset * n
    ids = c.op("iota", size=c.shape(src)[-1], start=start, step=n + 1)
    values = c.transpose(src, [c.rank(src) - 1, *range(c.rank(src) - 1)])
    flat = c.reshape(turned, [as_dim(m * n), *rest])
    put = c.op("index_put", flat, ids, values, accumulate=False)
    back = [perm.index(d) for d in range(len(perm))]
    return c.transpose(c.reshape(put, (m, n, *rest)), back)


# ------------------------------------------------------------------ index_put
@aten("index_put", "_unsafe_index_put")
def index_put(
    c: Capture, x: str, indices: Sequence[str | None], values: str, accumulate: bool = False,
    unsafe: bool = False,
) -> str:  # fmt: skip
    """Assignment through index tensors: their axes come first, as one, and the values' with them."""
    axes = [d for d, i in enumerate(indices) if i is not None]
    ids = [i for i in indices if i is not None]
    values = c.cast(values, c.dtype(x))
    if any(c.dtype(i) == "bool" for i in ids):
        return _put_where(c, x, ids, values, accumulate)
    perm = to_front(c, x, axes)
    rest = [c.shape(x)[d] for d in perm[len(axes) :]]
    values = _leading(c, values, axes, broadcast_shapes("index_put", [c.shape(i) for i in ids]), rest)
    merged, at = merged_axes(c, c.transpose(x, perm), 0, ids)
    put = c.op("index_put", merged, at, values, accumulate=accumulate)
    whole = c.reshape(put, [c.shape(x)[d] for d in perm])
    return c.transpose(whole, [perm.index(d) for d in range(len(perm))])


def _leading(c: Capture, values: str, axes: Sequence[int], of_ids: Sequence[Any], rest: Sequence[Any]) -> str:
    """Values whose axes stand as in x[indices], with those of the indices first."""
    before = axes[0] if adjacent(axes) else 0
    if not before:
        return values
    shape = [*rest[:before], *of_ids, *rest[before:]]
    spread = c.expand(values, shape)
    middle = list(range(before, before + len(of_ids)))
    return c.transpose(spread, [*middle, *(d for d in range(len(shape)) if d not in middle)])


def _put_where(c: Capture, x: str, ids: Sequence[str], values: str, accumulate: bool) -> str:
    """One value where a mask over the first axes is true."""
    if len(ids) != 1 or any(n != 1 for n in c.shape(values)):
        raise c.no(
            "assignment through a boolean index of as many values as it is true",
            "assign one value, or use torch.where",
        )
    (mask,) = ids
    mask = c.reshape(mask, [*c.shape(mask), *[1] * (c.rank(x) - c.rank(mask))])
    value = c.reshape(values, ())
    return c.op("select", mask, c.op("add", x, value) if accumulate else value, x)


@aten("masked_scatter")
def masked_scatter(c: Capture, x: str, mask: str, src: str) -> str:
    """Where the mask is true, the next element of the source: as many places were true before it."""
    shape = c.result().shape
    x, mask = c.expand(x, shape), c.expand(mask, shape)
    flat = c.reshape(mask, [as_dim(count(shape))])
    before = c.op("sub", c.op("cumsum", c.cast(flat, "i32"), axis=0), c.const(1, "i32"))
    place = c.op("max", before, c.const(0, "i32"))
    source = c.reshape(src, [as_dim(count(c.shape(src)))])
    check(c, place, source, 0)
    taken = c.reshape(c.op("gather", source, place, axis=0), shape)
    return c.op("select", mask, taken, x)
