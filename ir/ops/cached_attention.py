"""Ops over the KV cache: append, attend, observe what attention looked at, read a common beginning together.

The reference semantics of attention are those of `ir.ops.attention`; here key positions are the rows that a
cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.ops.attention import (
    CORE,
    attend_rows,
    check_extra,
    extra_names,
    rules_of,
    scores_of_rows,
)
from tilewright.ir.ops.base import CONTEXT, Array, Attrs, AxisRole, OpDef, register_op
from tilewright.ir.ops.common import (
    BOOL,
    Roles,
    Types,
    dense,
    get_int,
    int_attr,
    product,
    require,
    require_int,
    require_rank,
    require_shape,
    rounded,
    same_dim,
)
from tilewright.ir.plan.step import first_recent
from tilewright.ir.types import TensorType, as_dim, symbol


def _infer_append(types: Types, at: Attrs) -> Sequence[TensorType]:
    k, v, seq, pos = types
    for t, what in ((k, "k"), (v, "v")):
        require_rank("cache_append", t, 3, what)
    require(
        same_dim(k.shape[0], v.shape[0]) and same_dim(k.shape[1], v.shape[1]),
        "cache_append",
        "k and v with the same tokens and heads",
        [k, v],
    )
    for t, what in ((seq, "seq"), (pos, "pos")):
        require_int("cache_append", t, what)
        require_shape("cache_append", t, k.shape[:1], what)
    return []


def _append(args: Sequence[Any], at: Attrs, results: Types) -> tuple[Array, ...]:
    cache, k, v, seq, pos = args
    cache.append(k, v, seq, pos)
    return ()


def _axes_append(types: Types, at: Attrs) -> Roles:
    return [[("keep", d) for d in range(t.rank)] for t in types]


def _cost_append(types: Types, at: Attrs) -> object:
    """One conversion per element, whatever the cache's encoding."""
    return as_dim(product(types[0].shape) + product(types[1].shape))


register_op(OpDef(
    "cache_append", ("state", "k", "v", "seq", "pos"), {}, _infer_append, _append, _axes_append, _cost_append,
    state=True,
    doc="writes row t of k and v at slot seq[t], position pos[t]",
))  # fmt: skip


def infer_cached(op: str, types: Types, at: Attrs) -> Sequence[TensorType]:
    """The types of `attend_cache`, and of ops with the same operands and others beside them."""
    q, seq, pos, blocks = types[:4]
    names = extra_names(at)
    require(at["bias"] in ("none", "alibi"), op, "bias none or alibi", at["bias"])
    require(
        len(types) == 4 + len(names),
        op,
        f"operands q, seq, pos, blocks, {', '.join(names)}",
        f"{len(types)} operands",
    )
    require_rank(op, q, 3, "q")
    require(same_dim(q.shape[1], get_int(at, "heads")), op, f"{at['heads']} heads in q", q)
    for t, what in ((seq, "seq"), (pos, "pos"), (blocks, "blocks")):
        require_int(op, t, what)
    require_shape(op, seq, q.shape[:1], "seq")
    require_shape(op, pos, q.shape[:1], "pos")
    require(blocks.rank == 2 and same_dim(blocks.shape[1], 4), op, "blocks [NB, 4]", blocks)
    for name, t in zip(names, types[4:], strict=True):
        check_extra(name, t, q, q, at)
    out = dense(q, shape=(*q.shape[:2], get_int(at, "v_dim") or q.shape[2]))
    return [out, TensorType("f32", q.shape[:2])] if at.get("lse") else [out]


def _attend_cache(args: Sequence[Any], at: Attrs, results: Types) -> Array | tuple[Array, ...]:
    cache, q, seq, pos, _blocks = args[:5]
    rules = rules_of(at, dict(zip(extra_names(at), args[5:], strict=True)))
    out = np.zeros((*q.shape[:2], cache.state.v_dim))
    lse = np.zeros(q.shape[:2])
    for rows, heads, h in _by_head(seq, q, cache.state.heads):
        own = rules.of_heads(heads)
        k, v, kpos, keep = _held_rows(cache, int(seq[rows[0]]), h, pos[rows])
        found, sums = attend_rows(q[rows][:, heads], k, v, pos[rows], kpos, own, keep=keep)
        out[rows[:, None], heads], lse[rows[:, None], heads] = found.transpose(1, 0, 2), sums.T
    if not at.get("lse"):
        return rounded(out, results[0])
    return rounded(out, results[0]), rounded(lse, results[1])


def _held_rows(cache: Any, slot: int, head: int, qpos: Array) -> tuple[Array, Array, Array, Array | None]:
    """Keys, values and positions that queries at `qpos` may attend to. Where recent rows are kept, each row
    is there twice, as it is encoded and in bf16, and the last, [Q, K], says which of the two a query reads.
    """
    length = int(qpos.max()) + 1
    k, v, kpos = cache.rows(slot, head, length)
    if not cache.state.recent:
        return k, v, kpos, None
    late = kpos[None] >= first_recent(qpos, cache.state.recent)[:, None]
    both = zip((k, v), cache.recent_rows(slot, head, length), strict=True)
    keys, values = (np.concatenate(x) for x in both)
    return keys, values, np.concatenate([kpos, kpos]), np.concatenate([~late, late], 1)


def _by_head(seq: Array, q: Array, kv_heads: int) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], int]]:
    """For every sequence and KV head: the rows of its queries, their heads, the KV head."""
    group = q.shape[1] // kv_heads
    for s in np.unique(seq):
        for h in range(kv_heads):
            yield np.flatnonzero(seq == s), np.arange(h * group, (h + 1) * group), h


