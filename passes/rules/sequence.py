"""Rules of ops that depend on where a token stands: counting, lookups, attention and its cache.

In: ops of a graph over batch and sequence, or over flat tokens. Out: what they are in a step over the tokens
of many sequences.
"""

from __future__ import annotations

from typing import Any, cast

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Op, State
from tilewright.ir.ops.attention import extra_names
from tilewright.ir.ops.common import same_dim
from tilewright.passes.rules.moves import spread_scalar
from tilewright.passes.rules.record import (
    CachedForm,
    Caches,
    Canonical,
    FlatForm,
    OpRules,
    register_rules,
)
from tilewright.passes.tokens import Axes, Flattening, Mixes, stretches

#: attributes that attention over a sequence and over a cache share
_SHARED = ("heads", "kv_heads", "scale", "window", "softcap", "sinks", "bias")
#: state, queries, sequences and positions of the tokens of a step
Tokens = tuple[str, str, str, str]


# ------------------------------------------------------------------ values made for every token
def _flat_full(s: Flattening, op: Op) -> bool:
    if not stretches(s.axes, op.result.type):
        return False
    s.make(op, [], shape=s.axes.flat(op.result.type).shape)
    return True


def _counts_tokens(axes: Axes, op: Op) -> bool:
    """Whether an op counts along the sequence."""
    return same_dim(cast(int, op.attr("size")), axes.seq)


def _flat_iota(s: Flattening, op: Op) -> bool:
    """0, 1, 2, … along the sequence are the positions of its tokens."""
    if not _counts_tokens(s.axes, op):
        return False
    dtype, value = op.result.type.dtype, "%pos"
    if dtype != "i32":
        value = s.b.op("cast", value, dtype=dtype, loc=op.loc)
    for name, key, neutral in (("mul", "step", 1), ("add", "start", 0)):
        if op.attr(key) != neutral:
            number = s.b.op("const", value=op.attr(key), dtype=dtype, loc=op.loc)
            value = s.b.op(name, value, number, loc=op.loc)
    s.define(op, [value])
    return True


def _flat_length(s: Flattening, op: Op) -> bool:
    """A step sees part of a sequence: how long that will be, its caller knows."""
    if op.operands != ("%pos",) or "%pos" not in s.tokens:
        return False
    s.define(op, ["%length"])
    return True


# ------------------------------------------------------------------ lookups
def _flat_gather(s: Flattening, op: Op) -> bool:
    table, ids = op.operands
    if table in s.tokens:
        t, axis = s.old.type(table), cast(int, op.attr("axis"))
        if ids in s.tokens:
            raise Mixes("it indexes the token axis")
        s.make(op, [s.b.mapped(table), s.b.mapped(ids)], axis=s.axes.axis(t, axis))
        return True
    if ids not in s.tokens:
        return False
    if op.attr("axis") != 0:
        raise Mixes("it indexes an inner axis by token")
    s.make(op, [s.b.mapped(table), s.b.mapped(ids)])
    return True


# ------------------------------------------------------------------ attention
def _mask_that_shows_all(r: Canonical, op: Op) -> Op | None:
    """A mask that is true throughout, as one number that is spread out, masks nothing."""
    if op.attr("mask") == "none" or op.attr("flat"):
        return None
    shows_all = r.type(op.operands[-1]).dtype == "bool" and spread_scalar(r, op.operands[-1]) == 1.0
    return r.changed(op, op.operands[:-1], mask="none") if shows_all else None


def _flat_attend(s: Flattening, op: Op) -> bool:
    if not any(o in s.tokens for o in op.operands):
        return False
    if op.attr("mask") != "none":
        raise Mixes(f"attention with a {op.attr('mask')} mask")
    if op.attr("bias") == "tensor":
        raise Mixes("attention with a tensor bias")
    if any(o not in s.tokens for o in op.operands[:3]):
        raise Mixes("q, k or v has no token axis")
    s.make(op, [*(s.b.mapped(o) for o in op.operands), "%seq", "%pos"], flat=True)
    return True


def _not_causal(op: Op) -> str:
    return "" if op.attr("causal") else "attention reads later tokens, so it cannot run one token at a time"


def _attend_all(b: GraphBuilder, tokens: Tokens, extras: list[str], how: dict[str, Any]) -> tuple[str, ...]:
    return b.multi("attend_cache", *tokens, "%blocks", *extras, **how)


def _attend_blocks(
    b: GraphBuilder, tokens: Tokens, extras: list[str], how: dict[str, Any]
) -> tuple[str, ...]:
    """Attention in which tokens with a budget read what they choose."""
    state, q, seq, pos = tokens
    heads = {a: how[a] for a in ("heads", "kv_heads")}
    b.multi("score_blocks", state, q, seq, pos, "%choices", as_=[], **heads)
    b.multi("choose_blocks", state, seq, pos, "%choices", as_=[])
    return b.multi("attend_blocks", *tokens, "%blocks", "%choices", *extras, **how)


def _cached_attend(c: Caches, op: Op) -> None:
    """The step's keys and values to a cache, then attention over what the cache holds."""
    b, names = c.b, extra_names(dict(op.attrs))
    q, key, value, *extras = (b.mapped(o) for o in op.operands)
    given = dict(zip(names, extras, strict=True))
    seq, pos = given.pop("seq"), given.pop("pos")
    kv_heads, wide, v_dim = (cast(int, d) for d in (*b.type(key).shape[1:], b.type(value).shape[2]))
    window = cast(int, op.attr("window"))
    name = f"kv.{sum(s.startswith('kv.') for s in b.states)}"
    # windows end inside blocks and what sequences share, and slopes depend on each row's position
    plain = not window and op.attr("bias") == "none"
    select = c.select if plain else None
    together = cast(int, op.attr("heads")) if c.shares and plain and not select else 0
    kinds = c.evicts, c.observes, together, select, c.recent
    state = b.state(State(name, kv_heads, wide, v_dim, c.keys, c.values, c.length, window or None, *kinds))
    b.loc = op.loc
    b.multi("cache_append", state, key, value, seq, pos, as_=[])
    attrs: dict[str, Any] = {a: op.attr(a) for a in _SHARED}
    if together:
        shared = {a: attrs[a] for a in ("heads", "kv_heads", "scale", "softcap")}
        b.multi("attend_prefix", state, q, seq, "%groups", as_=[], **shared)
    tokens, how = (state, q, seq, pos), {**attrs, "v_dim": v_dim, "lse": c.observes}
    attend = _attend_blocks if select else _attend_all
    new, *sums = attend(b, tokens, list(given.values()), how)
    b.replace(f"%{op.result.name}", new)
    if c.observes:
        slopes = [given["slopes"]] if "slopes" in given else []
        del attrs["sinks"]
        b.multi("observe_cache", state, q, *sums, "%runs", *slopes, as_=[], **attrs)


for _rules in (
    OpRules("full", flat=FlatForm(_flat_full)),
    OpRules("iota", flat=FlatForm(_flat_iota, lambda axes, op: ("pos",) if _counts_tokens(axes, op) else ())),
    OpRules("sequence_length", flat=FlatForm(_flat_length, lambda axes, op: ("length",))),
    OpRules("gather", flat=FlatForm(_flat_gather)),
    OpRules(
        "attend",
        (_mask_that_shows_all,),
        flat=FlatForm(_flat_attend, lambda axes, op: ("pos", "seq")),
        cached=CachedForm(_not_causal, _cached_attend),
    ),
):
    register_rules(_rules)
