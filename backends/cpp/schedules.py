"""Schedules for the CPU levels: sizes, staging, prefetch, parallel sums, and the axes that threads share.

In: a kernel, and what is known of it. Out: schedules, of which the first that fits is used. None changes a
result. What the options mean to the renderer:

* `foreseen=N`: in blocks of at most N rows, prefetches depend on the processor (`tw_ahead`);
* `epilogue=1`: operands of the epilogue are prefetched before the contraction begins;
* `sums=N`: if a loop has fewer than N independent integer sums, each is split, into at most N / 2;
* `parts=N`: threads share a call with few rows in N parts, or fewer if its grid has fewer blocks;
* `interior=1`: a loop in whose body every load is tested for the same is rendered a second time without
  those tests, for where they hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tilewright.backends.base import (
    CachedAttention,
    Contraction,
    Convolution,
    ExpertContraction,
    KernelUse,
    Work,
    numbered,
)
from tilewright.backends.cpp.window_schedules import convolution_schedules
from tilewright.ir.contraction_form import ContractionForm
from tilewright.ir.layout import PANEL
from tilewright.ir.tile.core import Buffer, Condition, Kernel, Schedule
from tilewright.ir.tile.memory import buffer_bytes
from tilewright.ir.types import BITS

Options = tuple[tuple[str, int], ...]
#: vector registers for accumulators, of 32
ACCUMULATORS = 24
#: for schedules that prefetch: only with one row does the processor decide. Blocks of several rows, and
#: groups decoded to floats, compute so much per line that every processor gains.
FORESEEN = (("foreseen", 1),)
#: for schedules of many rows: what the epilogue reads of each row is on lines of its own, which hardware
#: prefetchers do not predict, so it is prefetched before the contraction begins. With few rows it is in the
#: caches.
EPILOGUE = (("epilogue", 1),)
#: for integer contractions: the additions to one carried sum wait for each other, and integers have the same
#: sum in any order
SUMS = (("sums", 8),)
#: bytes of weights per part; threads take parts one after the other, so each must be worth the overhead
PART_BYTES = 1 << 16
#: parts of a call that reads a cache, whose blocks are few
CACHE_PARTS = 8
#: (loop, iterations ahead)
Prefetch = list[tuple[str, int]]
#: bytes of a column tile's weights that stay in a core's own cache while other data streams through it
NEAR = 512 << 10


def schedules(kernel: Kernel, use: KernelUse) -> tuple[Schedule, ...]:
    """The schedules for the kernel's `use.work`; for other kernels one whose threads share the whole grid,
    unless the template gave the kernel a schedule.
    """
    parts = _parts(kernel, use)
    options: Options = (("parts", parts),) if parts > 1 else ()
    if use.work is not None:
        return tuple(replace(s, options=(*s.options, *options)) for s in schedules_of(use.work, kernel))
    return () if kernel.schedules else (_whole_grid(kernel, {}, options),)


def schedules_of(work: Work, kernel: Kernel) -> tuple[Schedule, ...]:
    """The schedules of a contraction or of attention."""
    if isinstance(work, CachedAttention):
        return (_attention_schedule(work),)
    if isinstance(work, ExpertContraction):
        return _expert_schedules(kernel, work)
    if isinstance(work, Convolution):
        return convolution_schedules(work, kernel)
    return _contraction_schedules(work)


def _whole_grid(kernel: Kernel, sizes: Mapping[str, int], options: Options) -> Schedule:
    """Instances in the order of the grid, divided among threads."""
    names = tuple(a.var for a in kernel.grid)
    return Schedule("*", tuple(sorted(sizes.items())), (), names, " ".join(names), options=options)


def _expert_schedules(kernel: Kernel, work: ExpertContraction) -> tuple[Schedule, ...]:
    """Rows in blocks: as for one matrix, but nothing of it is staged or prefetched, since each block begins
    with another one."""
    if work.single:
        return (_whole_grid(kernel, _expert_sizes(work.w), SUMS),)
    one = Contraction(work.x, work.w, 1, work.k, work.width)
    return tuple(replace(s, stages=(), prefetch=(), options=SUMS) for s in _contraction_schedules(one))


def _expert_sizes(w: Buffer) -> dict[str, int]:
    form = w.contraction_form
    if form is not None and form.block:
        return {"BN": PANEL}
    return {"BN": PANEL, "BK": max(8, form.step) if form is not None else 8}


def _parts(kernel: Kernel, use: KernelUse) -> int:
    """Into how many parts a call with few rows is divided: enough for threads to finish at about the same
    time. A weight that a linear multiplies has rows of any number, and says nothing of that."""
    written = set(kernel.written())
    fixed = [b for b in kernel.params if b.name in use.weights and all(d.is_const for d in b.dims)]
    size = sum(buffer_bytes(b, [d.as_int() for d in b.dims]) for b in fixed)
    return max(size // PART_BYTES, CACHE_PARTS if set(use.caches) - written else 1)


def _attention_schedule(work: CachedAttention) -> Schedule:
    """Keys and values of the next slice are prefetched if there is only one row of queries, which is too
    little work to hide the latency of memory.
    """
    ahead = tuple((loop, work.slice_steps) for loop in work.loops) if work.single else ()
    return Schedule("*", (), (), ("n", "h"), "n h", (), ahead, FORESEEN if ahead else ())


def _contraction_schedules(c: Contraction) -> tuple[Schedule, ...]:
    """The register rule is at most 24 accumulators of 32 (f32 carries included); column tiles divide the
    padded width, so that no tile reads past the panels."""
    operand, form = c.x.operand_form, c.w.contraction_form
    if operand is not None:
        assert form is not None
        block = form.block or operand.block
        return _integer_schedules(form, block, _beside(c.w), c.parts, c.k, c.width)
    return _float_schedules(c.x, c.w, c.parts, c.k, c.width)


def _columns(width: int, most: int) -> int:
    """The widest column tile up to `most`, in whole panels, that divides the padded width."""
    panels = -(-width // PANEL)
    return PANEL * max(n for n in range(1, max(most // PANEL, 1) + 1) if panels % n == 0)


def _one(
    target: str, when: int, sizes: dict[str, int], stages: Sequence[tuple[str, str]] = (),
    prefetch: Sequence[tuple[str, int]] = (), foreseen: bool = True,
) -> Schedule:  # fmt: skip
    cond = (Condition("M", "<=", when),) if when else ()
    options = (*(FORESEEN if prefetch and foreseen else ()), *(() if when else EPILOGUE))
    return Schedule(
        target, tuple(sorted(sizes.items())), cond, ("j", "i"), "j", tuple(stages), tuple(prefetch), options
    )


def _staged(names: str, parts: int) -> list[tuple[str, str]]:
    return [(numbered(n, p), "j") for n in names for p in range(parts)]


def _integer_schedules(
    w: ContractionForm, block: int, beside: Prefetch, parts: int, k: int, width: int
) -> tuple[Schedule, ...]:
    """`block`: elements of K per scale, of the weights or the activations, whose dot is scaled separately; 0:
    the whole row."""
    wide = {} if block else {"BK": max(_divisor(k, 64), w.step)}
    run = math.lcm(w.step, block) if block else wide["BK"]
    ahead = [("g", max(1, AHEAD // run))] if block and not w.block else _ahead(w, run, beside)
    stage = _stages(w, parts, True) if w.block or not block else []
    decoded = (w.code_bits < 8 or w.unit_scale != 1) and not (wide and k % wide["BK"])
    small, rows, cols = max(2, 8 // parts), 6, _columns(width, max(16, 32 // parts))
    if w.terms and not w.block:  # an accumulator for each is carried
        small = rows = max(1, ACCUMULATORS // (parts * w.terms))
        cols = 16
    light = (
        len(w.code_streams) == 1 and w.unit_scale == 1
    )  # decoding is as fast as reading: for up to some rows it is repeated at every use
    out: list[Schedule] = []
    for level in ("avx512_bf16", "avx512_vnni", "avx512"):
        out.append(_one(level, 8 if light else 16, {"BM": small, "BN": 16, **wide}, (), ahead))
        if light:  # with more rows, prefetched data is in the caches; codes without decoding need no staging
            out.append(_one(level, 256 if decoded else 64, {"BM": rows, "BN": cols, **wide}, (), ahead))
        out.append(_one(level, 0, {"BM": rows, "BN": cols, **wide}, stage if decoded else (), ()))
    low = min(small, 2)
    out.append(_one("avx2", 4, {"BM": max(1, 2 * low // parts), "BN": 16, **wide}, (), ahead))
    out.append(
        _one("avx2", 0, {"BM": max(1, 3 * low // 2 // parts), "BN": 16, **wide}, stage if decoded else (), ())
    )
    out.append(_one("*", 0, {"BM": low, "BN": 16, **wide}))
    return tuple(replace(s, options=(*s.options, *SUMS)) for s in out)


def _float_schedules(x: Buffer, w: Buffer, parts: int, k: int, width: int) -> tuple[Schedule, ...]:
    e = w.contraction_form
    decode = w.encoding is None or w.encoding.element != x.dtype
    stage = _stages(e, parts, False) if e is not None else _staged("w", parts) if decode else []
    grouped = e is not None and bool(e.block)
    least = e.step if e is not None else 4
    narrow, wide = ({}, {}) if grouped else ({"BK": _step(w, k, 8, least)}, {"BK": _step(w, k, 32, least)})
    ahead = _ahead(e, e.step if grouped else wide["BK"], _beside(w)) if e is not None else [("k", 12)]
    near = [(name, n * wide["BK"] // narrow["BK"]) for name, n in ahead] if narrow else ahead
    if narrow and k % narrow["BK"]:  # a partial last step of k: nothing inside the loop can be staged
        stage = []
    small, cols = max(2, 8 // parts), _columns(width, max(16, 64 // parts))
    out: list[Schedule] = []
    tall = {"BM": 6, "BN": _columns(width, 32 // parts) if grouped else cols, **narrow}
    if not grouped and parts * cols * k * BITS[x.dtype] // 8 > NEAR:  # read again for every row tile
        tall |= {"BM": 8, "BN": _columns(width, max(16, 32 // parts))}
    single = {"BM": 1, "BN": _columns(width, max(16, 64 // parts)), **wide}
    for level in ("avx512_bf16", "avx512_vnni", "avx512"):
        if decode:  # float sums have a fixed order: several columns at once hide the latency of each
            out.append(_one(level, 1, single, (), ahead, not grouped))
        if decode or grouped:
            out.append(
                _one(level, 16 if decode else 8, {"BM": small, "BN": 16, **wide}, (), ahead, not grouped)
            )
        else:  # long steps of k pay for one row or two; with more, they are mostly text for the compiler
            out.append(_one(level, 2, {"BM": min(small, 2), "BN": 16, **wide}, (), ahead))
            out.append(_one(level, 8, {"BM": small, "BN": 16, **narrow}, (), near))
        out.append(_one(level, 0, tall, stage, ()))
    out.append(_one("avx2", 0, {"BM": max(1, 4 // parts), "BN": 16, **narrow}, stage, ()))
    out.append(_one("*", 0, {"BM": 2, "BN": 16, **narrow}))
    return tuple(out)


#: elements of K between a prefetch and the use of its data
AHEAD = 384


def _ahead(w: ContractionForm, run: int, beside: Prefetch) -> Prefetch:
    """Prefetch distances for the loop over K, an iteration of which covers `run` elements, or for the loop
    over blocks of blocks, and for the loops over side streams.
    """
    if w.outer:
        return [("s", max(1, round(AHEAD / w.outer))), *beside]
    return [("g" if w.block else "k", max(1, AHEAD // run)), *beside]


def _beside(w: Buffer) -> Prefetch:
    return [p for side in w.sides for p in side.prefetch]


def _stages(w: ContractionForm, parts: int, integer: bool) -> list[tuple[str, str]]:
    """The values that are staged for all rows of a column tile: decoded units, scales, and offsets or zero
    points."""
    count = parts * (w.step // w.block) if w.block else parts
    if not w.block:
        return _staged("w", count * (max(w.terms, 1) if integer else 1))
    if w.terms and not integer:  # bits are looked up as they are stored
        return _staged("s", count * w.terms) + _staged("o", count)
    beside = "o" if w.has_offset or w.has_zeros and not integer else "z" if w.has_zeros else ""
    return _staged("ws", count * max(w.terms, 1)) + _staged(beside, count)


def _step(w: Buffer, k: int, most: int, least: int) -> int:
    """Elements of K per iteration. Dense panels end with K, or with the last two of it for half precision,
    and have no masks: their steps divide it."""
    step = max(_divisor(k, most), least)
    if w.encoding is None or not w.encoding.element or k % step == 0:
        return step
    grain = 32 // BITS[w.encoding.element]
    whole = -(-k // grain) * grain
    return next(s for s in range(most, 0, -1) if whole % s == 0 and s % grain == 0)


def _divisor(k: int, most: int) -> int:
    """The largest power of two up to `most` that divides k (at least 4; the last step is partial)."""
    size = most
    while size > 4 and k % size:
        size //= 2
    return size
