"""The template for everything along rows: pointwise work, norms, moves, activation codes, cache appends.

A grid over the leading axes that all results share, with chunks along the last axis.

In: a region none of whose ops has a template of its own. Out: one kernel, or CannotEmit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.core import At, Buffer, Span
from tilewright.passes.lower.chunks import static_chunks, width_of
from tilewright.passes.lower.dims import CannotEmit, affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.encode import encode_row
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Lowering, lowering_of


def over_rows(job: Job) -> list[Built]:
    """Pointwise, norms, quantization, moves, cache appends: a grid over the leading axes, chunks along the
    last."""
    e = job.emitter("_".join(dict.fromkeys(op.name for op in job.region.ops))[:48])
    appends = [(op, r) for op, r in _records(job) if r.effect is not None]
    targets = ["%" + o for o in job.region.outputs]
    shapes = [job.shape(t) for t in targets] + [
        job.shape(op.operands[k]) for op, r in appends for k in r.rows or ()
    ]
    if not shapes:
        raise CannotEmit("the region has no results")
    grid = _grid(e, shapes)
    if appends and len(grid) == 1:
        grid += _head_axis(e, job.module.state_map()[appends[0][0].operands[0][1:]].heads, shapes)
    for t in targets:
        _rows(e, t, job.shape(t), grid)
    for op, record in appends:
        assert record.effect is not None
        record.effect(job, e, op, grid)
    return [job.finish(e)]


def _records(job: Job) -> list[tuple[Op, Lowering]]:
    """Every op of the region with its record. CannotEmit for an op that cannot share a kernel with others."""
    out = []
    for op in job.region.ops:
        record = lowering_of(op)
        if record is None or record.template is not None and record.emit is None:
            raise CannotEmit(f"op {op.name} cannot be computed inside a fused kernel")
        out.append((op, record))
    return out


def _grid(e: Emitter, shapes: Sequence[tuple[object, ...]]) -> list[Affine]:
    """Grid axes over the leading dimensions that all shapes share; a single vector is divided into chunks."""
    common: list[object] = []
    for dims in zip(*[s[:-1] for s in shapes], strict=False):
        if len(set(map(str, dims))) != 1:
            break
        common.append(dims[0])
    if common:
        return [e.b.grid(f"i{n}", affine_dim(d), 1) for n, d in enumerate(common)]
    lengths = {str(s[-1]) for s in shapes if s}
    if all(len(s) == 1 for s in shapes) and len(lengths) == 1:
        return [e.b.grid("i0", affine_dim(shapes[0][-1]), 16)]
    return [e.b.grid("i0", 1, 1)]


def _head_axis(e: Emitter, heads: int, shapes: Sequence[tuple[object, ...]]) -> list[Affine]:
    """A grid axis over KV heads, each with its query heads, so that even a single token gives work to several
    threads."""
    if heads == 1 or not all(len(s) == 3 and isinstance(s[1], int) and s[1] % heads == 0 for s in shapes):
        return []
    return [e.b.grid("h", heads, 1)]


def _rows(e: Emitter, operand: str, shape: tuple[object, ...], grid: Sequence[Affine]) -> None:
    """Store one output: loops over the dimensions that the grid does not cover, then chunks of the last."""
    y = e.buffer(operand, f"y{len(e.args)}")
    if len(shape) == 1 and e.b.grids[0].step == 16:
        e.store(y, operand, (Span(grid[0], 16),))
        return
    if not shape:
        e.b.store(y, (), e.b.cast(y.dtype, e.emit(operand, ())))
        return
    _nest(e, shape, grid, [], lambda row: _row(e, y, operand, shape, row))


def _nest(
    e: Emitter,
    shape: tuple[object, ...],
    grid: Sequence[Affine],
    done: list[At],
    body: Callable[[Coords], None],
) -> None:
    axis = len(done)
    if axis >= len(shape) - 1:
        body(tuple(done))
        return
    share = _share(e, shape[axis], axis) if axis < len(grid) else affine_dim(shape[axis])
    base = grid[axis] * share if axis < len(grid) and isinstance(share, int) else Affine()
    if share == 1 and axis < len(grid):
        _nest(e, shape, grid, [*done, At(base)], body)
        return
    with e.loop(e.fresh_var("m"), 0, share, 1) as loop:
        _nest(e, shape, grid, [*done, At(base + loop.var)], body)
        loop.yield_()


def _share(e: Emitter, size: object, axis: int) -> int | str | Affine:
    """Entries of an axis that one instance of the grid handles: all of a dynamic one that the grid does not
    run over."""
    extent = e.b.grids[axis].extent
    if extent.names or size == 0:
        return 1
    return int(size) // extent.as_int() if isinstance(size, int) else affine_dim(size)


def _row(e: Emitter, y: Buffer, operand: str, shape: tuple[object, ...], row: Coords) -> None:
    if y.encoding is not None:
        encode_row(e, y, operand, row)
        return
    n = shape[-1]
    chunks = static_chunks(e, operand, n)
    if chunks is not None:
        for at in chunks:
            e.store(y, operand, (*row, at))
        return
    width = width_of(e, operand, n)
    e.emit(
        operand, (*row, Span(Affine(), width))
    )  # statistics are emitted here, once per row, outside the loop
    with e.loop(e.fresh_var("c"), 0, affine_dim(n), width) as loop:
        e.store(y, operand, (*row, Span(loop.var, width)))
        loop.yield_()
