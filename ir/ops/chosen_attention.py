"""Ops by which attention reads only some blocks of a cache: score them, choose some, attend to those.

A step's table `choices` says for each token how many blocks its attention may read; 0: all rows, as
`attend_cache`. A token with a budget is the only one of its sequence in the step. What blocks and scores are
is said by the state (`ir.selection`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilewright.ir.ops.attention import CORE, attend_rows, extra_names, rules_of
from tilewright.ir.ops.base import Array, Attrs, OpDef, register_op
from tilewright.ir.ops.cached_attention import axes_of_cached, cost_of_cached, infer_cached
from tilewright.ir.ops.common import (
    BOOL,
    Roles,
    Types,
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
from tilewright.ir.plan.step import CHOICE_COLUMNS
from tilewright.ir.selection import chosen_blocks
from tilewright.ir.types import TensorType, as_dim


def _check_tokens(op: str, q: TensorType, seq: TensorType, pos: TensorType, choices: TensorType) -> None:
    """One number or row for each of the tokens that are the first axis of q."""
    for t, what in ((seq, "seq"), (pos, "pos"), (choices, "choices")):
        require_int(op, t, what)
    for t, what in ((seq, "seq"), (pos, "pos")):
        require_shape(op, t, q.shape[:1], what)
    require_shape(op, choices, (*q.shape[:1], len(CHOICE_COLUMNS)), "choices")


def _budgets(choices: Array) -> list[tuple[int, list[int]]]:
    """The tokens that have a budget, with their rows of the table."""
    return [(t, row) for t, row in enumerate(np.asarray(choices).tolist()) if row[0] > 0]


# ------------------------------------------------------------------ scores
def _infer_score(types: Types, at: Attrs) -> Sequence[TensorType]:
    q, seq, pos, choices = types
    require_rank("score_blocks", q, 3, "q")
    require(same_dim(q.shape[1], get_int(at, "heads")), "score_blocks", f"{at['heads']} heads in q", q)
    _check_tokens("score_blocks", q, seq, pos, choices)
    return []


def _score(args: Sequence[Any], at: Attrs, results: Types) -> tuple[Array, ...]:
    cache, q, seq, pos, choices = args
    group = q.shape[1] // cache.state.heads
    for t, _ in _budgets(choices):
        for h in range(cache.state.heads):
            slot = int(seq[t])
            k, _, _ = cache.rows(slot, h, int(pos[t]) + 1)
            queries = np.asarray(q[t, h * group : (h + 1) * group], np.float64)
            cache.worth[slot, h] = cache.state.select.scores(queries, np.asarray(k[:, 0], np.float64))
    return ()


register_op(OpDef(
    "score_blocks", ("state", "q", "seq", "pos", "choices"), {"heads": int_attr(), "kv_heads": int_attr()},
    _infer_score, _score,
    lambda types, at: [[("mix", 0), ("mix", 1), ("reduce",)], *[[("mix", 0)]] * 2, [("mix", 0), ("reduce",)]],
    lambda types, at: as_dim(2 * product(types[0].shape)), state=True,
    doc="for tokens with a budget: a score for each whole block of the rows that their sequence holds, by "
        "the measure of the state; summaries of blocks that are whole now are made first",
))  # fmt: skip


# ------------------------------------------------------------------ the choice
def _infer_choose(types: Types, at: Attrs) -> Sequence[TensorType]:
    seq, pos, choices = types
    require_rank("choose_blocks", seq, 1, "seq")
    _check_tokens("choose_blocks", seq, seq, pos, choices)
    return []


def _choose(args: Sequence[Any], at: Attrs, results: Types) -> tuple[Array, ...]:
    cache, seq, pos, choices = args
    block = cache.state.select.block
    for t, (budget, first, last) in _budgets(choices):
        for h in range(cache.state.heads):
            slot = int(seq[t])
            n = len(cache.rows(slot, h, int(pos[t]) + 1)[0])
            taken = chosen_blocks(cache.worth[slot, h], -(-n // block), budget, first, last)
            cache.chosen[slot, h] = np.repeat(taken, block)[:n]
    return ()


register_op(OpDef(
    "choose_blocks", ("state", "seq", "pos", "choices"), {}, _infer_choose, _choose,
    lambda types, at: [*[[("mix", 0)]] * 2, [("mix", 0), ("reduce",)]],
    lambda types, at: as_dim(0), state=True,
    doc="for tokens with a budget: the blocks that attention reads, in each KV head the first and the last "
        "ones and those with the best scores, of equal scores the earlier; all if the budget covers them",
))  # fmt: skip


# ------------------------------------------------------------------ attention
def _infer_attend(types: Types, at: Attrs) -> Sequence[TensorType]:
    q, choices = types[0], types[4]
    _check_tokens("attend_blocks", q, types[1], types[2], choices)
    return infer_cached("attend_blocks", [*types[:4], *types[5:]], at)


def _attend(args: Sequence[Any], at: Attrs, results: Types) -> Array | tuple[Array, ...]:
    cache, q, seq, pos, _blocks, choices, *extras = args
    rules = rules_of(at, dict(zip(extra_names(at), extras, strict=True)))
    group = q.shape[1] // cache.state.heads
    out, lse = np.zeros((*q.shape[:2], cache.state.v_dim)), np.zeros(q.shape[:2])
    budget = np.asarray(choices)[:, 0] > 0
    for t in range(len(q)):
        for h in range(cache.state.heads):
            heads = np.arange(h * group, (h + 1) * group)
            k, v, kpos = cache.rows(int(seq[t]), h, int(pos[t]) + 1)
            keep = cache.chosen[int(seq[t]), h] if budget[t] else np.ones(len(k), bool)
            found, sums = attend_rows(
                q[t : t + 1, heads], k[keep], v[keep], pos[t : t + 1], kpos[keep], rules.of_heads(heads)
            )
            out[t, heads], lse[t, heads] = found[:, 0], sums[:, 0]
    if not at.get("lse"):
        return rounded(out, results[0])
    return rounded(out, results[0]), rounded(lse, results[1])


def _axes_attend(types: Types, at: Attrs) -> Roles:
    roles = list(axes_of_cached([*types[:4], *types[5:]], at))
    return [*roles[:4], [("keep", 0), ("reduce",)], *roles[4:]]


register_op(OpDef(
    "attend_blocks", ("state", "q", "seq", "pos", "blocks", "choices", "extras*"),
    {**CORE, "v_dim": int_attr(0), "lse": BOOL},
    _infer_attend, _attend, _axes_attend, cost_of_cached, state=True,
    doc="`attend_cache`, but tokens with a budget read only the blocks that `choose_blocks` chose for them",
))  # fmt: skip
