"""Contractions with a weight: y = finish(x @ w^T), for every pair of activation and weight form.

One builder serves one row and five hundred: rows are the tile height, which schedules and the run-time row
count pick; each output is summed in the same order whatever the schedule. Three forms: float dot, decode then
float dot, and `blocked`'s: a dot of a block, integer or float, with scales applied after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tilewright.backends.base import Contraction
from tilewright.ir.encodings.blocked import Blocked
from tilewright.ir.encodings.dense import PANEL, Dense
from tilewright.ir.encodings.token import IntToken
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import At, Buffer, Span
from tilewright.ir.types import as_dim
from tilewright.passes.lower.blocked import float_dot, integer_dot
from tilewright.passes.lower.contraction_tile import Place, numbered
from tilewright.passes.lower.dims import CannotEmit, affine_dim
from tilewright.passes.lower.emit import Coords
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, Matrix, register_lowering

__all__ = ["Accumulators", "Place", "accumulate"]

#: accumulators of the column tile that starts at a column offset: `acc(offset) -> Tile[BM, BN]`
Accumulators = Callable[[int], Tile]


def accumulate(
    b: KernelBuilder, x: Buffer, w: Buffer, place: Place, offsets: Sequence[int]
) -> dict[int, Tile]:
    """f32 tiles [height, BN] of x[rows, :] @ w[j + offset : BN, :]^T, one per column offset."""
    if isinstance(x.encoding, IntToken):
        return integer_dot(b, x, w, place, offsets)
    found = float_dot(b, x, w, place, offsets) if isinstance(w.encoding, Blocked) else None
    return _float(b, x, w, place, offsets) if found is None else found


def _float(b: KernelBuilder, x: Buffer, w: Buffer, p: Place, offsets: Sequence[int]) -> dict[int, Tile]:
    zeros = [b.const(0, "f32", (p.height, "BN")) for _ in offsets]
    with b.loop("k", 0, p.k, "BK", zeros) as loop:
        at = slice(loop.var, "BK")
        xs = b.load(x, *p.x(at))
        out = []
        for n, off in enumerate(offsets):
            dtype = "f32"
            if w.encoding is None:
                tile = b.load(w, *p.w(off, at))
            elif isinstance(w.encoding, Dense):
                tile = b.load(f"{w.name}.values", *p.w(off, at))
                dtype = tile.dtype if tile.dtype == xs.dtype else "f32"
            else:
                tile = w.encoding.tile_decode(b, w, p.w(off, at))
                dtype = xs.dtype if xs.dtype == "bf16" else "f32"
            tile = (b.cast(dtype, tile) if tile.dtype != dtype else tile).named(numbered("w", n))
            out.append(b.dot(loop.carried[n], b.cast(dtype, xs), tile))
        loop.yield_(*out)
    return dict(zip(offsets, loop.results, strict=True))


# ------------------------------------------------------------------ one matrix
def _linear(job: Job, op: Op) -> list[Built]:
    x, w = op.operands[:2]
    t = job.graph.values()[op.result.name].type
    job.lead, job.across, job.whole = max(t.rank - 1, 1), t.shape[:-1], frozenset({w})
    job.rows = as_dim(math.prod(t.shape[:-1])) if t.rank > 1 else 1
    if t.rank == 1:
        raise CannotEmit("linear of a vector")
    n, k = job.matrix(w)
    e = job.emitter("linear")
    xb, wb = e.in_memory(x, "x"), e.in_memory(w, "w")
    offsets, width = _column_parts(job, op, n)
    i, j = e.b.grid("i", "M", "BM", rows=True), e.b.grid("j", width, "BN")
    acc = accumulate(e.b, xb, wb, Place((slice(i, "BM"),), j, k), offsets)
    if len(op.operands) > 2:
        bias = {o: e.emit(op.operands[2], (Span(j + o, "BN"),)) for o in offsets}
        acc = {o: a + bias[o] for o, a in acc.items()}

    def value(at: Coords) -> Tile:
        rows, cols = at
        if not isinstance(rows, Span) or not isinstance(cols, Span) or cols.size != "BN":
            raise CannotEmit("the contraction's result is read in another order")
        return acc[(cols.start - j).as_int()]

    e.anchors[op.result.name] = value
    for n, name in enumerate(job.region.outputs):
        y = e.buffer("%" + name, f"y{n or ''}")
        e.store(y, "%" + name, (Span(i, "BM"), Span(j, "BN")))
    return [job.finish(e, work=Contraction(xb, wb, len(offsets), k, width))]


def _column_parts(job: Job, op: Op, n: int) -> tuple[list[int], int]:
    """Column offsets of the contraction that one output column needs: halves of a gate/up pair, for
    instance."""
    widths = {job.shape("%" + o)[-1] for o in job.region.outputs}
    if len(widths) != 1:
        raise CannotEmit(f"outputs of different widths {sorted(map(str, widths))}")
    (width,) = widths
    if not isinstance(width, int) or n % width:
        raise CannotEmit(f"output width {width} of a contraction with {n} columns")
    if width == n:
        return [0], n
    if width % PANEL:
        raise CannotEmit(f"column parts of {width} do not start at whole panels of {PANEL} rows")
    return [width * p for p in range(n // width)], width


# ------------------------------------------------------------------ one matrix of many
def _grouped_linear(job: Job, op: Op) -> list[Built]:
    """Mixture of experts: one row times the matrix of its expert, for every chosen expert of every token."""
    job.alone(op)
    x, w, ids = op.operands[:3]
    n, k = job.matrix(w)
    e = job.emitter("grouped_linear")
    xb, wb = e.buffer(x, "x"), e.buffer(w, "w")
    tokens, choices = job.shape(ids)
    t, c = e.b.grid("t", affine_dim(tokens), 1), e.b.grid("c", affine_dim(choices), 1)
    j = e.b.grid("j", n, "BN")
    expert = e.emit(ids, (At(t), At(c))).index()
    rows: tuple[object, ...] = (Span(t, 1),) if len(job.shape(x)) == 2 else (At(t), Span(c, 1))
    place = Place(rows, j, k, (expert,), 1)
    acc = accumulate(e.b, xb, wb, place, [0])[0]
    if len(op.operands) > 3:
        acc = acc + e.emit(op.operands[3], (At(expert), Span(j, "BN")))
    y = e.buffer("%" + op.result.name, "y")
    e.b.store(y, (At(t), Span(c, 1), Span(j, "BN")), e.b.cast(y.dtype, acc))
    grouped = isinstance(wb.encoding, Blocked) and bool(wb.encoding.blocks.block)
    run = max(8, wb.encoding.step) if isinstance(wb.encoding, Blocked) else 8
    sizes = {"BN": 16} if grouped else {"BN": 16, "BK": run}
    e.schedule(**sizes)
    return [job.finish(e)]


register_lowering(
    Lowering("linear", Form.CONTRACTION, template=_linear, whole=(0,), matrix=Matrix(), epilogue=True)
)
register_lowering(
    Lowering(
        "grouped_linear", Form.CONTRACTION, template=_grouped_linear, whole=(0,), matrix=Matrix(experts=True)
    )
)
