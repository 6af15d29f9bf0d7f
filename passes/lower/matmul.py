"""The product of two computed values: simple rather than fast, without packing, with masks on every edge.

In: a region around the op; pointwise ops may precede and follow it. Out: one kernel, or CannotEmit.
"""

from __future__ import annotations

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Span
from tilewright.passes.lower.dims import affine_dim
from tilewright.passes.lower.emit import Emitter
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, register_lowering

#: rows, columns and depth of one tile
ROWS, COLS, DEPTH = 4, 16, 16


def _matmul(job: Job, op: Op) -> list[Built]:
    """The kernel: each instance computes one tile of the result, with a loop over K."""
    e = job.emitter("matmul")
    out = job.shape("%" + op.result.name)
    lead = [e.b.grid(f"b{n}", affine_dim(d), 1) for n, d in enumerate(out[:-2])]
    i, j = e.b.grid("i", affine_dim(out[-2]), ROWS), e.b.grid("j", affine_dim(out[-1]), COLS)
    a, b = op.operands
    k = job.shape(a)[-2 if op.attr("transpose_a") else -1]
    with e.loop("k", 0, affine_dim(k), DEPTH, [e.b.const(0, e.type_of(a).dtype, (ROWS, COLS))]) as loop:
        left = _side(e, a, lead, Span(i, ROWS), Span(loop.var, DEPTH), bool(op.attr("transpose_a")))
        right = _side(e, b, lead, Span(j, COLS), Span(loop.var, DEPTH), not op.attr("transpose_b"))
        loop.yield_(e.b.dot(loop.carried[0], left, right))
    job.store_results(e, op, (*[At(v) for v in lead], Span(i, ROWS), Span(j, COLS)), loop.results[0])
    return [job.finish(e)]


def _side(e: Emitter, operand: str, lead: list[Affine], free: Span, k: Span, swapped: bool) -> Tile:
    """[free, k] of one operand, transposed or not; size-1 leading axes broadcast. Beyond the end of k,
    memory reads as 0; values computed in this kernel, and views, behind whose end there may be more of what
    they are part of, are masked explicitly."""
    shape = e.shapes(operand)
    skip = len(lead) - (len(shape) - 2)
    batch = [At(Affine()) if d == 1 else At(v) for d, v in zip(shape[:-2], lead[skip:], strict=True)]
    n = shape[-2] if swapped else shape[-1]
    tile = e.emit(operand, (*batch, k, free) if swapped else (*batch, free, k))
    if operand[1:] in e.inside and not (isinstance(n, int) and n % DEPTH == 0):
        tile = e.b.within(tile, k.start, 0 if swapped else 1, 0.0)
    return e.b.transpose(tile) if swapped else tile


register_lowering(Lowering("matmul", Form.CONTRACTION, template=_matmul))
