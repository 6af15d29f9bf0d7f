"""Attention taken apart gives the same values, for every attribute it may carry."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Module
from tilewright.ir.graph.verify import verify_module
from tilewright.ir.interp.graph import run_graph
from tilewright.ir.types import tensor
from tilewright.passes.driver import run_passes

B, S, H, HK, D = 2, 7, 4, 2, 8


def attention(extras: tuple[str, ...] = (), **attrs: Any) -> Module:
    b = GraphBuilder("forward")
    q, k, v = (b.add_input(n, tensor("f32", B, S, h, D)) for n, h in (("q", H), ("k", HK), ("v", HK)))
    shapes = {
        "sinks": (H,),
        "slopes": (H,),
        "bias": (1, H, S, S),
        "hiding": (1, H, S, S),
        "keep": (B, S),
        "left": (B, S),
    }
    more = [b.add_input(n, tensor("bool" if n in ("keep", "left") else "f32", *shapes[n])) for n in extras]
    b.output(b.op("attend", q, k, v, *more, heads=H, kv_heads=HK, scale=0.7, **attrs), "o")
    return b.module()


CASES = {
    "bidirectional": ((), {"causal": False}),
    "causal": ((), {"causal": True}),
    "window": ((), {"causal": True, "window": 3}),
    "softcap": ((), {"causal": True, "softcap": 0.9}),
    "sinks": (("sinks",), {"causal": True, "sinks": True}),
    "alibi": (("slopes",), {"causal": True, "bias": "alibi"}),
    "bias": (("bias",), {"causal": False, "bias": "tensor"}),
    "padding": (("keep",), {"causal": False, "mask": "padding"}),
    "left padding": (("left",), {"causal": True, "mask": "padding"}),
    "left padding and a bias": (("bias", "left"), {"causal": True, "bias": "tensor", "mask": "padding"}),
    "a bias that hides": (("hiding",), {"causal": True, "bias": "tensor"}),
    "sinks and left padding": (("sinks", "left"), {"causal": True, "sinks": True, "mask": "padding"}),
    "sinks and padding": (("sinks", "keep"), {"causal": True, "sinks": True, "mask": "padding"}),
}


@pytest.mark.parametrize("name", CASES)
def test_same_values(name: str) -> None:
    extras, attrs = CASES[name]
    module = attention(extras, **attrs)
    after = run_passes(module, "decompose-attend").module
    verify_module(after)
    assert all(op.name != "attend" for op in after.graph("forward").ops)
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {
        v.name: rng.standard_normal([int(str(d)) for d in v.type.shape]).astype(np.float32)
        for v in module.graph("forward").inputs
    }
    if "keep" in inputs:
        inputs["keep"] = np.arange(S)[None] < np.array([[S], [4]])
    if "left" in inputs:  # the first queries of the second sequence see nothing
        inputs["left"] = np.arange(S)[None] >= np.array([[0], [3]])
    if "hiding" in inputs:
        inputs["hiding"][:, 1, 2] = -np.inf
        inputs["hiding"][:, 2, :, 4:] = -np.inf
    want = run_graph(module, "forward", inputs)["o"]
    np.testing.assert_allclose(run_graph(after, "forward", inputs)["o"], want, rtol=0, atol=2e-6)