def axes_of_cached(types: Types, at: Attrs) -> Roles:
    """Keys are in the state; among the operands, no token depends on another."""
    head: list[AxisRole] = [("keep", 1)]
    out: list[list[AxisRole]] = [
        [("keep", 0), ("keep", 1), ("reduce",)],
        [("keep", 0)],
        [("keep", 0)],
        [("mix", 0), ("reduce",)],
    ]
    return out + [head for _ in types[4:]]


def cost_of_cached(types: Types, at: Attrs) -> object:
    """A multiplication and an addition per element of each key and value that a query reads: all positions,
    or those of the window."""
    import sympy

    q, window, positions = types[0], get_int(at, "window"), symbol(CONTEXT)
    read = sympy.Min(positions, window) if window else positions
    return as_dim(2 * product(q.shape[:2]) * read * (q.shape[2] + (get_int(at, "v_dim") or q.shape[2])))


register_op(OpDef(
    "attend_cache", ("state", "q", "seq", "pos", "blocks", "extras*"),
    {**CORE, "v_dim": int_attr(0), "lse": BOOL},
    lambda types, at: infer_cached("attend_cache", types, at), _attend_cache, axes_of_cached, cost_of_cached,
    state=True,
    doc="causal attention over slot seq[t] up to pos[t]; `blocks` is the query-block table, which never "
        "changes results; v_dim 0: as q; lse: also the logarithms of the softmax denominators, f32[T, H]",
))  # fmt: skip


# ------------------------------------------------------------------ what attention looked at
def _infer_observe(types: Types, at: Attrs) -> Sequence[TensorType]:
    q, lse, runs = types[:3]
    names = ["slopes"] if at["bias"] == "alibi" else []
    require(at["bias"] in ("none", "alibi"), "observe_cache", "bias none or alibi", at["bias"])
    require(len(types) == 3 + len(names), "observe_cache", f"operands q, lse, runs, {names}", len(types))
    require_rank("observe_cache", q, 3, "q")
    require(same_dim(q.shape[1], get_int(at, "heads")), "observe_cache", f"{at['heads']} heads in q", q)
    require_shape("observe_cache", lse, q.shape[:2], "lse")
    require_int("observe_cache", runs, "runs")
    require(runs.rank == 2 and same_dim(runs.shape[1], 4), "observe_cache", "runs [NR, 4]", runs)
    for t in types[3:]:
        require_shape("observe_cache", t, (get_int(at, "heads"),), "slopes")
    return []


def _observe(args: Sequence[Any], at: Attrs, results: Types) -> tuple[Array, ...]:
    cache, q, lse, runs, *slopes = args
    rules = rules_of({**at, "causal": True}, {"slopes": slopes[0]} if slopes else {})
    group = q.shape[1] // cache.state.heads
    for first, count, slot, at_pos in np.asarray(runs).tolist():
        rows, qpos = np.arange(first, first + count), np.arange(at_pos, at_pos + count)
        for h in range(cache.state.heads if count else 0):
            heads = np.arange(h * group, (h + 1) * group)
            k, _, kpos = cache.rows(slot, h, at_pos + count)
            s = scores_of_rows(q[rows][:, heads], k, qpos, kpos, rules.of_heads(heads))
            cache.observe(slot, h, np.exp(s - lse[rows][:, heads].T[..., None]).sum((0, 1)))
    return ()


def _axes_observe(types: Types, at: Attrs) -> Roles:
    """Nothing is returned; among the operands, no token depends on another."""
    out: list[list[AxisRole]] = [[("mix", 0), ("mix", 1), ("reduce",)], [("mix", 0), ("mix", 1)]]
    return [*out, [("mix", 0), ("reduce",)], *([("mix", 0)] for _ in types[3:])]


register_op(OpDef(
    "observe_cache", ("state", "q", "lse", "runs", "extras*"),
    {k: v for k, v in CORE.items() if k != "sinks"},
    _infer_observe, _observe, _axes_observe,
    lambda types, at: as_dim(2 * product(types[0].shape) * symbol(CONTEXT)), state=True,
    doc="adds to each cached row the softmax weights that the queries of `runs` give it, summed over queries "
        "and the query heads of its KV head; runs: first row, rows, sequence, first position",
))  # fmt: skip


# ------------------------------------------------------------------ what sequences have in common
def _infer_prefix(types: Types, at: Attrs) -> Sequence[TensorType]:
    q, seq, groups = types
    require_rank("attend_prefix", q, 3, "q")
    require(same_dim(q.shape[1], get_int(at, "heads")), "attend_prefix", f"{at['heads']} heads in q", q)
    for t, what in ((seq, "seq"), (groups, "groups")):
        require_int("attend_prefix", t, what)
    require_shape("attend_prefix", seq, q.shape[:1], "seq")
    require(groups.rank == 2 and same_dim(groups.shape[1], 4), "attend_prefix", "groups [NG, 4]", groups)
    return []


register_op(OpDef(
    "attend_prefix", ("state", "q", "seq", "groups"),
    {k: CORE[k] for k in ("heads", "kv_heads", "scale", "softcap")},
    _infer_prefix, lambda args, at, results: (),
    lambda types, at: [[("mix", 0), ("mix", 1), ("reduce",)], [("mix", 0)], [("mix", 0), ("reduce",)]],
    lambda types, at: as_dim(0), state=True,
    doc="attention of the step over the slices of 256 rows that the sequences of each group hold in common, "
        "from which attend_cache goes on; it changes no result; groups: first row, rows, sequence, slices",
))  # fmt: skip
