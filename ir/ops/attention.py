"""Sequence ops: attend (as captured, and over flat tokens), rope; what attention over a cache means too.

The reference semantics of attention are in one function, `attend_rows`, in float64: scaled scores, soft cap,
bias, mask, sink, softmax, values. The ops differ only in which key positions exist. A row that may attend to
no position gives zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.ops.base import Array, Attrs, AttrSpec, AxisRole, OpDef, register_op
from tilewright.ir.ops.common import (
    BOOL,
    Roles,
    Types,
    dense,
    get_float,
    get_int,
    int_attr,
    product,
    require,
    require_float,
    require_int,
    require_rank,
    require_shape,
    rounded,
    same_dim,
    wide,
)  # fmt: skip
from tilewright.ir.types import TensorType, as_dim

F64 = NDArray[np.float64]
BIASES, MASKS = ("none", "alibi", "tensor"), ("none", "padding", "tensor")


# ------------------------------------------------------------------ the meaning
@dataclass(frozen=True)
class Rules:
    """What attention may add to softmax(scale q k^T) v. `sinks`, `slopes`: [H]; `bias`: additive, [H|1, Q,
    K]."""

    scale: float
    softcap: float = 0.0
    causal: bool = True
    window: int = 0
    sinks: F64 | None = None
    slopes: F64 | None = None

    def of_heads(self, heads: NDArray[np.intp]) -> Rules:
        """The same for some of the query heads."""
        sinks, slopes = (None if x is None else x[heads] for x in (self.sinks, self.slopes))
        return replace(self, sinks=sinks, slopes=slopes)


def rules_of(at: Attrs, extras: dict[str, Array]) -> Rules:
    sinks, slopes = (wide(extras[k]) if k in extras else None for k in ("sinks", "slopes"))
    causal = bool(at.get("causal", True))
    return Rules(
        get_float(at, "scale"), get_float(at, "softcap"), causal, get_int(at, "window"), sinks, slopes
    )


def attend_rows(
    q: Array,
    k: Array,
    v: Array,
    qpos: NDArray[Any],
    kpos: NDArray[Any],
    rules: Rules,
    bias: F64 | None = None,
    keep: Array | None = None,
) -> tuple[F64, F64]:
    """Attention of one sequence: q [Q, H, D], k [K, HK, D], v [K, HK, DV] at positions qpos, kpos -> [H, Q,
    DV], and the logarithm of each row's sum of exponentials, [H, Q], the sink included. `bias` [H|1, Q, K] is
    added to scores, `keep` (bool, broadcast to [H, Q, K]): False excludes a key."""
    if not k.size:
        lse = np.full((q.shape[1], q.shape[0]), -np.inf)
        return np.zeros((q.shape[1], q.shape[0], v.shape[2])), lse
    s = scores_of_rows(q, k, qpos, kpos, rules, bias, keep)
    values = np.repeat(wide(v), q.shape[1] // v.shape[1], axis=1).transpose(1, 0, 2)
    weights, lse = _weigh(s, rules.sinks)
    return weights @ values.astype(np.float64), lse


def scores_of_rows(
    q: Array,
    k: Array,
    qpos: NDArray[Any],
    kpos: NDArray[Any],
    rules: Rules,
    bias: F64 | None = None,
    keep: Array | None = None,
) -> F64:
    """The scores [H, Q, K] of which attention takes the softmax; -inf where a key is excluded."""
    group = q.shape[1] // k.shape[1]
    keys = np.repeat(wide(k), group, axis=1).transpose(1, 0, 2)
    s: F64 = wide(q).transpose(1, 0, 2) @ keys.transpose(0, 2, 1) * rules.scale
    if rules.softcap:
        s = rules.softcap * np.tanh(s / rules.softcap)
    gap = qpos[:, None].astype(np.int64) - kpos[None, :].astype(np.int64)
    if rules.slopes is not None:
        s = s - rules.slopes[:, None, None] * gap
    if bias is not None:
        s = s + bias
    allowed = np.broadcast_to(_allowed(gap, rules) if keep is None else _allowed(gap, rules) & keep, s.shape)
    return np.where(allowed, s, -np.inf)


def _allowed(gap: NDArray[np.int64], rules: Rules) -> NDArray[np.bool_]:
    ok = gap >= 0 if rules.causal else np.ones(gap.shape, bool)
    return ok & (gap < rules.window) if rules.window else ok


def _weigh(s: F64, sinks: F64 | None) -> tuple[F64, F64]:
    """Softmax over the last axis, with a sink in the denominator only, and the logarithm of the denominator;
    a row of -inf gets zero weights."""
    top = s.max(-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    top = np.where(np.isneginf(top), 0.0, top)
    e = np.exp(s - top)
    total = e.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - top)
    with np.errstate(divide="ignore"):
        lse = np.log(total) + top
    return e / np.where(total == 0, 1.0, total), lse[..., 0]


# ------------------------------------------------------------------ attend
def extra_names(at: Attrs) -> list[str]:
    """Operands after q, k, v, in order."""
    out = ["sinks"] if at["sinks"] else []
    out += {"none": [], "alibi": ["slopes"], "tensor": ["bias"]}[str(at["bias"])]
    if at.get("mask", "none") != "none":
        out.append("padding" if at["mask"] == "padding" else "mask")
    return out + (["seq", "pos"] if at.get("flat") else [])


def _infer_attend(types: Types, at: Attrs) -> Sequence[TensorType]:
    q, k, v = types[:3]
    flat = bool(at["flat"])
    rank = 3 if flat else 4
    require(
        at["bias"] in BIASES and at["mask"] in MASKS,
        "attend",
        f"bias of {BIASES} and mask of {MASKS}",
        dict(at),
    )
    require(
        not flat or at["mask"] == "none" and at["bias"] != "tensor",
        "attend",
        "no mask or bias tensor with flat tokens",
        dict(at),
    )
    require(at["layout"] == "bshd", "attend", "layout bshd", at["layout"])
    names = extra_names(at)
    require(
        len(types) == 3 + len(names),
        "attend",
        f"operands q, k, v, {', '.join(names)}",
        f"{len(types)} operands",
    )
    for t, what in ((q, "q"), (k, "k"), (v, "v")):
        require_rank("attend", t, rank, what)
        require_float("attend", t)
    _check_heads("attend", q, k, v, at)
    require_shape("attend", v, (*k.shape[:-1], v.shape[-1]), "v")
    for name, t in zip(names, types[3:], strict=True):
        check_extra(name, t, q, k, at)
    return [dense(q, shape=(*q.shape[:-1], v.shape[-1]))]


def _check_heads(op: str, q: TensorType, k: TensorType, v: TensorType, at: Attrs) -> None:
    h, hk = get_int(at, "heads"), get_int(at, "kv_heads")
    require(hk > 0 and h % hk == 0, op, "heads divisible by kv_heads", f"{h} and {hk}")
    require(same_dim(q.shape[-2], h), op, f"{h} heads in q", q)
    require(
        same_dim(k.shape[-2], hk) and same_dim(k.shape[-1], q.shape[-1]),
        op,
        f"k of {hk} heads with the head size of q",
        k,
    )
    require(q.shape[:-3] == k.shape[:-3], op, "the same batch for q and k", [q, k])


def check_extra(name: str, t: TensorType, q: TensorType, k: TensorType, at: Attrs) -> None:
    if name in ("sinks", "slopes"):
        require_shape("attend", t, (get_int(at, "heads"),), name)
    elif name in ("seq", "pos"):
        require_int("attend", t, name)
        require_shape("attend", t, q.shape[:1], name)
    elif name == "padding":
        require(t.dtype == "bool", "attend", "a bool padding mask", t)
        require_shape("attend", t, (k.shape[0], k.shape[1]), "a padding mask")
    else:
        ok = t.rank == 4 and t.shape[0] in (1, q.shape[0]) and t.shape[1] in (1, get_int(at, "heads"))
        require(ok, "attend", f"a {name} [B|1, H|1, S, S2]", t)
        require_shape("attend", t, (*t.shape[:2], q.shape[1], k.shape[1]), f"a {name}")


def _attend(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    q, k, v = args[:3]
    extras = dict(zip(extra_names(at), args[3:], strict=True))
    rules = rules_of(at, extras)
    if at["flat"]:
        return rounded(_attend_flat(q, k, v, extras["seq"], extras["pos"], rules), results[0])
    qpos, kpos = np.arange(q.shape[1]), np.arange(k.shape[1])
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for b in range(q.shape[0]):
        bias, keep = _batch_extras(extras, b)
        out[b] = attend_rows(q[b], k[b], v[b], qpos, kpos, rules, bias, keep)[0].transpose(1, 0, 2)
    return rounded(out, results[0])


def _batch_extras(extras: dict[str, Array], b: int) -> tuple[F64 | None, Array | None]:
    bias: F64 | None = None
    keep: Array | None = None
    for name in ("bias", "mask"):
        if name in extras:
            x = extras[name][min(b, len(extras[name]) - 1)]
            if x.dtype == np.bool_:
                keep = x if keep is None else keep & x
            else:
                bias = wide(x) if bias is None else bias + wide(x)
    if "padding" in extras:
        keep = extras["padding"][b][None, None, :]
    return bias, keep


def _attend_flat(q: Array, k: Array, v: Array, seq: Array, pos: Array, rules: Rules) -> F64:
    out = np.zeros((*q.shape[:2], v.shape[2]))
    for s in np.unique(seq):
        rows = np.flatnonzero(seq == s)
        out[rows] = attend_rows(q[rows], k[rows], v[rows], pos[rows], pos[rows], rules)[0].transpose(1, 0, 2)
    return out


def _axes_attend(types: Types, at: Attrs) -> Roles:
    """The token axis of k and v is mixed (causally if so), head and value axes are kept (with grouped heads,
    the head axis is mixed)."""
    tokens = 0 if at["flat"] else 1
    word = "causal" if at["causal"] else "mix"
    lead: list[AxisRole] = [] if at["flat"] else [("keep", 0)]
    head: AxisRole = ("keep", tokens + 1) if at["heads"] == at["kv_heads"] else ("mix", tokens + 1)
    out: list[list[AxisRole]] = [
        [*lead, ("keep", tokens), ("keep", tokens + 1), ("reduce",)],
        [*lead, (word, tokens), head, ("reduce",)],
        [*lead, (word, tokens), head, ("keep", tokens + 2)],
    ]
    extra: dict[str, list[AxisRole]] = {
        "sinks": [("keep", tokens + 1)], "slopes": [("keep", tokens + 1)], "seq": [("mix", 0)],
        "pos": [("mix", 0)],
        "padding": [("keep", 0), ("mix", 1)],
    }  # fmt: skip
    for name, t in zip(extra_names(at), types[3:], strict=True):
        lead_roles: list[AxisRole] = [
            ("broadcast" if d == 1 else "keep", o) for d, o in zip(t.shape[:2], (0, 2), strict=False)
        ]
        out.append(extra.get(name) or [*lead_roles, ("keep", 1), ("mix", 1)])
    return out


def _cost_attend(types: Types, at: Attrs) -> object:
    q, k, v = types[:3]
    return as_dim(2 * product(q.shape[:-1]) * k.shape[-3] * (q.shape[-1] + v.shape[-1]))


def _taken_attend(types: Types, at: Attrs, result: int) -> tuple[int, Array]:
    """Query heads that share a KV head read the same values."""
    heads, kv_heads = get_int(at, "heads"), get_int(at, "kv_heads")
    return types[2].rank - 2, np.arange(kv_heads).repeat(heads // kv_heads)


CORE = {
    "heads": int_attr(), "kv_heads": int_attr(), "scale": AttrSpec("float"), "window": int_attr(0),
    "softcap": AttrSpec("float", 0.0), "sinks": BOOL, "bias": AttrSpec("str", "none"),
}  # fmt: skip
register_op(OpDef(
    "attend", ("q", "k", "v", "extras*"),
    {**CORE, "causal": BOOL, "mask": AttrSpec("str", "none"), "layout": AttrSpec("str", "bshd"),
    "flat": BOOL},
    _infer_attend, _attend, _axes_attend, _cost_attend, linear=((2,),), taken=_taken_attend,
))  # fmt: skip


# ------------------------------------------------------------------ rope
def _infer_rope(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, cos, sin = types
    require_float("rope", *types)
    require(x.rank >= 3, "rope", "x [..., S, H, D]", x)
    dim = get_int(at, "dim") or x.shape[-1]
    require(
        isinstance(dim, int) and dim % 2 == 0 and (not isinstance(x.shape[-1], int) or dim <= x.shape[-1]),
        "rope",
        "an even dim of at most x's last axis",
        f"dim {dim}",
    )
    for t in (cos, sin):
        ok = (
            2 <= t.rank <= x.rank - 1
            and same_dim(t.shape[-1], as_dim(dim) // 2)
            and same_dim(t.shape[-2], x.shape[-3])
        )
        ok = ok and all(
            a == 1 or same_dim(a, b) for a, b in zip(t.shape[-3::-1], x.shape[-4::-1], strict=False)
        )
        require(ok, "rope", f"cos and sin [..., {x.shape[-3]}, {dim // 2}] for x {x.dtype}{list(x.shape)}", t)
    return [dense(x)]


def _rope(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x, cos, sin = wide(args[0]), wide(args[1])[..., None, :], wide(args[2])[..., None, :]
    dim = get_int(at, "dim") or x.shape[-1]
    head, tail = x[..., :dim], x[..., dim:]
    a, b = (
        (head[..., 0::2], head[..., 1::2])
        if at["interleaved"]
        else (head[..., : dim // 2], head[..., dim // 2 :])
    )
    ra, rb = a * cos - b * sin, b * cos + a * sin
    turned = np.stack([ra, rb], -1).reshape(head.shape) if at["interleaved"] else np.concatenate([ra, rb], -1)
    return rounded(np.concatenate([turned, tail], -1), results[0])


def _axes_rope(types: Types, at: Attrs) -> Roles:
    last = types[0].rank - 1
    x: list[AxisRole] = [*(("keep", d) for d in range(last)), ("mix", last)]
    angles: list[AxisRole] = [
        *(("keep", last - types[1].rank + d) for d in range(types[1].rank - 1)),
        ("mix", last),
    ]
    return [x, angles, angles]


register_op(OpDef(
    "rope", ("x", "cos", "sin"), {"interleaved": BOOL, "dim": int_attr(0)}, _infer_rope, _rope, _axes_rope,
    lambda types, at: as_dim(3 * product(types[0].shape)), linear=((0,),),
    doc="rotates the first `dim` channels of the last axis (0: all); cos, sin: [..., S, dim/2], broadcast "
        "over heads",
))  # fmt: skip
