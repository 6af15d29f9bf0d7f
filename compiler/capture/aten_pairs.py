"""Importers of distances between rows and of bags of embeddings.

In: matrices of rows. Out: sums over differences; sums, means or maxima of the table's rows per bag.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilewright.capture.aten_index import wrapped
from tilewright.capture.aten_reduce import norm_of
from tilewright.capture.context import Capture, aten
from tilewright.ir.types import as_dim


# ------------------------------------------------------------------ distances
@aten("_cdist_forward")
def cdist(c: Capture, a: str, b: str, p: float, mode: int | None) -> str:
    """Every row of a against every row of b."""
    m, n, k = c.shape(a)[-2], c.shape(b)[-2], c.shape(a)[-1]
    left = c.reshape(a, (*c.shape(a)[:-2], m, 1, k))
    right = c.reshape(b, (*c.shape(b)[:-2], 1, n, k))
    return _length(c, c.op("sub", left, right), p)


@aten("_pdist_forward")
def pdist(c: Capture, x: str, p: float = 2.0) -> str:
    """Every row against each later one."""
    rows = c.shape(x)[0]
    if not isinstance(rows, int):
        raise c.no("distances between a dynamic number of rows", "use torch.cdist")
    pairs = [p.astype(np.int32) for p in np.triu_indices(rows, 1)]
    a, b = (c.op("gather", x, c.numbers(ids), axis=0) for ids in pairs)
    return _length(c, c.op("sub", a, b), p)


def _length(c: Capture, x: str, p: float) -> str:
    """The p-norm along the last axis; 0 of rows without elements."""
    if c.shape(x)[-1] == 0:
        return c.op("sum", x, axes=(c.rank(x) - 1,), keepdims=False)
    return norm_of(c, x, p, (c.rank(x) - 1,), False)


# ------------------------------------------------------------------ bags
@aten("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(
    c: Capture, table: str, ids: str, offsets: str, scale: bool = False, mode: int = 0,
    sparse: bool = False, weights: str | None = None, last: bool = False, padding: int = -1,
) -> tuple[str | None, ...]:  # fmt: skip
    """Rows of the table, each added to its bag, the last one that starts at or before it. Of a bag without
    rows, zeros. What else it gives serves the backward pass only."""
    number = c.result().shape[0]
    ids, starts = c.index(ids), c.index(offsets)
    starts = starts if c.shape(starts)[0] == number else c.op("slice", starts, axis=0, stop=number)
    bag, kept = _bags(c, ids, starts), _kept(c, ids, padding)
    rows = c.op("gather", table, wrapped(c, ids, table, 0), axis=0)
    if mode == 2:
        return _largest(c, rows, bag, kept, number), None, None, None
    if weights:
        rows = c.op("mul", rows, c.reshape(weights, (*c.shape(weights), 1)))
    if kept:
        rows = c.op("select", c.reshape(kept, (*c.shape(kept), 1)), rows, c.const(0, c.dtype(rows)))
    total = _per_bag(c, rows, bag, number)
    if mode == 0:
        return total, None, None, None
    ones = c.cast(kept, c.dtype(rows)) if kept else _ones(c, ids, c.dtype(rows))
    counts = _per_bag(c, c.reshape(ones, (*c.shape(ones), 1)), bag, number)
    return c.op("div", total, c.op("max", counts, c.const(1, c.dtype(rows)))), None, None, None


def _bags(c: Capture, ids: str, starts: str) -> str:
    """For each id, how many bags start at or before it, less one."""
    (many,), (bags,) = c.shape(ids), c.shape(starts)
    place = c.reshape(c.op("iota", size=many), (many, 1))
    begun = c.op("le", c.reshape(starts, (1, bags)), place)
    count = c.op("sum", c.op("cast", begun, dtype="i32"), axes=(1,), keepdims=False)
    return c.op("sub", count, c.const(1, "i32"))


def _kept(c: Capture, ids: str, padding: int) -> str:
    return c.op("ne", ids, c.const(padding, "i32")) if padding >= 0 else ""


def _ones(c: Capture, ids: str, dtype: str) -> str:
    return c.op("full", value=1.0, dtype=dtype, shape=c.shape(ids))


def _per_bag(c: Capture, rows: str, bag: str, number: Any) -> str:
    zeros = c.op("full", value=0.0, dtype=c.dtype(rows), shape=(number, c.shape(rows)[1]))
    return c.op("index_put", zeros, bag, rows, accumulate=True)


def _largest(c: Capture, rows: str, bag: str, kept: str, number: Any) -> str:
    dtype, (many, width) = c.dtype(rows), c.shape(rows)
    lowest = c.const(-math.inf, dtype)
    if kept:
        rows = c.op("select", c.reshape(kept, (as_dim(many), 1)), rows, lowest)
    start = c.op("full", value=-math.inf, dtype=dtype, shape=(number, width))
    spread = c.expand(c.reshape(bag, (many, 1)), (many, width))
    top = c.op("scatter", start, spread, rows, axis=0, reduce="max")
    return c.op("select", c.op("eq", top, lowest), c.const(0.0, dtype), top)
