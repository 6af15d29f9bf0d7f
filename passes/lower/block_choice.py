"""Kernels that score the blocks of a cache for single tokens, and that list the rows which attention reads.

In: the tokens of a step with the table `choices`, the caches with the streams of a selection. Out: summaries
and scores of blocks; runs of chosen rows. One instance serves a token and a KV head, and does nothing for a
token without a budget. What is chosen is defined by `ir.selection`. Sources: "Quest: Query-Aware Sparsity for
Efficient Long-Context LLM Inference" (bounds); "Kinetics: Rethinking Test-Time Scaling Laws" (mean keys).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from tilewright.ir.affine import Affine
from tilewright.ir.plan.step import SLICE
from tilewright.ir.selection import HELD_AS, POOLS, Selection
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import At, Buffer, Pick, Span
from tilewright.passes.lower.attention import Attention
from tilewright.passes.lower.attention_phases import read_cache
from tilewright.passes.lower.cached_rows import CHUNK

#: channels that one iteration handles where they divide the width of a head
CHANNELS = 16
NEG, LEAST = -math.inf, -(1 << 31)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a step: seq[T], pos[T], choices[T, 3]; `gone`[slots, HK] of caches that lose rows."""

    seq: Buffer
    pos: Buffer
    choices: Buffer
    gone: Buffer | None = None


@dataclass(frozen=True)
class Instance:
    """One token and KV head: its sequence; how many rows it may read; whether it has a budget."""

    slot: Affine
    h: Affine
    rows: Tile
    budget: Tile
    first: Tile
    last: Tile

    @property
    def at(self) -> tuple[Affine, Affine]:
        return self.slot, self.h


def instance(b: KernelBuilder, t: Tokens, heads: int) -> Instance:
    """The grid over tokens and KV heads."""
    n, h = b.grid("t", t.seq.dims[0], 1), b.grid("h", heads, 1)
    slot, place = b.load(t.seq, n).index(), b.load(t.pos, n)
    rows = place + 1 if t.gone is None else place + 1 - b.load(t.gone, slot, h)
    return Instance(slot, h, rows, *(b.load(t.choices, n, c) for c in range(3)))


def _blocks(b: KernelBuilder, i: Instance, rows: Tile, block: int, most: int) -> Tile:
    """Whole blocks of `rows`, at most as many as there are; none without a budget."""
    whole = b.op("shr", b.op("max", rows, b.const(0, "i32")), b.const(block.bit_length() - 1, "i32"))
    none = b.const(0, "i32")
    return b.op("min", b.select(b.op("lt", none, i.budget), whole, none), b.const(most, "i32"))


def _if_chosen(b: KernelBuilder, i: Instance) -> Pick:
    """The KV head as an index at which only instances with a budget store."""
    one = b.index_value(i.h) + b.const(0, "i32", (1,))
    return Pick(b.select(b.op("lt", b.const(0, "i32"), i.budget), one, b.const(-1, "i32", (1,))).name)


# ------------------------------------------------------------------ scores
@dataclass(frozen=True)
class Scored:
    """Parameters: q[T, H, D] f32, the cache's k and home, and its streams summary, seen and worth."""

    q: Buffer
    tokens: Tokens
    k: Buffer
    home: Buffer
    summary: Buffer
    seen: Buffer
    worth: Buffer


def build_scores(b: KernelBuilder, a: Attention, select: Selection, p: Scored) -> None:
    """Emit the kernel that makes missing summaries, then a score for every whole block."""
    i, most = instance(b, p.tokens, a.kv_heads), p.worth.dims[2].as_int()
    blocks = _blocks(b, i, i.rows, select.block, most)
    seen = b.load(p.seen, *i.at)
    known = b.op("shr", b.op("max", seen, b.const(0, "i32")), b.const(select.block.bit_length() - 1, "i32"))
    with b.loop("j", known.index(), blocks.index(), 1) as loop:
        _summarise(b, a, select, p, i, loop.var)
        loop.yield_()
    done = blocks * select.block + b.const(0, "i32", (1,))
    b.store(p.seen, (At(i.slot), _if_chosen(b, i)), done, disjoint=True)
    _score(b, a, select, p, i, blocks)


