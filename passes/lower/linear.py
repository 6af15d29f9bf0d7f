"""Contractions with a weight: y = finish(x @ w^T), for every pair of activation and weight form.

One builder serves any number of rows: the rows of a tile are its height, which schedules and the run-time row
count determine. Each output is summed in the same order under every schedule. There are three forms: a float
dot; decoding followed by a float dot; and that of `blocked`: one dot per block, integer or float, with scales
applied after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tilewright.backends.base import Contraction, ExpertContraction, numbered
from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import At, Buffer, Span
from tilewright.ir.types import as_dim
from tilewright.passes.lower.blocked import float_dot, integer_dot
from tilewright.passes.lower.contraction_tile import TilePosition
from tilewright.passes.lower.dims import CannotEmit, affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, Matrix, register_lowering

#: accumulators of the column tile that starts at a column offset: `acc(offset) -> Tile[BM, BN]`
Accumulators = Callable[[int], Tile]


def accumulate(
    b: KernelBuilder, x: Buffer, w: Buffer, place: TilePosition, offsets: Sequence[int]
) -> dict[int, Tile]:
    """f32 tiles [height, BN] of x[rows, :] @ w[j + offset : BN, :]^T, one per column offset."""
    if x.operand_form is not None:
        return integer_dot(b, x, w, place, offsets)
    found = float_dot(b, x, w, place, offsets)
    return _float(b, x, w, place, offsets) if found is None else found


def _float(
    b: KernelBuilder, x: Buffer, w: Buffer, p: TilePosition, offsets: Sequence[int]
) -> dict[int, Tile]:
    zeros = [b.const(0, "f32", (p.height, "BN")) for _ in offsets]
    with b.loop("k", 0, p.k, "BK", zeros) as loop:
        at = slice(loop.var, "BK")
        xs = b.load(x, *p.x(at))
        out = []
        for n, off in enumerate(offsets):
            tile = _read(b, w, p.w(off, at))
            dtype = _dot_dtype(w, xs.dtype)
            tile = (b.cast(dtype, tile) if tile.dtype != dtype else tile).named(numbered("w", n))
            out.append(b.dot(loop.carried[n], b.cast(dtype, xs), tile))
        loop.yield_(*out)
    return dict(zip(offsets, loop.results, strict=True))


def _read(b: KernelBuilder, w: Buffer, at: tuple[object, ...]) -> Tile:
    """Weights in their element type, or decoded to f32."""
    if w.encoding is None:
        return b.load(w, *at)
    tile: Tile = w.encoding.tile_read(b, w, at)
    return tile


def _dot_dtype(w: Buffer, x: str) -> str:
    """The type of both operands of the dot: that of the activations if it is narrow and represents the
    weights exactly, else f32."""
    if w.encoding is None:
        return "f32"
    return x if x == w.encoding.element or x == "bf16" and not w.encoding.element else "f32"


# ------------------------------------------------------------------ one matrix
def _linear(job: Job, op: Op) -> list[Built]:
    x, w = op.operands[:2]
    t = job.graph.values()[op.result.name].type
    job.lead, job.across, job.whole = max(t.rank - 1, 1), t.shape[:-1], frozenset({w})
    job.rows = as_dim(math.prod(t.shape[:-1])) if t.rank > 1 else 1
    if t.rank == 1:
        raise CannotEmit("a linear layer of a vector: its input must have rank 2 or more")
    n, k = job.matrix(w)
    e = job.emitter("linear")
    xb, wb = e.in_memory(x, "x"), e.in_memory(w, "w")
    offsets, width = _column_parts(job, wb, n, k)
    i, j = e.b.grid("i", "M", "BM", rows=True), e.b.grid("j", width, "BN")
    acc = accumulate(e.b, xb, wb, TilePosition((slice(i, "BM"),), j, k), offsets)
    if len(op.operands) > 2:
        bias = {o: e.emit(op.operands[2], (Span(j + o, "BN"),)) for o in offsets}
        acc = {o: a + bias[o] for o, a in acc.items()}

    def value(at: Coords) -> Tile:
        rows, cols = at
        if not isinstance(rows, Span) or not isinstance(cols, Span) or cols.size != "BN":
            raise CannotEmit("the contraction's result is read at other coordinates than computed")
        return acc[(cols.start - j).as_int()]

    e.anchors[op.result.name] = value
    for n, name in enumerate(job.region.outputs):
        y = e.buffer("%" + name, f"y{n or ''}")
        e.store(y, "%" + name, (Span(i, "BM"), Span(j, "BN")))
    return [job.finish(e, work=Contraction(xb, wb, len(offsets), k, width))]


def _column_parts(job: Job, w: Buffer, n: int, k: int) -> tuple[list[int], int]:
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
    panel = w.encoding.rows_together((n, k)) if w.encoding is not None else 1
    if width % panel:
        raise CannotEmit(f"column parts of {width} do not start at whole panels of {panel} rows")
    return [width * p for p in range(n // width)], width


# ------------------------------------------------------------------ one matrix of many
def _grouped_linear(job: Job, op: Op) -> list[Built]:
    """Mixture of experts: rows times the matrices of their experts."""
    job.alone(op)
    if job.shape(op.operands[2])[1] == 1:
        return _expert_rows(job, op)
    x, w, ids = op.operands[:3]
    n, k = job.matrix(w)
    e = job.emitter("grouped_linear")
    xb, wb = e.buffer(x, "x"), e.buffer(w, "w")
    tokens, choices = job.shape(ids)
    t, c = e.b.grid("t", affine_dim(tokens), 1), e.b.grid("c", affine_dim(choices), 1)
    j = e.b.grid("j", n, "BN")
    expert = e.emit(ids, (At(t), At(c))).index()
    rows: tuple[object, ...] = (Span(t, 1),) if len(job.shape(x)) == 2 else (At(t), Span(c, 1))
    place = TilePosition(rows, j, k, (expert,), 1)
    acc = accumulate(e.b, xb, wb, place, [0])[0]
    if len(op.operands) > 3:
        acc = acc + e.emit(op.operands[3], (At(expert), Span(j, "BN")))
    acc = e.b.select(_exists(job, op, e, e.b.cast("i32", e.emit(ids, (At(t), At(c))))), acc, 0)
    y = e.buffer("%" + op.result.name, "y")
    e.b.store(y, (At(t), Span(c, 1), Span(j, "BN")), e.b.cast(y.dtype, acc))
    return [job.finish(e, work=ExpertContraction(xb, wb, k, n, True))]


def _expert_rows(job: Job, op: Op) -> list[Built]:
    """One expert for each row, rows in blocks: a block is multiplied once for every run of rows with the same
    expert, and each row keeps the product with its own. Blocks of rows sorted by expert are nearly always one
    run. What is not stored by a run stays zero."""
    x, w, ids = op.operands[:3]
    job.rows = job.shape(ids)[0]
    n, k = job.matrix(w)
    e = job.emitter("grouped_linear")
    b, xb, wb = e.b, e.buffer(x, "x"), e.buffer(w, "w")
    i, j = b.grid("i", "M", "BM", rows=True), b.grid("j", n, "BN")
    inner = (At(Affine()),) * (len(job.shape(x)) - 2)
    rows, end = b.iota("BM") + b.index_value(i), b.op("min", b.index_value(i + "BM"), b.index_value("M"))
    mine = b.cast("i32", e.whole(e.emit(ids, (Span(i, "BM"), At(Affine()))), (Span(i, "BM"),)))
    y = e.buffer("%" + op.result.name, "y")
    b.store(y, (Span(i, "BM"), At(Affine()), Span(j, "BN")), b.const(0, y.dtype, ("BM", "BN")))
    with e.loop("r", i, end.index(), 1) as run:
        expert = b.cast("i32", e.emit(ids, (At(run.var), At(Affine()))))
        begins = b.op("and", _begins(e, ids, run.var, i, expert), _exists(job, op, e, expert))
        with e.loop("p", 0, b.cast("i32", begins).index(), 1) as once:
            at = expert.index()
            acc = accumulate(b, xb, wb, TilePosition((Span(i, "BM"), *inner), j, k, (at,)), [0])[0]
            if len(op.operands) > 3:
                acc = acc + e.emit(op.operands[3], (At(at), Span(j, "BN")))
            own = b.op("and", b.op("eq", mine, expert), b.op("lt", rows, end))
            there = (b.select(own, rows, b.const(-1, "i32")), At(Affine()), Span(j, "BN"))
            b.store(y, there, b.cast(y.dtype, acc), disjoint=True)
            once.yield_()
        run.yield_()
    return [job.finish(e, work=ExpertContraction(xb, wb, k, n))]


def _exists(job: Job, op: Op, e: Emitter, expert: Tile) -> Tile:
    """Whether there is such an expert."""
    count = job.module.operand_type(job.graph, op.operands[1]).shape[0]
    return e.b.op("lt", expert, e.b.index_value(affine_dim(count)))


def _begins(e: Emitter, ids: str, row: Affine, first: Affine, expert: Tile) -> Tile:
    """Whether a run of rows with the same expert begins at a row of the block from `first` on."""
    b = e.b
    before = b.op("max", b.index_value(row - 1), b.index_value(first)).index()
    other = b.op("ne", b.cast("i32", e.emit(ids, (At(before), At(Affine())))), expert)
    return b.op("or", other, b.op("eq", b.index_value(row), b.index_value(first)))


register_lowering(
    Lowering("linear", Form.CONTRACTION, template=_linear, whole=(0,), matrix=Matrix(), epilogue=True)
)
register_lowering(
    Lowering(
        "grouped_linear",
        Form.CONTRACTION,
        template=_grouped_linear,
        whole=(0, 1),
        matrix=Matrix(experts=True),
    )
)
