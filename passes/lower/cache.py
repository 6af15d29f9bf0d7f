"""Keys and values: rows appended to a cache, and attention over it.

In: a region. Out: kernels over the states of the module. Slots and positions are tensors that the kernels
load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.core import At, Condition
from tilewright.passes.lower.attention import Attention, Buffers, build_attention
from tilewright.passes.lower.dims import CannotEmit
from tilewright.passes.lower.emit import Emitter
from tilewright.passes.lower.encode import EmittedRow, store_row
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, register_lowering


def _attend_cache(job: Job, op: Op) -> list[Built]:
    if len(job.region.ops) > 1:
        raise CannotEmit("attention must be the only op of its region")
    state = job.module.state_map()[op.operands[0][1:]]
    q, seq, pos, blocks, *extras = op.operands[1:]
    del seq, pos
    a = Attention(
        int(op.attr("heads")),  # type: ignore[call-overload]
        int(op.attr("kv_heads")),  # type: ignore[call-overload]
        state.k_dim,
        state.v_dim,
        float(op.attr("scale")),  # type: ignore[arg-type]
        int(op.attr("window") or 0),  # type: ignore[call-overload]
        float(op.attr("softcap") or 0.0),  # type: ignore[arg-type]
        bool(op.attr("sinks")),
        op.attr("bias") == "alibi",
    )
    variants = [(True, (Condition("Q", "<=", 1),)), (False, (Condition("Q", ">", 1),))]
    out = []
    for single, when in variants:
        e = job.emitter("attend")
        left = list(extras)
        sinks = e.buffer(left.pop(0), "sinks") if a.sinks else None
        slopes = e.buffer(left.pop(0), "slopes") if a.alibi else None
        kc, vc = (
            e.extra(
                s.name,
                "f32",
                ("slots", a.kv_heads, state.context, s.width),
                f"{op.operands[0]}.{s.name}",
                s.encoding,
            )
            for s in state.streams
        )
        o = e.buffer("%" + op.result.name, "o")
        p = Buffers(e.in_memory(q, "q"), e.buffer(blocks, "blocks"), kc, vc, o, sinks, slopes)
        work = build_attention(e.b, a, p, single)
        out.append(job.finish(e, when, work))
    return out


def _append(job: Job, e: Emitter, op: Op, grid: Sequence[Affine]) -> None:
    """Store keys and values of one token at its slot and position."""
    state = job.module.state_map()[op.operands[0][1:]]
    _, k, v, seq, pos = op.operands
    token = At(grid[0])
    slot, place = e.emit(seq, (token,)).index(), e.emit(pos, (token,)).index()
    for operand, stream in zip((k, v), state.streams, strict=True):
        number = sum(b.name.startswith(f"cache_{stream.name}") for b in e.b.params)
        cache = e.extra(
            f"cache_{stream.name}{number or ''}",
            "f32",
            ("slots", state.heads, state.context, stream.width),
            f"{op.operands[0]}.{stream.name}",
            stream.encoding,
        )
        with _each_head(e, grid, state.heads) as head:
            to = (At(slot), head, At(place))
            store_row(EmittedRow(e, operand, (token, head), cache, to, disjoint=True), cache)


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
register_lowering(Lowering("cache_append", Form.APPEND, effect=_append, rows=(1, 2), siblings=True))