def _summarise(b: KernelBuilder, a: Attention, select: Selection, p: Scored, i: Instance, j: Affine) -> None:
    """Store the summary of block j: extremes or the mean of its keys, CHANNELS at a time."""
    home = b.load(p.home, i.slot, b.op("shr", b.index_value(j * select.block), b.const(8, "i32")).index())
    step = _channels(a.dim)
    fns = select.formula.summary
    starts = {"add": 0.0, "max": NEG, "min": math.inf}
    with b.loop("d", 0, a.dim, step) as channels:
        init = [b.const(starts[fn], "f32", (step, CHUNK)) for fn in fns]
        with b.loop("u", 0, select.block, CHUNK, init) as loop:
            rows = Span(j * select.block + loop.var, CHUNK)
            keys = read_cache(b, p.k, (home.index(), i.h, rows, Span(channels.var, step)))
            x = b.transpose(b.cast("f32", keys))
            loop.yield_(*(b.op(fn, c, x) for fn, c in zip(fns, loop.carried, strict=True)))
        for n, (fn, x) in enumerate(zip(fns, loop.results, strict=True)):
            found = b.reshape(b.reduce(fn, x, 1), step)
            found = found * (1.0 / select.block) if fn == "add" else found
            to = (At(i.slot), At(i.h), At(j), Span(channels.var + n * a.dim, step))
            b.store(_values(p.summary), to, b.cast(HELD_AS, found), disjoint=True)
        channels.yield_()


