"""One region to its kernels: pick the template by the region's anchor, emit, collect parameters.

In: a region. Out: kernels with the plan operands of their parameters and the dimensions of their symbols;
CannotEmit where no single kernel can do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from tilewright.ir.affine import Affine
from tilewright.ir.encodings.dense import PANEL
from tilewright.ir.encodings.integer import IntToken
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Buffer, Condition, Schedule, Span
from tilewright.ir.types import as_dim
from tilewright.passes.lower import attention, linear, others, rowwise
from tilewright.passes.lower.dims import affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.regions import Region
from tilewright.passes.lower.views import CannotEmit

#: elements of the last axis that a pointwise kernel handles at once
WIDTH = 64


def build_region(module: Module, graph: Graph, region: Region, free: Mapping[str, Op]) -> list[Built]:
    """The kernels of a region, in call order. Raises CannotEmit."""
    job = Job(module, graph, region, region.inside(free))
    names = [op.name for op in region.ops]
    for anchor, template in _TEMPLATES.items():
        if anchor in names:
            if names.count(anchor) > 1:
                raise CannotEmit(f"{names.count(anchor)} {anchor} ops in one region")
            return template(job, next(op for op in region.ops if op.name == anchor))
    return [_elementwise(job)]


# ------------------------------------------------------------------ linear
def _linear(job: Job, op: Op) -> list[Built]:
    x, w = op.operands[:2]
    t = job.graph.values()[op.result.name].type
    job.lead, job.across, job.whole = max(t.rank - 1, 1), t.shape[:-1], frozenset({w})
    job.rows = as_dim(math.prod(t.shape[:-1])) if t.rank > 1 else 1
    if t.rank == 1:
        raise CannotEmit("linear of a vector")
    n, k = job.matrix(w)
    e = job.emitter("linear")
    xb, wb = _contiguous(job, e, x, "x"), _contiguous(job, e, w, "w")
    offsets, width = _column_parts(job, op, n)
    i, j = e.b.grid("i", "M", "BM", rows=True), e.b.grid("j", width, "BN")
    acc = linear.accumulate(e.b, xb, wb, linear.Place((slice(i, "BM"),), j, k), offsets)
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
        _store_tile(e, y, "%" + name, (Span(i, "BM"), Span(j, "BN")))
    for s in linear.schedules(xb, wb, len(offsets), k, width):
        e.b.schedules.append(s)
    return [job.finish(e)]


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


def _contiguous(job: Job, e: Emitter, x: str, role: str) -> Buffer:
    """The buffer of an operand that must be read whole rows at a time: reshapes of it alias the same
    memory."""
    if x[0] == "%" and x[1:] in job.inside and e.alias_of(x) is None:
        raise CannotEmit(f"operand {x} of a contraction is computed inside the region")
    return e.buffer(x, role)


def _store_tile(e: Emitter, y: Buffer, operand: str, at: Coords) -> None:
    tile = e.emit(operand, at)
    e.b.store(y, at, e.b.cast(y.dtype, tile))


# ------------------------------------------------------------------ attention over the cache
def _attend_cache(job: Job, op: Op) -> list[Built]:
    if len(job.region.ops) > 1:
        raise CannotEmit("attention stands alone in its region")
    state = job.module.state_map()[op.operands[0][1:]]
    q, seq, pos, blocks, *extras = op.operands[1:]
    del seq, pos
    a = attention.Attention(
        int(op.attr("heads")), int(op.attr("kv_heads")), state.k_dim, state.v_dim, float(op.attr("scale")),  # type: ignore[call-overload,arg-type]
        int(op.attr("window") or 0), float(op.attr("softcap") or 0.0), bool(op.attr("sinks")), op.attr("bias") == "alibi",  # type: ignore[call-overload,arg-type]
    )  # fmt: skip
    variants = [(True, (Condition("Q", "<=", 1),)), (False, (Condition("Q", ">", 1),))]
    out = []
    for single, when in variants:
        e = job.emitter("attend")
        left = list(extras)
        sinks = e.buffer(left.pop(0), "sinks") if a.sinks else None
        slopes = e.buffer(left.pop(0), "slopes") if a.alibi else None
        kc = e.extra("k", "f32", ("slots", a.kv_heads, state.context, a.dim), f"{op.operands[0]}.k", state.k)
        vc = e.extra(
            "v", "f32", ("slots", a.kv_heads, state.context, a.v_dim), f"{op.operands[0]}.v", state.v
        )
        o = e.buffer("%" + op.result.name, "o")
        p = attention.Buffers(
            _contiguous(job, e, q, "q"), e.buffer(blocks, "blocks"), kc, vc, o, sinks, slopes
        )
        attention.build_attention(e.b, a, p, single)
        out.append(job.finish(e, when))
    return out


# ------------------------------------------------------------------ everything along rows
def _elementwise(job: Job) -> Built:
    """Pointwise, norms, quantization, moves, cache appends: a grid over the leading axes, chunks along the
    last."""
    e = job.emitter("_".join(dict.fromkeys(op.name for op in job.region.ops))[:48])
    appends = [op for op in job.region.ops if op.name == "cache_append"]
    targets = ["%" + o for o in job.region.outputs]
    shapes = [job.shape(t) for t in targets] + [job.shape(op.operands[k]) for op in appends for k in (1, 2)]
    if not shapes:
        raise CannotEmit("a region without results")
    for op in job.region.ops:
        if op.name in _ALONE:
            raise CannotEmit(f"op {op.name} has no form inside a fused kernel")
    grid = _grid(e, shapes)
    if appends and len(grid) == 1:
        grid += _head_axis(e, job.module.state_map()[appends[0].operands[0][1:]].heads, shapes)
    for t in targets:
        _rows(e, t, job.shape(t), grid)
    for op in appends:
        _append(job, e, op, grid)
    names = tuple(a.names[0] for a in grid)
    e.b.schedules.append(Schedule("*", (), (), names, " ".join(names)))
    return job.finish(e)


_ALONE = (
    "linear",
    "matmul",
    "attend",
    "attend_cache",
    "grouped_linear",
    "topk",
    "conv",
    "concat",
    "sort",
    "cumsum",
)


def _grid(e: Emitter, shapes: Sequence[tuple[object, ...]]) -> list[Affine]:
    """Grid axes over the leading dimensions that all shapes share; a lone vector is cut into chunks."""
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
    """A grid axis over KV heads, each with its query heads: one token gives work to as many threads."""
    if heads == 1 or not all(len(s) == 3 and isinstance(s[1], int) and s[1] % heads == 0 for s in shapes):
        return []
    return [e.b.grid("h", heads, 1)]


def _rows(e: Emitter, operand: str, shape: tuple[object, ...], grid: Sequence[Affine]) -> None:
    """Store one output: loops over the dimensions that the grid does not cover, then chunks of the last."""
    y = e.buffer(operand, f"y{len(e.args)}")
    if len(shape) == 1 and e.b.grids[0].step == 16:
        _store_tile(e, y, operand, (Span(grid[0], 16),))
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


def _share(e: Emitter, size: object, axis: int) -> int:
    """Entries of an axis that one instance of the grid handles."""
    extent = e.b.grids[axis].extent
    return int(size) // extent.as_int() if isinstance(size, int) and not extent.names and size else 1


def _row(e: Emitter, y: Buffer, operand: str, shape: tuple[object, ...], row: Coords) -> None:
    if isinstance(y.encoding, IntToken):
        _quantize_row(e, y, operand, row)
        return
    n = shape[-1]
    for at in _chunks(e, operand, n, row):
        if at is not None:
            _store_tile(e, y, operand, (*row, at))
    if _static_chunks(e, operand, n) is not None:
        return
    width = _width(e, operand, n)
    e.emit(operand, (*row, Span(Affine(), width)))  # statistics are made here, once per row, outside the loop
    with e.loop(e.fresh_var("c"), 0, affine_dim(n), width) as loop:
        _store_tile(e, y, operand, (*row, Span(loop.var, width)))
        loop.yield_()


def _width(e: Emitter, operand: str, n: object) -> int:
    if not isinstance(n, int):
        return WIDTH
    return math.gcd(n, WIDTH) if e.reads_packed(operand) else min(WIDTH, 1 << (n - 1).bit_length())


def _static_chunks(e: Emitter, operand: str, n: object) -> list[Span] | None:
    """Rotary embeddings need constant channel ranges inside one half: unrolled chunks."""
    ropes = [op for op in _behind(e, operand) if op.name == "rope"]
    if not ropes:
        return None
    half = rowwise.rope_dim(e, ropes[0]) // 2
    assert isinstance(n, int)
    cuts = sorted({0, half, min(2 * half, n), n})
    out: list[Span] = []
    for lo, hi in zip(cuts, cuts[1:], strict=False):
        while lo < hi:
            size = min(hi - lo, 32, 1 << ((hi - lo).bit_length() - 1))
            out.append(Span(Affine.of(lo), size))
            lo += size
    return out


def _chunks(e: Emitter, operand: str, n: object, row: Coords) -> list[Span]:
    return _static_chunks(e, operand, n) or []


def _behind(e: Emitter, operand: str) -> list[Op]:
    op = e.inside.get(operand[1:]) if operand[0] == "%" else None
    return [] if op is None else [op, *[o for x in op.operands for o in _behind(e, x)]]


def _quantize_row(e: Emitter, y: Buffer, operand: str, row: Coords) -> None:
    """int8 codes of one row with its scale and, per group, the first value of the consumer's accumulator."""
    encoding = y.encoding
    assert isinstance(encoding, IntToken)
    op = e.inside[operand[1:]]
    src = op.operands[0]
    n = rowwise.row_length(e, src)
    if encoding.block:
        _quantize_groups(e, y, encoding, src, n, row)
        return
    step = encoding.group or math.gcd(n, WIDTH)  # packed codes have no masks: chunks tile the row exactly
    kept = _kept(e, src, -(-n // WIDTH) * WIDTH)
    e.emit(src, (*row, Span(Affine(), WIDTH)))
    with e.loop(e.fresh_var("a"), 0, n, WIDTH, [e.b.const(0, "f32", (WIDTH,))]) as loop:
        v = e.emit(src, (*row, Span(loop.var, WIDTH)))
        if n % WIDTH:
            v = e.b.within(v, loop.var, 0, 0.0)
        if kept is not None:
            e.b.store(kept, (Span(loop.var, WIDTH),), v)
        loop.yield_(e.b.op("max", loop.carried[0], e.b.op("abs", v)))
    amax = e.b.reshape(e.b.reduce("max", loop.results[0], 0))
    inv = _inverse(e, amax, encoding)
    with e.loop(
        e.fresh_var("q"),
        0,
        n,
        step,
        [e.b.const(0, "i32", (step,))] if encoding.zero and not encoding.group else [],
    ) as loop:
        at = Span(loop.var, step)
        v = e.b.load(kept, at) if kept is not None else e.emit(src, (*row, at))
        code = _store_codes(e, y, v * inv, (*row, at))
        if encoding.zero and encoding.group:
            _store_sum(e, y, encoding, code, (*row, Span(loop.var, 1)))
        loop.yield_(*([loop.carried[0] + code] if loop.carried else []))
    if encoding.zero and not encoding.group:
        _store_sum(e, y, encoding, loop.results[0], (*row, Span(Affine(), 1)))
    _store_stream(e, y, "scale", (*row, At(Affine())), amax * (1.0 / encoding.top))


def _inverse(e: Emitter, amax: Tile, encoding: IntToken) -> Tile:
    return e.b.select(
        e.b.op("lt", e.b.const(0.0), amax), float(encoding.top) / e.b.op("max", amax, 1e-37), e.b.const(0.0)
    )


def _quantize_groups(e: Emitter, y: Buffer, encoding: IntToken, src: str, n: int, row: Coords) -> None:
    """Codes, scales and sums of one row, group by group; sums may be over shorter runs than scales."""
    block = encoding.block
    step = encoding.group if encoding.zero else block
    kept = _kept(e, src, block)
    e.emit(src, (*row, Span(Affine(), block)))  # statistics are made here, once per row, outside the loop
    with e.loop(e.fresh_var("g"), 0, n, block) as loop:
        v = e.emit(src, (*row, Span(loop.var, block)))
        if kept is not None:
            e.b.store(kept, (Span(Affine(), block),), v)
        amax = e.b.reshape(e.b.reduce("max", e.b.op("abs", v), 0))
        inv = _inverse(e, amax, encoding)
        _store_stream(e, y, "scale", (*row, Span(loop.var, 1)), e.b.reshape(amax * (1.0 / encoding.top), 1))
        for at in range(0, block, step):
            run = Span(loop.var + at, step)
            part = e.emit(src, (*row, run)) if kept is None else e.b.load(kept, Span(Affine.of(at), step))
            code = _store_codes(e, y, part * inv, (*row, run))
            if encoding.zero:
                _store_sum(e, y, encoding, code, (*row, Span(run.start, 1)))
        loop.yield_()


def _kept(e: Emitter, src: str, size: int) -> Buffer | None:
    """Room for what is computed in this kernel, so that its scale and its codes read it once; memory is read
    again."""
    inner = (
        src[0] == "%" and src[1:] in e.inside and e.inside[src[1:]].name not in ("reshape", "slice", "split")
    )
    return e.b.local(e.fresh_var("kept"), "f32", (size,)) if inner else None


def _store_codes(e: Emitter, y: Buffer, scaled: Tile, at: Coords) -> Tile:
    """The codes, stored, as i32."""
    code: Tile = e.b.cast("i32", scaled)
    _store_stream(e, y, "codes", at, e.b.cast("i8", code))
    return code


def _store_sum(e: Emitter, y: Buffer, encoding: IntToken, codes: Tile, at: Coords) -> None:
    _store_stream(e, y, "sums", at, e.b.reduce("add", codes, 0) * -encoding.zero)


def _store_stream(e: Emitter, y: Buffer, stream: str, at: Coords, value: Tile) -> None:
    e.b.store(replace(y, name=f"{y.name}.{stream}"), at, value)


# ------------------------------------------------------------------ cache
def _append(job: Job, e: Emitter, op: Op, grid: Sequence[Affine]) -> None:
    """Keys and values of one token to their slot and position."""
    state = job.module.state_map()[op.operands[0][1:]]
    _, k, v, seq, pos = op.operands
    token = At(grid[0])
    slot, place = e.emit(seq, (token,)).index(), e.emit(pos, (token,)).index()
    for operand, stream, encoding, dim in ((k, "k", state.k, state.k_dim), (v, "v", state.v, state.v_dim)):
        number = sum(b.name.startswith(f"cache_{stream}") for b in e.b.params)
        cache = e.extra(
            f"cache_{stream}{number or ''}",
            "f32",
            ("slots", state.heads, state.context, dim),
            f"{op.operands[0]}.{stream}",
            encoding,
        )
        dtype = encoding.record((1, 1, 16, 16)).streams[0].dtype
        values = replace(cache, name=f"{cache.name}.values")
        with _each_head(e, grid, state.heads) as head:
            for at in _static_chunks(e, operand, dim) or _even(dim):
                tile = e.emit(operand, (token, head, at))
                e.b.store(values, (At(slot), head, At(place), at), e.b.cast(dtype, tile), disjoint=True)


@contextmanager
def _each_head(e: Emitter, grid: Sequence[Affine], heads: int) -> Iterator[At]:
    """The instance's own KV head, or all of them in turn."""
    if len(grid) > 1:
        yield At(grid[1])
        return
    with e.loop(e.fresh_var("h"), 0, heads, 1) as loop:
        yield At(loop.var)
        loop.yield_()


def _even(n: int) -> list[Span]:
    out, lo = [], 0
    while lo < n:
        size = min(32, 1 << ((n - lo).bit_length() - 1))
        out.append(Span(Affine.of(lo), size))
        lo += size
    return out


_TEMPLATES: dict[str, Callable[[Job, Op], list[Built]]] = {
    "linear": _linear, "attend_cache": _attend_cache, "matmul": others.matmul, "grouped_linear": others.grouped_linear,
    "topk": others.topk, "concat": others.concat, "cumsum": others.cumsum, "gather_elements": others.gather_elements,
}  # fmt: skip
