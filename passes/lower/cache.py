"""Keys and values: rows appended to a cache, and attention over it.

In: a region. Out: kernels over the states of the module. Slots and positions are tensors that the kernels
load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import CacheStream, Op, State
from tilewright.ir.selection import Selection
from tilewright.ir.tile.core import At, Buffer, Condition, Span
from tilewright.passes.lower.attention import Attention, Buffers, Carry, Recent, build_attention
from tilewright.passes.lower.block_choice import Chosen, Scored, Tokens, build_choice, build_scores
from tilewright.passes.lower.dims import CannotEmit
from tilewright.passes.lower.emit import Emitter
from tilewright.passes.lower.encode import EmittedRow, store_row
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.listed_rows import Listed
from tilewright.passes.lower.observation import Observed, build_observation
from tilewright.passes.lower.record import Form, Lowering, register_lowering
from tilewright.passes.lower.shared_prefix import Prefix, build_prefix

#: what the ops that choose blocks call their last operands
_TOKENS = ("seq", "pos", "choices")


def _attend_cache(job: Job, op: Op) -> list[Built]:
    """Also of `attend_blocks`, which has one operand more."""
    job.alone(op)
    state = job.module.state_map()[op.operands[0][1:]]
    q, _seq, _pos, blocks, *extras = op.operands[1:]
    choices = extras.pop(0) if op.name == "attend_blocks" else None
    a = _attention(op, state)
    variants = [(True, (Condition("Q", "<=", 1),)), (False, (Condition("Q", ">", 1),))]
    out = []
    for single, when in variants:
        e = job.emitter("attend")
        left = list(extras)
        sinks = e.buffer(left.pop(0), "sinks") if a.sinks else None
        slopes = e.buffer(left.pop(0), "slopes") if a.alibi else None
        kc, vc = (_parameter(e, op, s) for s in (state.keys, state.values))
        home = _parameter(e, op, state.stream("home"))
        lse = e.buffer("%" + op.results[1].name, "lse") if op.attr("lse") else None
        o = e.buffer("%" + op.results[0].name, "o")
        p = Buffers(
            e.in_memory(q, "q"), e.buffer(blocks, "blocks"), kc, vc, home, o, sinks, slopes, lse,
            *_held(e, op, a), _carry(e, op) if state.shares and single else None,
            _listed(e, op, choices) if choices else None, _recent(e, op),
        )  # fmt: skip
        work = build_attention(e.b, a, p, single)
        out.append(job.finish(e, when, work))
    return out


def _attention(op: Op, state: State) -> Attention:
    known = dict(op.attrs)
    return Attention(
        int(op.attr("heads")),  # type: ignore[call-overload]
        int(op.attr("kv_heads")),  # type: ignore[call-overload]
        state.k_dim,
        state.v_dim,
        float(op.attr("scale")),  # type: ignore[arg-type]
        int(known.get("window") or 0),  # type: ignore[call-overload]
        float(op.attr("softcap") or 0.0),  # type: ignore[arg-type]
        "sinks" in known and bool(op.attr("sinks")),
        "bias" in known and op.attr("bias") == "alibi",
    )


def _held(e: Emitter, op: Op, a: Attention) -> tuple[Buffer | None, Buffer | None]:
    """Of a cache that loses rows: how many each head has lost, and positions, where scores depend on them."""
    state = e.module.state_map()[op.operands[0][1:]]
    if not state.evicts:
        return None, None
    gone = _parameter(e, op, state.stream("gone"))
    return gone, _parameter(e, op, state.stream("pos")) if a.window or a.alibi else None


def _recent(e: Emitter, op: Op) -> Recent | None:
    state = e.module.state_map()[op.operands[0][1:]]
    if not state.recent:
        return None
    k, v = (_parameter(e, op, state.stream(f"recent_{side}")) for side in "kv")
    return Recent(k, v, state.recent)


def _carry(e: Emitter, op: Op) -> Carry:
    state = e.module.state_map()[op.operands[0][1:]]
    return Carry(_parameter(e, op, state.stream("skip")), _parameter(e, op, state.stream("carry")))


def _listed(e: Emitter, op: Op, choices: str) -> Listed:
    state = e.module.state_map()[op.operands[0][1:]]
    runs, rows = (_parameter(e, op, state.stream(name)) for name in ("runs", "list"))
    return Listed(e.buffer(choices, "choices"), runs, rows)


def _tokens(e: Emitter, op: Op, state: State) -> Tokens:
    """The last three operands of the ops that choose blocks."""
    seq, pos, choices = (e.buffer(o, n) for o, n in zip(op.operands[-3:], _TOKENS, strict=True))
    return Tokens(seq, pos, choices, _parameter(e, op, state.stream("gone")) if state.evicts else None)


def _score_blocks(job: Job, op: Op) -> list[Built]:
    job.alone(op)
    state = job.module.state_map()[op.operands[0][1:]]
    a = Attention(int(op.attr("heads")), state.heads, state.k_dim, state.v_dim, 1.0)  # type: ignore[call-overload]
    e = job.emitter("score_blocks")
    q, tokens = e.in_memory(op.operands[1], "q"), _tokens(e, op, state)
    held = (_parameter(e, op, state.stream(n)) for n in ("k", "home", "summary", "seen", "worth"))
    build_scores(e.b, a, _selection(state), Scored(q, tokens, *held))
    return [job.finish(e)]


def _choose_blocks(job: Job, op: Op) -> list[Built]:
    job.alone(op)
    state, e = job.module.state_map()[op.operands[0][1:]], job.emitter("choose_blocks")
    tokens = _tokens(e, op, state)
    held = (_parameter(e, op, state.stream(n)) for n in ("worth", "list", "runs"))
    build_choice(e.b, state.heads, _selection(state), Chosen(tokens, *held))
    return [job.finish(e)]


def _selection(state: State) -> Selection:
    if state.select is None:
        raise CannotEmit(f"@{state.name} selects no blocks")
    return state.select


def _attend_prefix(job: Job, op: Op) -> list[Built]:
    job.alone(op)
    state = job.module.state_map()[op.operands[0][1:]]
    q, seq, groups = op.operands[1:]
    a, e = _attention(op, state), job.emitter("attend_prefix")
    kc, vc, home = (_parameter(e, op, s) for s in (state.keys, state.values, state.stream("home")))
    held = e.in_memory(q, "q"), e.buffer(seq, "seq"), e.buffer(groups, "groups")
    work = build_prefix(e.b, a, Prefix(*held, kc, vc, home, _carry(e, op)))
    return [job.finish(e, (), work)]


def _observe_cache(job: Job, op: Op) -> list[Built]:
    job.alone(op)
    state = job.module.state_map()[op.operands[0][1:]]
    q, lse, runs, *slopes = op.operands[1:]
    a, e = _attention(op, state), job.emitter("observe")
    p = Observed(
        e.in_memory(q, "q"), e.in_memory(lse, "lse"), e.buffer(runs, "runs"), _parameter(e, op, state.keys),
        _parameter(e, op, state.stream("home")), _parameter(e, op, state.stream("score")),
        e.buffer(slopes[0], "slopes") if slopes else None, *_held(e, op, a),
    )  # fmt: skip
    build_observation(e.b, a, p)
    return [job.finish(e)]


def _append(job: Job, e: Emitter, op: Op, grid: Sequence[Affine]) -> None:
    """Store keys and values of one token at its slot and position."""
    state = job.module.state_map()[op.operands[0][1:]]
    _, k, v, seq, pos = op.operands
    token = At(grid[0])
    slot, place = e.emit(seq, (token,)).index(), e.emit(pos, (token,)).index()
    stored = [(k, state.keys), (v, state.values)]
    if state.recent:
        stored += [(k, state.stream("recent_k")), (v, state.stream("recent_v"))]
    for operand, stream in stored:
        cache = _parameter(e, op, stream, "cache_")
        with _each_head(e, grid, state.heads) as head:
            to = (At(slot), head, At(_row(e, op, state, slot, head, place)))
            store_row(EmittedRow(e, operand, (token, head), cache, to, disjoint=True), cache)
    if state.evicts:
        _append_position(e, op, state, slot, place, grid)


def _append_position(
    e: Emitter, op: Op, state: State, slot: Affine, place: Affine, grid: Sequence[Affine]
) -> None:
    """State where the row comes from, and that nothing has looked at it yet."""
    stored = [(state.stream("pos"), e.b.reshape(e.b.index_value(place), 1))]
    if state.observed:
        stored.append((state.stream("score"), e.b.const(0, "f32", (1,))))
    for stream, value in stored:
        cache = _parameter(e, op, stream, "cache_")
        with _each_head(e, grid, state.heads) as head:
            row = _row(e, op, state, slot, head, place)
            e.b.store(cache, (At(slot), head, Span(row, 1)), value, disjoint=True)


def _row(e: Emitter, op: Op, state: State, slot: Affine, head: At, position: Affine) -> Affine:
    """The row in which a head holds a position: those that it has lost are before it."""
    if not state.evicts:
        return position
    gone = _parameter(e, op, state.stream("gone"), "cache_")
    return position - e.b.load(gone, At(slot), head).index()


def _parameter(e: Emitter, op: Op, stream: CacheStream, prefix: str = "") -> Buffer:
    """A tensor of the op's state as a parameter of the kernel."""
    base = f"{prefix}{stream.name}"
    number = sum(b.name.startswith(base) for b in e.b.params)
    dtype = "f32" if stream.encoding is not None else stream.dtype
    arg = f"{op.operands[0]}.{stream.name}"
    name = f"{base}{number or ''}"
    return e.extra(name, dtype, ("slots", *stream.shape), arg, stream.encoding)


@contextmanager
def _each_head(e: Emitter, grid: Sequence[Affine], heads: int) -> Iterator[At]:
    """The KV head of this instance, or a loop over all heads."""
    if len(grid) > 1:
        yield At(grid[1])
        return
    with e.loop(e.fresh_var("h"), 0, heads, 1) as loop:
        yield At(loop.var)
        loop.yield_()


register_lowering(Lowering("attend_cache", Form.ATTENTION, template=_attend_cache, whole=(1,)))
register_lowering(Lowering("attend_blocks", Form.ATTENTION, template=_attend_cache, whole=(1,)))
register_lowering(Lowering("score_blocks", Form.ATTENTION, template=_score_blocks, whole=(1,)))
register_lowering(Lowering("choose_blocks", Form.ATTENTION, template=_choose_blocks))
register_lowering(Lowering("attend_prefix", Form.ATTENTION, template=_attend_prefix, whole=(1,)))
register_lowering(Lowering("observe_cache", Form.ATTENTION, template=_observe_cache, whole=(1, 2)))
register_lowering(Lowering("cache_append", Form.APPEND, effect=_append, rows=(1, 2), siblings=True))
