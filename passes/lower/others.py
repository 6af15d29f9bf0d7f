"""Templates that are right rather than fast: batched matmul, experts, top-k, concatenation.

In: a region around the op. Out: kernels; CannotEmit where the op's neighbours do not fit (lowering then takes
the region apart).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from tilewright.ir.affine import Affine
from tilewright.ir.encodings.blocked import Blocked
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Schedule, Span
from tilewright.ir.tile.ops import identity
from tilewright.ir.types import FLOATS
from tilewright.passes.lower import linear
from tilewright.passes.lower.dims import RunTimeSize, affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.regions import VIEWS
from tilewright.passes.lower.views import CannotEmit

#: tile of the plain matmul
ROWS, COLS, DEPTH = 4, 16, 16


def _schedule(e: Emitter, **sizes: int) -> None:
    names = tuple(a.var for a in e.b.grids)
    e.b.schedules.append(Schedule("*", tuple(sorted(sizes.items())), (), names, " ".join(names)))


def _alone(job: Job, op: Op) -> None:
    if len(job.region.ops) > 1:
        raise CannotEmit(f"{op.name} stands alone in its region")


def matmul(job: Job, op: Op) -> list[Built]:
    """Both operands are activations: no packing, masks on every edge."""
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
    acc = loop.results[0]

    def value(at: Coords) -> Tile:
        if at != (*[At(v) for v in lead], Span(i, ROWS), Span(j, COLS)):
            raise CannotEmit("the product is read in another order")
        return acc

    e.anchors[op.result.name] = value
    for name in job.region.outputs:
        if len(job.shape("%" + name)) != len(out):
            raise CannotEmit("the product leaves the region under another shape")
        y = e.buffer("%" + name, f"y{len(e.args)}")
        at: Coords = (*[At(v) for v in lead], Span(i, ROWS), Span(j, COLS))
        e.b.store(y, at, e.b.cast(y.dtype, e.emit("%" + name, at)))
    _schedule(e)
    return [job.finish(e)]


def _side(e: Emitter, operand: str, lead: list[Affine], free: Span, k: Span, swapped: bool) -> Tile:
    """[free, k] of one operand, whichever way it lies; size-1 leading axes broadcast. Beyond the end of k,
    memory reads as 0; what is computed here need not be."""
    shape = e.shapes(operand)
    skip = len(lead) - (len(shape) - 2)
    batch = [At(Affine()) if d == 1 else At(v) for d, v in zip(shape[:-2], lead[skip:], strict=True)]
    n = shape[-2] if swapped else shape[-1]
    tile = e.emit(operand, (*batch, k, free) if swapped else (*batch, free, k))
    if _computed(e, operand) and not (isinstance(n, int) and n % DEPTH == 0):
        tile = e.b.within(tile, k.start, 0 if swapped else 1, 0.0)
    return e.b.transpose(tile) if swapped else tile


def _computed(e: Emitter, operand: str) -> bool:
    """Whether an operand is more than a view of memory."""
    op = e.inside.get(operand[1:]) if operand[0] == "%" else None
    return op is not None and (op.name not in VIEWS or _computed(e, op.operands[0]))


def grouped_linear(job: Job, op: Op) -> list[Built]:
    """Mixture of experts: one row times the matrix of its expert, for every chosen expert of every token."""
    _alone(job, op)
    x, w, ids = op.operands[:3]
    n, k = job.matrix(w)
    e = job.emitter("grouped_linear")
    xb, wb = e.buffer(x, "x"), e.buffer(w, "w")
    tokens, choices = job.shape(ids)
    t, c = e.b.grid("t", affine_dim(tokens), 1), e.b.grid("c", affine_dim(choices), 1)
    j = e.b.grid("j", n, "BN")
    expert = e.emit(ids, (At(t), At(c))).index()
    rows: tuple[object, ...] = (Span(t, 1),) if len(job.shape(x)) == 2 else (At(t), Span(c, 1))
    place = linear.Place(rows, j, k, (expert,), 1)
    acc = linear.accumulate(e.b, xb, wb, place, [0])[0]
    if len(op.operands) > 3:
        acc = acc + e.emit(op.operands[3], (At(expert), Span(j, "BN")))
    y = e.buffer("%" + op.result.name, "y")
    e.b.store(y, (At(t), Span(c, 1), Span(j, "BN")), e.b.cast(y.dtype, acc))
    grouped = isinstance(wb.encoding, Blocked) and bool(wb.encoding.blocks.block)
    run = max(8, wb.encoding.step) if isinstance(wb.encoding, Blocked) else 8
    sizes = {"BN": 16} if grouped else {"BN": 16, "BK": run}
    _schedule(e, **sizes)
    return [job.finish(e)]


def _rows(e: Emitter, shape: tuple[object, ...]) -> list[At]:
    """A grid over all axes but the last; of a vector, one instance."""
    if len(shape) == 1:
        e.b.grid("i0", 1, 1)
    return [At(e.b.grid(f"i{m}", affine_dim(d), 1)) for m, d in enumerate(shape[:-1])]


def topk(job: Job, op: Op) -> list[Built]:
    """The k largest of each row by repeated maximum; equal values keep the lower index first."""
    _alone(job, op)
    x = op.operands[0]
    shape, k = job.shape(x), int(op.attr("k"))  # type: ignore[call-overload]
    n = shape[-1]
    if not isinstance(n, int):
        raise RunTimeSize(f"topk of a row of length {n}, known at run time only")
    if op.attr("axis") != len(shape) - 1 or n > 4096 or k > 64:
        raise CannotEmit(f"topk of {k} along axis {op.attr('axis')} of {shape}: only short last axes")
    e = job.emitter("topk")
    row = _rows(e, shape)
    width = 1 << (n - 1).bit_length()
    outs = [
        e.buffer("%" + r.name, f"y{m}") if r.name in job.region.outputs else None
        for m, r in enumerate(op.results)
    ]
    for m, found in enumerate(
        _best(e, e.emit(x, (*row, Span(Affine(), width))), n, k, op.attr("largest") is not False)
    ):
        for y, value in zip(outs, found, strict=True):
            if y is not None:
                e.b.store(y, (*row, Span(Affine.of(m), 1)), e.b.cast(y.dtype, value))
    _schedule(e)
    return [job.finish(e)]


def _best(e: Emitter, x: Tile, n: int, k: int, largest: bool) -> Iterator[tuple[Tile, Tile]]:
    """Values and places of the k largest or smallest of the first n lanes; NaN is larger than any. A lane
    that was taken is out of the search, for there may be others of the worst value."""
    (width,), b, fn = x.shape, e.b, "max" if largest else "min"
    lane, last = b.iota(width), b.const(int(str(width)), "i32")
    free = b.op("lt", lane, b.const(n, "i32"))
    number = None if x.dtype not in FLOATS else b.op("eq", x, x)
    for _ in range(k):
        known = free if largest or number is None else b.op("and", free, number)
        top = b.reduce(fn, b.select(known, x, identity(fn, x.dtype)), 0)  # type: ignore[arg-type]
        same = b.op("eq", x, top)
        if largest and number is not None:  # a NaN among them is the largest
            same = b.op("or", same, b.op("and", b.op("not", number), b.op("ne", top, top)))
        at = b.reduce("min", b.select(b.op("and", same, known), lane, last), 0)
        if not largest and number is not None:  # when nothing else is left
            none = b.op("eq", at, last)
            at = b.select(none, b.reduce("min", b.select(free, lane, last), 0), at)
            top = b.select(none, math.nan, top)
        yield top, at
        free = b.op("and", free, b.op("ne", lane, at))


def concat(job: Job, op: Op) -> list[Built]:
    """One copy kernel per part, each into its own slice of the result."""
    _alone(job, op)
    axis, at = int(op.attr("axis")), Affine()  # type: ignore[call-overload]
    out = []
    for operand in op.operands:
        shape = job.shape(operand)
        if 0 in shape:
            continue
        e = job.emitter("concat")
        y = e.buffer("%" + op.result.name, "y")
        grid: list[At | Span] = [At(e.b.grid(f"i{m}", affine_dim(d), 1)) for m, d in enumerate(shape[:-1])]
        last = Span(e.b.grid("c", affine_dim(shape[-1]), COLS), COLS)
        src = (*grid, last)
        if axis == len(shape) - 1 and not (isinstance(shape[-1], int) and shape[-1] % COLS == 0):
            src = (*grid, Span(last.start, COLS))
            _exact(e, y, operand, src, at, shape[-1])
        else:
            dst = tuple(_moved(c, at) if m == axis else c for m, c in enumerate(src))
            e.b.store(y, dst, e.b.cast(y.dtype, e.emit(operand, src)))
        _schedule(e)
        out.append(job.finish(e))
        at = at + Affine.of(affine_dim(shape[axis]))
    return out


def _moved(c: At | Span, by: Affine) -> At | Span:
    return At(c.start + by) if isinstance(c, At) else Span(c.start + by, c.size)


def _exact(e: Emitter, y: object, operand: str, src: Coords, at: Affine, n: object) -> None:
    """A last axis that is no multiple of the chunk: lanes past the part's end must not touch the next
    part."""
    last = src[-1]
    lane = e.b.iota(COLS) + e.b.index_value(last.start)
    inside = e.b.op("lt", lane, e.b.index_value(affine_dim(n)))
    where = e.b.select(inside, lane + e.b.index_value(at), e.b.const(-1, "i32"))
    tile = e.emit(operand, src)
    e.b.store(y, (*src[:-1], where), e.b.cast(y.dtype, tile), disjoint=True)  # type: ignore[attr-defined,arg-type]


def cumsum(job: Job, op: Op) -> list[Built]:
    """A running sum along the last axis, in order: a scan per chunk, the total so far carried."""
    _alone(job, op)
    x, shape = op.operands[0], job.shape(op.operands[0])
    if op.attr("axis") != len(shape) - 1:
        raise CannotEmit(f"cumsum along axis {op.attr('axis')} of rank {len(shape)}")
    e = job.emitter("cumsum")
    row = _rows(e, shape)
    y = e.buffer("%" + op.result.name, "y")
    dtype = op.result.type.dtype
    with e.loop("k", 0, affine_dim(shape[-1]), DEPTH, [e.b.const(0, dtype, (1,))]) as loop:
        at: Coords = (*row, Span(loop.var, DEPTH))
        part = e.b.cast(dtype, e.emit(x, at))
        e.b.store(y, at, e.b.scan("add", part, 0) + loop.carried[0])
        loop.yield_(loop.carried[0] + e.b.reduce("add", part, 0))
    _schedule(e)
    return [job.finish(e)]


def gather_elements(job: Job, op: Op) -> list[Built]:
    """One element at a time: the index names a place along one axis, the other coordinates stay."""
    _alone(job, op)
    x, ids = op.operands
    axis = int(op.attr("axis"))  # type: ignore[call-overload]
    e = job.emitter("gather_elements")
    at: list[At | Span] = [
        At(e.b.grid(f"i{m}", affine_dim(d), 1)) for m, d in enumerate(job.shape("%" + op.result.name))
    ]
    picked = e.emit(ids, tuple(at)).index()
    y = e.buffer("%" + op.result.name, "y")
    there: Coords = (*at[:axis], At(picked), *at[axis + 1 :])
    tile = e.emit(x, there)
    e.b.store(y, tuple(at), e.b.cast(y.dtype, tile))
    _schedule(e)
    return [job.finish(e)]
