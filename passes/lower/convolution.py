"""Convolutions as tile programs: implicit GEMM over runs of neighbouring pixels, and depthwise ones.

An instance computes a run of pixels of one row of the result by a run of outputs. The loop over K is the loop
over the rows of the window, the columns of the window, and the channels: no patch is ever written to memory.
Pixels outside the image read as zeros.

In: a region around a convolution, whose image lies in memory; pointwise ops may follow. Out: one kernel, or
CannotEmit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.backends.base import Convolution
from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.layout import PANEL
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Buffer, Size, Span
from tilewright.passes.lower.dims import CannotEmit, affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, Matrix, register_lowering
from tilewright.passes.lower.reductions import neutral
from tilewright.passes.lower.windows import Image, Window, image_of

#: the longest step along K that is unrolled
STEP = 8
#: the longest run of K that is one step where no step divides it well
RUN = 32


def _conv(job: Job, op: Op) -> list[Built]:
    n, k = job.matrix(op.operands[1])
    groups = int(str(op.attr("groups")))
    if groups == n and k == math.prod(Window.of(op).window) and groups > 1:
        return [_depthwise(job, op)]
    return [_dense(job, op, groups)]


# ------------------------------------------------------------------ sums over channels
@dataclass(frozen=True)
class _Place:
    """The tile of one instance. `rows`: batch and the outer axes of space; `first`, `height`: its run of
    results; `group` of channels; `column`, `width`: its outputs."""

    rows: tuple[Affine, ...]
    first: Affine
    height: Size
    group: Affine
    column: Affine
    width: Size


def _dense(job: Job, op: Op, groups: int) -> Built:
    e, window = job.emitter("conv"), Window.of(op)
    image = image_of(e, op, window, vector=True)
    height: Size = "BM" if image is not None else 1
    image = image or image_of(e, op, window, vector=False)
    assert image is not None
    n, k = job.matrix(op.operands[1])
    each = n // groups
    w = e.in_memory(op.operands[1], "w")
    if groups > 1 and each % PANEL and w.encoding is not None:
        raise CannotEmit(f"{groups} groups of {each} outputs, which are not whole panels of {PANEL} rows")
    out = job.shape("%" + op.result.name)
    rows = _row_grid(e, out)
    group = e.b.grid("g", groups, 1) if groups > 1 else Affine()
    width: Size = "BN" if groups == 1 or not each % PANEL else math.gcd(each, PANEL)
    column = group * each + e.b.grid("j", each, width)
    first = e.b.grid("m", affine_dim(out[-2]), height)
    place = _Place(rows, first, height, group, column, width)
    acc = _accumulate(e, op, image, w, place, image.channels // groups)
    at: Coords = (*map(At, rows), Span(first, height), Span(column, width))
    _finish(job, e, op, at, acc)
    across = out[-2] if isinstance(out[-2], int) else 0
    return job.finish(e, work=Convolution(w, across if height == "BM" else 1, each, n * k))


def _row_grid(e: Emitter, out: Sequence[object]) -> tuple[Affine, ...]:
    """Grid axes over batch and all axes of space but the last."""
    return tuple(e.b.grid(f"y{n}" if n else "n", affine_dim(d), 1) for n, d in enumerate(out[:-2]))


def _accumulate(e: Emitter, op: Op, image: Image, w: Buffer, p: _Place, channels: int) -> Tile:
    """[height, width] sums over the window: a loop for each of its outer axes, its columns unrolled."""
    window = image.window
    outer, taps = window.window[:-1], window.window[-1]
    runs = window.runs(image.group > 1 and image.channels == channels)

    def columns(inside: tuple[Affine, ...], acc: Tile) -> Tile:
        rows, tap = _read_rows(window, p.rows, inside), _flat(outer, inside) * taps
        for start, count, pixel in runs:
            k = (tap + start) * channels
            acc = _run(e, image, w, p, rows, (pixel, p.group * channels, k, count * channels), acc)
        return acc

    zero = e.b.const(0, _wide(op.result.type.dtype), (p.height, p.width))
    return _over_rows(e, window, columns, zero)


def _over_rows(
    e: Emitter, window: Window, body: Callable[[tuple[Affine, ...], Tile], Tile], start: Tile
) -> Tile:
    """A loop over each axis of the window but the last: `body(place in the window, tile so far)`."""
    outer = window.window[:-1]

    def nest(inside: tuple[Affine, ...], acc: Tile) -> Tile:
        if len(inside) == len(outer):
            return body(inside, acc)
        with e.loop(f"r{len(inside)}", 0, outer[len(inside)], 1, [acc]) as loop:
            loop.yield_(nest((*inside, loop.var), loop.carried[0]))
        return loop.results[0]

    return nest((), start)


def _read_rows(window: Window, rows: Sequence[Affine], inside: Sequence[Affine]) -> tuple[Affine, ...]:
    """Batch and the outer axes of space of what a tap reads."""
    steps = zip(rows[1:], window.stride, inside, window.dilation, window.before, strict=False)
    return (rows[0], *(y * s + r * d - before for y, s, r, d, before in steps))


def _flat(sizes: Sequence[int], at: Sequence[Affine]) -> Affine:
    flat = Affine()
    for size, i in zip(sizes, at, strict=True):
        flat = flat * size + i
    return flat


def _run(
    e: Emitter, image: Image, w: Buffer, p: _Place, rows: Sequence[Affine],
    at: tuple[int, Affine, Affine, int], acc: Tile,
) -> Tile:  # fmt: skip
    """acc + a run of K: at = (pixel, first channel, first k, length)."""
    pixel, channel, k, length = at
    step = _step(length)

    def add(to: Tile, off: Affine) -> Tile:
        xs = image.pixels(e, rows, p.first, p.height, (pixel, channel + off, step), 0.0)
        ws = _weights(e, w, Span(p.column, p.width), Span(k + off, step))
        dtype = xs.dtype if xs.dtype == ws.dtype else to.dtype
        return e.b.dot(to, e.b.cast(dtype, xs), e.b.cast(dtype, ws))

    if step == length:
        return add(acc, Affine())
    with e.loop(e.fresh_var("k"), 0, length, step, [acc]) as loop:
        loop.yield_(add(loop.carried[0], loop.var))
    return loop.results[0]


def _step(length: int) -> int:
    """The step along a run of K, which divides it."""
    step = next(s for s in range(min(STEP, length), 0, -1) if length % s == 0)
    return length if step < min(STEP // 2, length) and length <= RUN else step


def _weights(e: Emitter, w: Buffer, rows: Span, k: Span) -> Tile:
    if w.encoding is None:
        return e.b.load(w, rows, k)
    tile: Tile = w.encoding.tile_read(e.b, w, (rows, k))
    return tile


def _wide(dtype: str) -> str:
    """The type of sums: half precision is added up in f32."""
    return "f32" if dtype in ("bf16", "f16") else dtype


def _finish(job: Job, e: Emitter, op: Op, at: Coords, acc: Tile) -> None:
    """The bias, if there is one; the result in its own type; what follows; stores."""
    if len(op.operands) > 2:
        acc = acc + e.b.cast(acc.dtype, e.emit(op.operands[2], (at[-1],)))
    job.store_results(e, op, at, e.b.cast(op.result.type.dtype, acc))


# ------------------------------------------------------------------ channel by channel
#: the emitter, a tile of what one tap reads, the tap's number, the channels, the tile so far
Combine = Callable[[Emitter, Tile, Affine, Span, Tile], Tile]


def _depthwise(job: Job, op: Op) -> Built:
    def add(e: Emitter, x: Tile, tap: Affine, channels: Span, acc: Tile) -> Tile:
        w = e.emit(op.operands[1], (channels, At(tap)))
        return e.b.op("fma", e.b.cast(acc.dtype, x), e.b.cast(acc.dtype, w), acc)

    return _by_channel(job, op, 0.0, 0.0, add)


def _pool(job: Job, op: Op) -> list[Built]:
    """The fill of what lies outside is the neutral element, with which the fold also begins."""
    fold = _FOLDS[op.name]
    fill = float(neutral(fold, op.result.type.dtype))

    def add(e: Emitter, x: Tile, tap: Affine, channels: Span, acc: Tile) -> Tile:
        return e.b.op(fold, acc, e.b.cast(acc.dtype, x))

    return [_by_channel(job, op, fill, fill, add)]


def _by_channel(job: Job, op: Op, fill: float, start: float, combine: Combine) -> Built:
    """Every channel by itself, in whole vectors: the rows of the window in loops, its columns unrolled."""
    e, window = job.emitter(op.name), Window.of(op)
    image = image_of(e, op, window, vector=True)
    height: Size = "BM" if image is not None else 1
    image = image or image_of(e, op, window, vector=False)
    assert image is not None
    out = job.shape("%" + op.result.name)
    rows = _row_grid(e, out)
    channels = Span(e.b.grid("j", image.channels, "BN"), "BN")
    first = e.b.grid("m", affine_dim(out[-2]), height)
    found = image

    def taps(inside: tuple[Affine, ...], acc: Tile) -> Tile:
        read, tap = _read_rows(window, rows, inside), _flat(window.window[:-1], inside) * window.window[-1]
        for t, _, pixel in window.runs(grouped=False):
            x = found.pixels(e, read, first, height, (pixel, channels.start, "BN"), fill)
            acc = combine(e, x, tap + t, channels, acc)
        return acc

    acc = _over_rows(e, window, taps, e.b.const(start, _wide(op.result.type.dtype), (height, "BN")))
    _finish(job, e, op, (*map(At, rows), Span(first, height), channels), acc)
    across = out[-2] if isinstance(out[-2], int) else 0
    return job.finish(e, work=Convolution(None, across if height == "BM" else 1, image.channels, 0))


#: the tile operation that combines two elements, by op
_FOLDS = {"max_pool": "max", "sum_pool": "add"}
register_lowering(
    Lowering("conv", Form.CONTRACTION, template=_conv, whole=(0,), matrix=Matrix(windows=True), epilogue=True)
)
for _name in _FOLDS:
    register_lowering(Lowering(_name, Form.CONTRACTION, template=_pool, whole=(0,), epilogue=True))
