"""Attention in integers: products of codes on both sides, where an encoding has a form for them.

Queries become int8, with a scale per row; keys and values stay as they are stored. The weights of a slice
become u8, relative to the largest of the slice, once the scales of the values are multiplied into them.
Integers have the same sum in any order, and everything that is rounded belongs to one row of queries and one
slice, so results do not depend on how a step is divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.ir.affine import Affine
from tilewright.ir.contraction_form import ContractionForm
from tilewright.ir.plan.step import SLICE
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import Buffer, Span
from tilewright.passes.lower.cached_rows import CHUNK, CachedRows

#: channels of keys that one iteration multiplies, four in an instruction: enough to keep the processor busy
CHANNELS = 32
#: the largest code of a query and of a weight
TOP_QUERY, TOP_WEIGHT = 127, 255
#: what a largest magnitude of zero is taken for
TINY = 1e-30


# ------------------------------------------------------------------ queries and keys
@dataclass(frozen=True)
class IntegerQueries:
    """Rows of queries: `codes`, a local i8 [m, dim]; `scale` f32 [m, 1]; `sums` of codes i32 [m, 1], by block
    of channels."""

    codes: Buffer
    scale: Tile
    sums: tuple[Tile, ...]


def integer_queries(b: KernelBuilder, form: ContractionForm, q: Tile, scale: float) -> IntegerQueries:
    """`q` [m, dim] in int8; `scale` is the factor of scores."""
    m, dim = (int(n) for n in q.shape)
    largest = b.op("max", b.reduce("max", b.op("abs", q), 1), TINY)
    codes = b.local("codes", "i8", (m, dim))
    b.store(codes, (slice(0, m), slice(0, dim)), b.cast("i8", b.cast("i32", q * (TOP_QUERY / largest))))
    block = form.block or dim
    parts = [b.load(codes, slice(0, m), slice(d, block)) for d in range(0, dim, block)]
    sums = tuple(b.reduce("add", b.cast("i32", x), 1) for x in parts)
    return IntegerQueries(codes, largest * (scale / TOP_QUERY), sums)


def integer_scores(b: KernelBuilder, keys: CachedRows, q: IntegerQueries, first: Affine) -> Tile:
    """Scores [m, CHUNK] of the positions from `first` on."""
    m, rows, total = q.codes.dims[0].as_int(), Span(first, CHUNK), None
    for channels, sums in zip(keys.blocks, q.sums, strict=True):
        get = keys.reader(rows, channels)
        zeros = keys.zeros(get)
        less = sums * -(keys.form.zero or 0) if zeros is None else sums * b.op("neg", zeros)
        start = less + b.const(0, "i32", (m, CHUNK))
        dot = b.cast("f32", _products(b, keys, q, start, rows, channels))
        scale = keys.scale(get)
        total = dot * scale if total is None else b.op("fma", dot, scale, total)
    assert total is not None
    return total * q.scale


def _products(
    b: KernelBuilder, keys: CachedRows, q: IntegerQueries, start: Tile, rows: Span, channels: Span
) -> Tile:
    """i32 [m, CHUNK]: `start` plus products over the channels; of many, in a loop."""
    m, width = q.codes.dims[0].as_int(), int(channels.size)
    step = CHANNELS if width % CHANNELS == 0 and CHANNELS % keys.form.step == 0 else width

    def dot(acc: Tile, at: Span) -> Tile:
        codes = b.transpose(keys.form.integers(b, keys.reader(rows, at)))
        return b.dot(acc, b.load(q.codes, slice(0, m), at), codes)

    if step == width:
        return dot(start, channels)
    with b.loop("d", 0, width, step, [start]) as loop:
        loop.yield_(dot(loop.carried[0], Span(channels.start + loop.var, step)))
    return loop.results[0]


# ------------------------------------------------------------------ weights and values
@dataclass(frozen=True)
class IntegerWeights:
    """The weights of one slice, by block of channels of the values: their codes; the factor of their
    products, f32 [m, 1]; where the sum of products starts, i32 [m, 1]."""

    codes: tuple[Buffer, ...]
    factors: tuple[Tile, ...]
    starts: tuple[Tile, ...]


@dataclass(frozen=True)
class WeightMemory:
    """Locals [m, SLICE]: exponentials f32, and u8 codes for every block of channels."""

    exps: Buffer
    codes: tuple[Buffer, ...]


def weight_memory(b: KernelBuilder, values: CachedRows, m: int) -> WeightMemory:
    exps = b.local("exps", "f32", (m, SLICE))
    return WeightMemory(
        exps, tuple(b.local(f"probs{k or ''}", "u8", (m, SLICE)) for k in range(len(values.blocks)))
    )


def integer_weights(
    b: KernelBuilder, values: CachedRows, scores: Buffer, memory: WeightMemory, top: Tile, c: Affine,
    n: Affine, first: int | Affine,
) -> tuple[Tile, IntegerWeights]:  # fmt: skip
    """From the scores of `n` positions from `c` on, without those before `first`: [m, CHUNK], sums of
    exp(score - top) over chunks, and the weights."""
    totals, peaks = _peaks(b, values, scores, memory.exps, top, c, n, first)
    factors = tuple(p * (1.0 / TOP_WEIGHT) for p in peaks)
    starts = _round(b, values, memory, [TOP_WEIGHT / b.op("max", p, TINY) for p in peaks], c, n, first)
    return totals, IntegerWeights(memory.codes, factors, starts)


def _peaks(
    b: KernelBuilder, values: CachedRows, scores: Buffer, exps: Buffer, top: Tile, c: Affine, n: Affine,
    first: int | Affine,
) -> tuple[Tile, list[Tile]]:  # fmt: skip
    """Store the exponentials of scores. Returns sums over chunks, [m, CHUNK], and per block of channels
    the largest exponential times scale, [m, 1]."""
    m = scores.dims[0].as_int()
    with b.loop("e", first, n, CHUNK, [b.const(0, "f32", (m, CHUNK)) for _ in (0, *values.blocks)]) as phase:
        here = (slice(0, m), slice(phase.var, CHUNK))
        e = b.op("exp", b.load(scores, *here) - top)
        b.store(exps, here, e)
        total, *found = phase.carried
        scaled = [e * s for s in _scales(values, c, phase.var)]
        phase.yield_(total + e, *(b.op("max", f, x) for f, x in zip(found, scaled, strict=True)))
    return phase.results[0], [b.reduce("max", x, 1) for x in phase.results[1:]]


def _round(
    b: KernelBuilder, values: CachedRows, memory: WeightMemory, units: Sequence[Tile], c: Affine, n: Affine,
    first: int | Affine,
) -> tuple[Tile, ...]:  # fmt: skip
    """Store exponentials times scales, in `units`, as codes; returns minus the sums of codes times zero
    points."""
    m = memory.exps.dims[0].as_int()
    counted = values.form.has_zeros or _zero(values) != 0
    init = [b.const(0, "i32", (m, CHUNK)) for _ in units] if counted else []
    with b.loop("w", first, n, CHUNK, init) as phase:
        here = (slice(0, m), slice(phase.var, CHUNK))
        e, sums = b.load(memory.exps, *here), []
        for k, scale in enumerate(_scales(values, c, phase.var)):
            code = b.cast("i32", e * (scale * units[k]))
            b.store(memory.codes[k], here, b.cast("u8", code))
            if counted:
                zeros = values.zeros(values.reader(Span(c + phase.var, CHUNK), values.blocks[k]))
                sums.append(phase.carried[k] + (code if zeros is None else code * (zeros - _wide(values))))
        phase.yield_(*sums)
    if not counted:
        return tuple(b.const(0, "i32", (m, 1)) for _ in units)
    times = -1 if values.form.has_zeros else -_zero(values)
    return tuple(b.reduce("add", s, 1) * times for s in phase.results)


def _scales(values: CachedRows, c: Affine, u: Affine) -> list[Tile]:
    """Scales of CHUNK rows, [1, CHUNK] by block; 0 beyond the slice, where memory may hold NaN."""
    b, rows = values.b, Span(c + u, CHUNK)
    return [b.within(values.scale(values.reader(rows, x)), u, 1, 0.0) for x in values.blocks]


def _wide(values: CachedRows) -> int:
    """What is subtracted from codes so that they are signed."""
    return 128 if values.form.code_bits == 8 else 0


def _zero(values: CachedRows) -> int:
    """The zero point that all rows share, of signed codes."""
    return (values.form.zero or 0) - _wide(values)


def integer_products(
    b: KernelBuilder, values: CachedRows, w: IntegerWeights, loop: str, channels: Span, c: Affine, n: Affine,
    first: int | Affine,
) -> Tile:  # fmt: skip
    """f32 [m, channels]: the slice's weighted values."""
    block = channels.start.as_int() // int(values.blocks[0].size)
    m, width = w.codes[block].dims[0].as_int(), int(channels.size)
    with b.loop(loop, first, n, CHUNK, [w.starts[block] + b.const(0, "i32", (m, width))]) as phase:
        codes = values.form.integers(b, values.reader(Span(c + phase.var, CHUNK), channels))
        signed = b.bitcast("i8", codes - _wide(values) if _wide(values) else codes)
        part = b.load(w.codes[block], slice(0, m), slice(phase.var, CHUNK))
        phase.yield_(b.dot(phase.carried[0], part, signed))
    return b.cast("f32", phase.results[0]) * w.factors[block]
