"""The rule for attention in elementary ops: matmul, scale, mask, softmax, matmul, repeated KV heads.

In: the matmul with the values. Out: an `attend` on [B, S, H, D]. The mask and bias are understood by
`recognise_masks`; one that depends on the run (padding, a bias made from inputs) is passed on as a tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilewright.ir.graph.core import Op
from tilewright.ir.ops.common import same_dim
from tilewright.passes.patterns import View
from tilewright.passes.recognise_masks import Meaning, Term, meaning
from tilewright.passes.recognise_norms import strip_casts
from tilewright.passes.rewrite import Declined, Rewrite

#: scores lower than this mean that a key is not seen
HIDDEN = -1e30


@dataclass
class Scores:
    """What lies between q k^T and softmax, outermost first: terms, the factor on the product, the soft cap;
    and the heads, where they are an axis of their own."""

    terms: list[Term] = field(default_factory=list)
    scale: float = 1.0
    softcap: float = 0.0
    product: Op | None = None
    heads: int | None = None

    def terms_below(self, v: View, operand: str) -> bool:
        """Whether a term is still to come below a factor, which would scale it too (masking itself is not
        changed)."""
        op = v.producer(strip_casts(v, operand), "add")
        return op is not None and self.scale != 1.0


def attention(r: Rewrite, at: Op) -> str | None:
    """softmax(scale q k^T + mask) v."""
    v = r.old
    weights, guard = _unguarded(v, at.operands[0])
    inner = _of_nothing(v, weights) if guard is None else None
    weights, safe = inner or weights, inner is not None
    soft = _through(v, weights, "softmax")
    if soft is None or at.attr("transpose_a") or at.attr("transpose_b"):
        return None
    if soft.attr("axis") != soft.result.type.rank - 1:
        raise Declined("softmax is not over the keys")
    s = Scores()
    _peel(v, soft.operands[0], s)
    if guard is not None and Term(guard, True) not in s.terms:
        raise Declined("weights are masked by something other than their scores")
    if s.product is None:
        raise Declined("the softmax's input is not a product of queries and keys")
    heads = _head_axis(soft) or _head_axis(at) or s.heads
    if heads is None:
        raise Declined("the number of heads is unknown: no value of shape [B, H, S, S]")
    q = _query(r, s.product, heads)
    k, kv_heads = _key_value(r, s.product.operands[1], heads, not s.product.attr("transpose_b"))
    value, v_heads = _key_value(r, at.operands[1], heads, False)
    most = max(kv_heads, v_heads)
    if most % kv_heads or most % v_heads:
        raise Declined(f"keys have {kv_heads} heads, values {v_heads}")
    k, value, kv_heads = _copied(r, k, most // kv_heads), _copied(r, value, most // v_heads), most
    if safe and any(t.keep is not None for t in s.terms):
        raise Declined("hidden scores are not -inf, which its softmax gives zeros for")
    out = _attend(r, s, q, k, value, heads, kv_heads, safe or guard is not None)
    turned = r.b.op("transpose", out, perm=(0, 2, 1, 3))
    shape = at.result.type.shape
    return turned if len(shape) == 4 else r.b.op("reshape", turned, shape=shape)


def _unguarded(v: View, operand: str) -> tuple[str, str | None]:
    """(weights, mask) of select(mask, weights, 0): where nothing is seen, attention gives zero anyway."""
    op = v.producer(strip_casts(v, operand), "select")
    if op is None or v.scalar(op.operands[2]) != 0.0:
        return operand, None
    return op.operands[1], op.operands[0]


def _of_nothing(v: View, operand: str) -> str | None:
    """softmax(s) of select(eq(max(s), -inf), 0, softmax(s)): zeros where every score is -inf, as PyTorch's
    attention has it. None: the operand is none."""
    op = v.producer(strip_casts(v, operand), "select")
    if op is None or v.scalar(op.operands[1]) != 0.0:
        return None
    same = v.producer(op.operands[0], "eq")
    soft, top = (
        v.producer(op.operands[2], "softmax"),
        v.producer(same.operands[0], "max_reduce") if same else None,
    )
    if same is None or soft is None or top is None or v.scalar(same.operands[1]) != -math.inf:
        return None
    last = (soft.result.type.rank - 1,)
    fits = top.operands == soft.operands and top.attr("axes") == last and soft.attr("axis") == last[0]
    return op.operands[2] if fits else None


def _attend(r: Rewrite, s: Scores, q: str, k: str, v: str, heads: int, kv_heads: int, guarded: bool) -> str:
    m, extras, attrs = Meaning(False, 0, None), list[str](), dict[str, Any]()
    try:
        m = meaning(r.old, s.terms)
    except Declined as why:
        if not guarded and r.b.meta.get("kind") == "plain":
            raise Declined(
                f"{why}; a query may have no visible key, for which the softmax does not give zeros"
            ) from why
        if not _as_tensors(r, s, extras, attrs):
            raise Declined(str(why)) from why
    if m.slopes is not None:
        slopes = np.broadcast_to(np.asarray(m.slopes, np.float32), (heads,))
        extras.append(r.b.inline(r.b.fresh("slopes", list(r.b.weights)), slopes))
        attrs["bias"] = "alibi"
    if s.softcap and m.slopes is not None:
        raise Declined("a soft cap before a bias is added")
    return r.b.op(
        "attend", q, k, v, *extras, heads=heads, kv_heads=kv_heads, scale=s.scale, softcap=s.softcap,
        causal=m.causal,
        window=m.window, **attrs,
    )  # fmt: skip


def _as_tensors(r: Rewrite, s: Scores, extras: list[str], attrs: dict[str, Any]) -> bool:
    """One term of rank 4 that depends on the run goes in as it is."""
    if len(s.terms) != 1 or r.old.type(s.terms[0].operand).rank != 4:
        return False
    (term,) = s.terms
    x = r.b.mapped(term.operand)
    shape = r.old.type(term.operand).shape
    want = (*shape[:2], r.old.type(_operand(s)).shape[-2], shape[-1])
    if not same_dim(shape[2], want[2]):
        x = r.b.op("expand", x, shape=want)
    if term.keep is None:
        attrs["bias"] = "tensor"
    else:
        attrs["mask"] = "tensor"
        x = x if term.keep else r.b.op("not", x)
    extras.append(x)
    return True


def _operand(s: Scores) -> str:
    assert s.product is not None
    return s.product.operands[0]


# ------------------------------------------------------------------ from softmax down to q k^T
def _through(v: View, operand: str, name: str) -> Op | None:
    """The op `name` behind casts, reshapes and expands that change nothing."""
    operand = strip_casts(v, operand)
    made = v.producer(operand, "reshape", "expand", name)
    while made is not None and made.name != name:
        made = v.producer(strip_casts(v, made.operands[0]), "reshape", "expand", name)
    return made


def _peel(v: View, operand: str, s: Scores) -> None:
    """Collect terms and factors on the way to the product; a factor counts only below every term."""
    operand = strip_casts(v, operand)
    op = v.producer(operand)
    while op is not None:
        s.heads = s.heads or _head_axis(op)
        if op.name == "matmul":
            s.product = op
            return
        operand = _step(v, op, s)
        operand = strip_casts(v, operand)
        op = v.producer(operand)


def _step(v: View, op: Op, s: Scores) -> str:
    if op.name == "reshape":
        return op.operands[0]
    if op.name in ("mul", "div"):
        return _factor(v, op, s)
    if s.softcap:
        raise Declined("a mask or bias inside the soft cap")
    if op.name == "add":
        a, b = op.operands
        other, scores = (a, b) if _has_product(v, b) else (b, a)
        s.terms.append(Term(other))
        return scores
    if op.name == "select":
        return _choice(v, op, s)
    if op.name == "max":  # keeps hidden scores finite
        for low, scores in (op.operands, op.operands[::-1]):
            if (value := v.scalar(low)) is not None and value < HIDDEN:
                return scores
    raise Declined(f"{op.name} between softmax and the product of queries and keys")


def _factor(v: View, op: Op, s: Scores) -> str:
    a, b = op.operands
    value, rest = (v.scalar(b), a) if v.scalar(b) is not None else (v.scalar(a), b)
    if value is None or op.name == "div" and rest == b:
        raise Declined(f"scores are scaled by {a if rest == b else b}, which is not a constant")
    if op.name == "mul" and (tanh := v.producer(strip_casts(v, rest), "tanh")) is not None:
        if s.softcap or s.scale != 1.0:
            raise Declined("capped scores are scaled or capped again")
        s.softcap = value
        inner = v.producer(strip_casts(v, tanh.operands[0]), "div", "mul")
        if inner is None:
            raise Declined("a soft cap that does not divide the scores")
        c = v.scalar(inner.operands[1])
        if c is None or abs((c if inner.name == "div" else 1 / c) - value) > 1e-6 * value:
            raise Declined("a soft cap with two different caps")
        return inner.operands[0]
    s.scale *= value if op.name == "mul" else 1.0 / value
    if s.terms_below(v, rest):
        raise Declined("a factor that scales scores and mask together")
    return rest


def _choice(v: View, op: Op, s: Scores) -> str:
    cond, a, b = op.operands
    low_a, low_b = v.scalar(a), v.scalar(b)
    if low_b is not None and low_b < HIDDEN:
        s.terms.append(Term(cond, True))
        return a
    if low_a is not None and low_a < HIDDEN:
        s.terms.append(Term(cond, False))
        return b
    raise Declined("a select whose other operand is not a large negative number")


def _has_product(v: View, operand: str, depth: int = 12) -> bool:
    """Whether a matmul of activations lies behind, through what may stand between it and softmax."""
    op = v.producer(operand, "matmul", "mul", "div", "add", "select", "reshape", "cast", "tanh")
    if op is None or depth == 0:
        return False
    return op.name == "matmul" or any(_has_product(v, o, depth - 1) for o in op.operands)


# ------------------------------------------------------------------ q, k, v as [B, S, H, D]
def _head_axis(op: Op) -> int | None:
    """H of a result [B, H, S, …]; batch and heads may also be one axis."""
    t = op.result.type
    return t.shape[1] if t.rank == 4 and isinstance(t.shape[1], int) else None


def _query(r: Rewrite, product: Op, heads: int) -> str:
    if product.attr("transpose_a"):
        raise Declined("queries are transposed")
    return _bshd(r, product.operands[0], heads, False)


def _bshd(r: Rewrite, operand: str, heads: int, turned: bool) -> str:
    """[B, H, S, D] or [B*H, S, D] (or with S and D swapped, if `turned`) as [B, S, H, D]."""
    x = r.b.mapped(operand)
    t = r.old.type(operand)
    if t.rank == 3:
        batch = t.shape[0] // heads if isinstance(t.shape[0], int) else t.shape[0] / heads
        x = r.b.op("reshape", x, shape=(batch, heads, *t.shape[1:]))
    elif t.rank != 4:
        raise Declined(f"queries, keys or values of shape {list(t.shape)}")
    return r.b.op("transpose", x, perm=(0, 3, 1, 2) if turned else (0, 2, 1, 3))


def _key_value(r: Rewrite, operand: str, heads: int, turned: bool) -> tuple[str, int]:
    """Keys or values, without the copies made for each query head: (operand, KV heads)."""
    v = r.old
    inner, flip = operand, turned
    t = v.producer(inner, "transpose")
    if flip and t is not None and t.attr("perm") in ((0, 1, 3, 2), (0, 2, 1)):
        inner, flip = t.operands[0], False
    if not flip:
        shared = _unrepeated(v, inner, heads)
        if shared is not None:
            n = v.type(shared).shape[1]
            assert isinstance(n, int)
            return r.b.op("transpose", r.b.mapped(shared), perm=(0, 2, 1, 3)), n
    x = v.type(inner)
    own = 1 if x.rank == 4 and x.shape[1] == 1 else heads  # one head, which the product repeats
    return _bshd(r, inner, own, flip), own


def _unrepeated(v: View, operand: str, heads: int) -> str | None:
    """x [B, HK, S, D] behind reshape(expand(reshape(x)))."""
    merged = v.producer(operand, "reshape")
    wide = v.producer(merged.operands[0], "expand") if merged is not None else None
    narrow = v.producer(wide.operands[0], "reshape") if wide is not None else None
    if merged is None or wide is None or narrow is None or wide.result.type.rank != 5:
        return None
    x = v.type(narrow.operands[0])
    kv, n = wide.result.type.shape[1:3]
    fits = (
        x.rank == 4
        and x.shape[1] in (kv, 1)
        and isinstance(kv, int)
        and isinstance(n, int)
        and kv * n == heads
    )
    return narrow.operands[0] if fits and narrow.result.type.shape[1:3] == (x.shape[1], 1) else None


def _copied(r: Rewrite, x: str, times: int) -> str:
    """[B, S, H, D] with each head as many times in a row: keys and values of a cache have the same heads."""
    if times == 1:
        return x
    b, n, heads, d = r.b.type(x).shape
    assert isinstance(heads, int)
    wide = r.b.op("expand", r.b.op("reshape", x, shape=(b, n, heads, 1, d)), shape=(b, n, heads, times, d))
    return r.b.op("reshape", wide, shape=(b, n, heads * times, d))