def _score(b: KernelBuilder, a: Attention, select: Selection, p: Scored, i: Instance, blocks: Tile) -> None:
    """Store the scores of all whole blocks, CHUNK at a time, pooled over the query heads of the KV head."""
    pool = POOLS[select.pool]
    parts = [_queries(b, a, select, p, i, n) for n in range(a.group // a.heads_per_tile)]
    with b.loop("k", 0, blocks.index(), CHUNK) as loop:
        here = Span(loop.var, CHUNK)
        found = [_products(b, a, p.summary, (*i.at, here), part, f"c{n}") for n, part in enumerate(parts)]
        scores = [b.reshape(b.reduce(pool, x, 0), CHUNK) for x in found]
        total = scores[0]
        for x in scores[1:]:
            total = b.op(pool, total, x)
        b.store(p.worth, (At(i.slot), At(i.h), here), total, disjoint=True)
        loop.yield_()


def _products(
    b: KernelBuilder, a: Attention, summary: Buffer, at: tuple[object, ...], queries: list[Buffer], loop: str
) -> Tile:
    """[heads, CHUNK]: products of the vectors of queries with those of summaries at `at`."""
    step, gh = _channels(a.dim), a.heads_per_tile
    total = b.const(0, "f32", (gh, CHUNK))
    for n, vector in enumerate(queries):
        with b.loop(f"{loop}{'xy'[n]}", 0, a.dim, step, [total]) as channels:
            held = b.load(_values(summary), *at, Span(channels.var + n * a.dim, step))
            part = b.load(vector, slice(0, gh), Span(channels.var, step))
            channels.yield_(b.dot(channels.carried[0], part, held))
        total = channels.results[0]
    return total


def _queries(
    b: KernelBuilder, a: Attention, select: Selection, p: Scored, i: Instance, part: int
) -> list[Buffer]:
    """What the measure makes of the queries of some heads: a local [heads, D] for each vector of a
    summary."""
    gh = a.heads_per_tile
    heads = Span(i.h * a.group + part * gh, gh)
    x = b.reshape(b.load(p.q, Span(Affine.of("t"), 1), heads, Span(Affine(), a.dim)), gh, a.dim)
    out = []
    for n, (op, number) in enumerate(select.formula.query):
        out.append(b.local(f"queries{part}{'xy'[n]}", HELD_AS, (gh, a.dim)))
        b.store(out[n], (slice(0, gh), slice(0, a.dim)), b.cast(HELD_AS, b.op(op, x, number)))
    return out


def _values(summary: Buffer) -> Buffer:
    return replace(summary, name=f"{summary.name}.values")


def _channels(dim: int) -> int:
    return CHANNELS if dim % CHANNELS == 0 else dim


# ------------------------------------------------------------------ the choice
@dataclass(frozen=True)
class Chosen:
    """Parameters: the streams worth[slots, HK, B] f32, list[slots, HK, B, 2] and runs[slots, HK] i32."""

    tokens: Tokens
    worth: Buffer
    list: Buffer
    runs: Buffer


def build_choice(b: KernelBuilder, heads: int, select: Selection, p: Chosen) -> None:
    """Emit the kernel that lists the runs of chosen rows, slice by slice."""
    i, most = instance(b, p.tokens, heads), p.worth.dims[2].as_int()
    blocks = _blocks(b, i, i.rows + (select.block - 1), select.block, most)
    keys = b.local("keys", "i32", (-(-most // CHUNK) * CHUNK,))
    end = blocks - i.last
    with b.loop("j", 0, blocks.index(), CHUNK) as loop:
        at = b.iota(CHUNK) + b.index_value(loop.var)
        free = b.op("and", b.op("le", i.first, at), b.op("lt", at, end))
        ordered = _ordered(b, b.load(p.worth, *i.at, Span(loop.var, CHUNK)))
        b.store(keys, (slice(loop.var, CHUNK),), b.select(free, ordered, b.const(LEAST, "i32")))
        loop.yield_()
    rest = b.op("max", i.budget - i.first - i.last, b.const(0, "i32"))
    least = _threshold(b, keys, blocks, rest)
    ties = rest - _count(b, "a", keys, blocks, lambda x: b.op("lt", least, x))
    _list(b, p, i, select.block, keys, (blocks, end, least, ties))


def _ordered(b: KernelBuilder, x: Tile) -> Tile:
    """Floats as integers of the same order."""
    i = b.bitcast("i32", x)
    return b.op("xor", i, b.op("and", b.op("shr", i, b.const(31, "i32")), b.const((1 << 31) - 1, "i32")))


def _count(b: KernelBuilder, var: str, keys: Buffer, blocks: Tile, test: Callable[[Tile], Tile]) -> Tile:
    """How many keys satisfy a test."""
    with b.loop(var, 0, blocks.index(), CHUNK, [b.const(0, "i32", (CHUNK,))]) as loop:
        hit = test(b.load(keys, slice(loop.var, CHUNK)))
        loop.yield_(loop.carried[0] + b.select(hit, b.const(1, "i32", (CHUNK,)), b.const(0, "i32")))
    return b.reduce("add", loop.results[0], 0)


def _threshold(b: KernelBuilder, keys: Buffer, blocks: Tile, rest: Tile) -> Tile:
    """The largest number that at least `rest` keys reach, bit by bit from the sign on."""
    enough = b.op("le", rest, _count(b, "p", keys, blocks, lambda x: b.op("le", b.const(0, "i32"), x)))
    start = b.select(enough, b.const(0, "i32"), b.const(LEAST, "i32"))
    bits = b.op("min", blocks * 31, b.const(31, "i32"))
    with b.loop("bit", 0, bits.index(), 1, [start]) as loop:
        (low,) = loop.carried
        higher = low + b.op("shl", b.const(1, "i32"), b.index_value(Affine.of(30) - loop.var))
        enough = b.op("le", rest, _count(b, "q", keys, blocks, lambda x: b.op("le", higher, x)))
        loop.yield_(b.select(enough, higher, low))
    return loop.results[0]


def _list(
    b: KernelBuilder, p: Chosen, i: Instance, block: int, keys: Buffer, found: tuple[Tile, Tile, Tile, Tile]
) -> None:
    """Go through the blocks in order; a run ends with its slice. Of equal scores the first `ties` are
    taken."""
    blocks, end, least, ties = found
    one, none = b.const(1, "i32", (1,)), b.const(0, "i32", (1,))
    everything = b.op("le", blocks, i.budget)
    with b.loop("n", 0, blocks.index(), 1, [none, none, ties + none]) as loop:
        runs, before, left = loop.carried
        key, at = b.load(keys, slice(loop.var, 1)), b.index_value(loop.var)
        edge = b.op("or", b.op("lt", at, i.first), b.op("le", end, at))
        tie = b.op("and", b.op("eq", key, least), b.op("lt", none, left))
        take = b.op("or", b.op("or", everything, edge), b.op("or", b.op("lt", least, key), tie))
        new = b.op("eq", b.op("and", at, b.const(SLICE // block - 1, "i32")), none)
        new = b.op("and", take, b.op("or", new, b.op("eq", before, none)))
        runs = runs + b.select(new, one, none)
        for column, when, row in ((0, new, loop.var * block), (1, take, loop.var * block + block)):
            to = Pick(b.select(when, runs - 1, b.const(-1, "i32", (1,))).name)
            value = b.reshape(b.index_value(row) + none, 1, 1)
            b.store(p.list, (At(i.slot), At(i.h), to, Span(Affine.of(column), 1)), value, disjoint=True)
        loop.yield_(runs, b.select(take, one, none), left - b.select(tie, one, none))
    b.store(p.runs, (At(i.slot), _if_chosen(b, i)), loop.results[0], disjoint=True)
