"""Ops that depend on the order along a row, topk, cumsum and cumprod: a kernel each, one instance per row.

In: a region that holds the op alone. Out: one kernel; CannotEmit for rows too long.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Buffer, Span
from tilewright.ir.tile.ops import identity
from tilewright.ir.types import FLOATS
from tilewright.passes.lower.dims import CannotEmit, RunTimeSize, affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, register_lowering

#: elements per chunk of a scan
DEPTH = 16


def _topk(job: Job, op: Op) -> list[Built]:
    """The k largest of each row by repeated maximum; equal values keep the lower index first."""
    job.alone(op)
    x = op.operands[0]
    shape, k = job.shape(x), int(op.attr("k"))  # type: ignore[call-overload]
    n = shape[-1]
    if not isinstance(n, int):
        raise RunTimeSize(f"topk of a row of length {n}, known at run time only")
    if op.attr("axis") != len(shape) - 1 or n > 4096 or k > 64:
        raise CannotEmit(f"topk of {k} along axis {op.attr('axis')} of {shape}: only short last axes")
    e = job.emitter("topk")
    row = e.row_grid(shape)
    width = 1 << (n - 1).bit_length()
    line: Coords = (*row, Span(Affine(), width))
    outs = [
        e.buffer("%" + r.name, f"y{m}") if r.name in job.region.outputs else None
        for m, r in enumerate(op.results)
    ]
    for m, found in enumerate(
        _best(e, e.whole(e.emit(x, line), line), n, k, op.attr("largest") is not False)
    ):
        for y, value in zip(outs, found, strict=True):
            if y is not None:
                e.b.store(y, (*row, Span(Affine.of(m), 1)), e.b.cast(y.dtype, value))
    return [job.finish(e)]


def _best(e: Emitter, x: Tile, n: int, k: int, largest: bool) -> Iterator[tuple[Tile, Tile]]:
    """Values and positions of the k largest or smallest of the first n lanes; NaN is larger than any number.
    Lanes already chosen are excluded by position, since others may hold the same value."""
    (width,), b, fn = x.shape, e.b, "max" if largest else "min"
    lane, last = b.iota(width), b.const(int(str(width)), "i32")
    free = b.op("lt", lane, b.const(n, "i32"))
    number = None if x.dtype not in FLOATS else b.op("eq", x, x)
    for _ in range(k):
        known = free if largest or number is None else b.op("and", free, number)
        top = b.reduce(fn, b.select(known, x, identity(fn, x.dtype)), 0)  # type: ignore[arg-type]
        same = b.op("eq", x, top)
        if largest and number is not None:  # a NaN in the row is the largest
            same = b.op("or", same, b.op("and", b.op("not", number), b.op("ne", top, top)))
        at = b.reduce("min", b.select(b.op("and", same, known), lane, last), 0)
        if not largest and number is not None:  # when nothing else is left
            none = b.op("eq", at, last)
            at = b.select(none, b.reduce("min", b.select(free, lane, last), 0), at)
            top = b.select(none, math.nan, top)
        yield top, at
        free = b.op("and", free, b.op("ne", lane, at))


def _along_rows(job: Job, op: Op) -> tuple[Emitter, list[At], Buffer]:
    """A kernel for an op that runs along the last axis: its emitter, the row that an instance handles, the
    result."""
    job.alone(op)
    shape = job.shape(op.operands[0])
    if op.attr("axis") != len(shape) - 1:
        raise CannotEmit(f"{op.name} along axis {op.attr('axis')} of rank {len(shape)}")
    e = job.emitter(op.name)
    return e, e.row_grid(shape), e.buffer("%" + op.result.name, "y")


def _cumsum(job: Job, op: Op) -> list[Built]:
    """A running sum along the last axis, in order: a scan per chunk; the sum so far is carried."""
    e, row, y = _along_rows(job, op)
    x, shape = op.operands[0], job.shape(op.operands[0])
    dtype = op.result.type.dtype
    with e.loop("k", 0, affine_dim(shape[-1]), DEPTH, [e.b.const(0, dtype, (1,))]) as loop:
        at: Coords = (*row, Span(loop.var, DEPTH))
        part = e.b.cast(dtype, e.whole(e.emit(x, at), at))
        e.b.store(y, at, e.b.scan("add", part, 0) + loop.carried[0])
        loop.yield_(loop.carried[0] + e.b.reduce("add", part, 0))
    return [job.finish(e)]


def _cumprod(job: Job, op: Op) -> list[Built]:
    """A running product along the last axis, one element after the other."""
    e, row, y = _along_rows(job, op)
    x, shape = op.operands[0], job.shape(op.operands[0])
    with e.loop("k", 0, affine_dim(shape[-1]), 1, [e.b.const(1, op.result.type.dtype)]) as loop:
        at: Coords = (*row, At(loop.var))
        product = loop.carried[0] * e.emit(x, at)
        e.b.store(y, at, e.b.cast(y.dtype, product))
        loop.yield_(product)
    return [job.finish(e)]


register_lowering(Lowering("cumprod", Form.ALONE, template=_cumprod))
register_lowering(Lowering("topk", Form.ALONE, template=_topk))
register_lowering(Lowering("cumsum", Form.ALONE, template=_cumsum))
