"""Attention in elementary ops becomes `attend` with the right attributes, or the rule says why not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tilewright.ir.graph.builder import GraphBuilder, dims
from tilewright.ir.graph.core import Module, Op
from tilewright.ir.types import tensor
from tilewright.passes.base import PassContext
from tilewright.passes.driver import Options, explain, run_passes

B, S, H, D = "B", "S", 4, 8


@dataclass(frozen=True)
class Plain:
    """How the attention is spelled."""

    kv_heads: int = 4
    mask: str = "add"  # add, select, merged, none, later, ids
    window: int = 0
    slopes: bool = False
    softcap: float = 0.0
    merged: bool = False  # [B*H, S, D], as bloom has it
    scaled: str = "scores"  # scores, queries


def plain(c: Plain) -> Module:
    b = GraphBuilder("forward")
    b.symbol(B, 1, 4)
    b.symbol(S, 1, 64)
    q = b.add_input("q", tensor("f32", B, H, S, D))
    k, v = (b.add_input(n, tensor("f32", B, c.kv_heads, S, D)) for n in "kv")
    ids = b.add_input("ids", tensor("i32", B, S))
    if c.kv_heads < H:
        k, v = (repeated(b, x, H // c.kv_heads) for x in (k, v))
    if c.merged:
        q, k, v = (b.op("reshape", x, shape=dims(4 * b.type("%ids").shape[0], S, D)) for x in (q, k, v))
    rank = b.type(q).rank
    last = (*range(rank - 2), rank - 1, rank - 2)
    scale = b.const(D**-0.5)
    if c.scaled == "queries":
        q = b.op("mul", q, scale)
    s = b.op("matmul", q, b.op("transpose", k, perm=last))
    if c.scaled == "scores":
        s = b.op("mul", s, scale)
    if c.softcap:
        cap = b.const(c.softcap)
        s = b.op("mul", b.op("tanh", b.op("div", s, cap)), cap)
    if c.slopes:
        s = b.op("add", alibi(b, c.merged), s)
    if c.merged:
        s = b.op("reshape", s, shape=dims(B, H, S, S))
    p = b.op("softmax", masked(b, s, c, ids), axis=3)
    if c.merged:
        p = b.op("reshape", p, shape=b.type(q).shape[:1] + dims(S, S))
    b.output(b.op("matmul", p, v), "y")
    return b.module()


def repeated(b: GraphBuilder, x: str, n: int) -> str:
    kv = b.type(x).shape[1]
    wide = b.op("expand", b.op("reshape", x, shape=dims(B, kv, 1, S, D)), shape=dims(B, kv, n, S, D))
    return b.op("reshape", wide, shape=dims(B, H, S, D))


def alibi(b: GraphBuilder, merged: bool) -> str:
    """slopes * (cumsum(ones) - 1), as bloom makes it."""
    slopes = b.inline("slopes", np.array([0.5, 0.25, 0.125, 0.0625], np.float32).reshape(H, 1))
    ones = b.op("full", shape=dims(B, S), value=1.0, dtype="f32")
    place = b.op("sub", b.op("cumsum", ones, axis=1), b.const(1.0))
    bias = b.op("mul", slopes, b.op("reshape", place, shape=dims(B, 1, S)))
    batch = b.type("%ids").shape[0]
    return b.op("reshape", bias, shape=dims(4 * batch, 1, S) if merged else dims(B, H, 1, S))


def masked(b: GraphBuilder, s: str, c: Plain, ids: str) -> str:
    if c.mask == "none":
        return s
    row = b.op("reshape", b.op("iota", size=b.type("%ids").shape[1]), shape=dims(S, 1))
    column = b.op("reshape", b.op("iota", size=b.type("%ids").shape[1]), shape=dims(1, S))
    seen = b.op("ge" if c.mask != "later" else "le", row, column)
    if c.window:
        seen = b.op("and", seen, b.op("lt", b.op("sub", row, column), b.const(c.window, "i32")))
    low = b.const(-3.4028234663852886e38)
    if c.mask == "ids":
        seen = b.op("reshape", b.op("ne", ids, b.const(3, "i32")), shape=dims(B, 1, 1, S))
        seen = b.op("expand", seen, shape=dims(B, 1, S, S))
    if c.mask in ("select", "ids"):
        return b.op("select", seen, s, low)
    return b.op("add", s, b.op("select", seen, b.const(0.0), low))


def recognised(c: Plain) -> tuple[Op | None, str]:
    ctx = PassContext()
    module = run_passes(
        plain(c), "canonicalize, recognise", Options(verify_each=True, check_each=True), ctx
    ).module
    found = [op for op in module.graph("forward").ops if op.name == "attend"]
    return (found[0] if found else None), explain(ctx.notes)


GOOD = {
    "causal-add": (Plain(), {"causal": True}),
    "causal-select": (Plain(mask="select"), {"causal": True}),
    "no-mask": (Plain(mask="none"), {"causal": False}),
    "groups": (Plain(kv_heads=2), {"causal": True, "kv_heads": 2}),
    "window": (Plain(window=3), {"causal": True, "window": 3}),
    "wide-window": (Plain(window=100), {"causal": True, "window": 100}),
    "alibi": (Plain(slopes=True), {"causal": True, "bias": "alibi"}),
    "alibi-merged": (Plain(slopes=True, merged=True), {"causal": True, "bias": "alibi"}),
    "softcap": (Plain(softcap=5.0), {"causal": True, "softcap": 5.0}),
    "scaled-queries": (Plain(scaled="queries"), {"causal": True, "scale": 1.0}),
    "padding": (Plain(mask="ids"), {"causal": False, "mask": "tensor"}),
}


@pytest.mark.parametrize("name", GOOD)
def test_recognised(name: str) -> None:
    c, attrs = GOOD[name]
    op, why = recognised(c)
    assert op is not None, why
    assert {k: op.attr(k) for k in attrs} == attrs
    if c.scaled == "scores":
        assert op.attr("scale") == pytest.approx(D**-0.5)


def test_declined_with_a_reason() -> None:
    op, why = recognised(Plain(mask="later", slopes=True))
    assert op is None
    assert "neither all earlier ones nor a window of them" in why
