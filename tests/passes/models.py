"""Hand-written captured graphs for tests: a llama in elementary ops, with the variants of its family.

In: sizes and switches. Out: a module with one graph @forward over [B, S]. No weights are stored: tests draw
them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilewright.ir.graph.builder import GraphBuilder, dims
from tilewright.ir.graph.core import Module, Stored
from tilewright.ir.types import tensor


@dataclass(frozen=True)
class Llama:
    """`norm_offset`: gemma's 1 + w; `qk_norm`: qwen3's; `bias`: qwen2's; `tied`: one table for embedding and
    head."""

    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    dim: int = 8
    hidden: int = 32
    inner: int = 48
    vocab: int = 40
    rotary: int = 8
    norm_offset: float = 0.0
    qk_norm: bool = False
    bias: bool = False
    tied: bool = False
    window: int = 0
    half_tables: bool = False


def llama(c: Llama = Llama()) -> Module:
    """The captured form of the model."""
    m = _Maker(c)
    b = m.b
    ids, pos = b.add_input("ids", tensor("i32", "B", "S")), b.add_input("pos", tensor("i32", "B", "S"))
    x = b.op("gather", m.weight("model.embed_tokens.weight", c.vocab, c.hidden), ids, axis=0)
    cos, sin = m.tables(pos)
    for n in range(c.layers):
        x = m.layer(x, cos, sin, f"model.layers.{n}")
    x = m.norm(x, "model.norm.weight", c.hidden)
    head = "@model.embed_tokens.weight" if c.tied else m.weight("lm_head.weight", c.vocab, c.hidden)
    b.output(b.op("linear", x, head), "logits")
    return b.module()


class _Maker:
    def __init__(self, c: Llama) -> None:
        self.c, self.b = c, GraphBuilder("forward")
        self.b.symbol("B", 1, 4)
        self.b.symbol("S", 1, 32)
        self.b.meta["context"] = 64

    def weight(self, name: str, *shape: int) -> str:
        return self.b.weight(name, tensor("f32", *shape), Stored("model.safetensors", name))

    def linear(self, x: str, name: str, n: int, k: int, bias: bool = False) -> str:
        extra = [self.weight(f"{name}.bias", n)] if bias else []
        return self.b.op("linear", x, self.weight(f"{name}.weight", n, k), *extra)

    def norm(self, x: str, name: str, n: int) -> str:
        b, w = self.b, self.weight(name, n)
        axis = b.type(x).rank - 1
        mean = b.op("mean", b.op("pow", x, b.const(2.0)), axes=(axis,), keepdims=True)
        y = b.op("mul", x, b.op("rsqrt", b.op("add", mean, b.const(1e-5))))
        return b.op("mul", y, b.op("add", b.const(self.c.norm_offset), w) if self.c.norm_offset else w)

    def tables(self, pos: str) -> tuple[str, str]:
        b, half = self.b, self.c.rotary // 2
        inv = b.inline("inv_freq", (1.0 / 10000.0 ** (np.arange(half) / half)).astype(np.float32))
        column = b.op("expand", b.op("reshape", inv, shape=(1, half, 1)), shape=dims("B", half, 1))
        row = b.op("cast", b.op("reshape", pos, shape=dims("B", 1, "S")), dtype="f32")
        freqs = b.op("transpose", b.op("matmul", column, row), perm=(0, 2, 1))
        both = freqs if self.c.half_tables else b.op("concat", freqs, freqs, axis=2)
        scale = b.const(1.25)
        width = half if self.c.half_tables else self.c.rotary
        shape = dims("B", 1, "S", width)
        return tuple(b.op("reshape", b.op("mul", b.op(f, both), scale), shape=shape) for f in ("cos", "sin"))  # type: ignore[return-value]

    def rotary(self, x: str, cos: str, sin: str) -> str:
        b, r, d = self.b, self.c.rotary, self.c.dim
        head = x if r == d else b.op("slice", x, axis=3, start=0, stop=r)
        lo, hi = (
            b.op("slice", head, axis=3, start=0, stop=r // 2),
            b.op("slice", head, axis=3, start=r // 2, stop=r),
        )
        if self.c.half_tables:
            first = b.op("sub", b.op("mul", lo, cos), b.op("mul", hi, sin))
            second = b.op("add", b.op("mul", hi, cos), b.op("mul", lo, sin))
            turned = b.op("concat", first, second, axis=3)
        else:
            crossed = b.op("concat", b.op("neg", hi), lo, axis=3)
            turned = b.op("add", b.op("mul", head, cos), b.op("mul", crossed, sin))
        return turned if r == d else b.op("concat", turned, b.op("slice", x, axis=3, start=r, stop=d), axis=3)

    def heads(self, x: str, h: int) -> str:
        return self.b.op(
            "transpose", self.b.op("reshape", x, shape=dims("B", "S", h, self.c.dim)), perm=(0, 2, 1, 3)
        )

    def layer(self, x: str, cos: str, sin: str, name: str) -> str:
        b, c = self.b, self.c
        y = self.norm(x, f"{name}.input_layernorm.weight", c.hidden)
        sizes = {"q": c.heads, "k": c.kv_heads, "v": c.kv_heads}
        q, k, v = (
            self.linear(y, f"{name}.self_attn.{p}_proj", h * c.dim, c.hidden, c.bias)
            for p, h in sizes.items()
        )
        q, k, v = self.heads(q, c.heads), self.heads(k, c.kv_heads), self.heads(v, c.kv_heads)
        if c.qk_norm:
            q, k = (self.norm(t, f"{name}.self_attn.{p}_norm.weight", c.dim) for t, p in ((q, "q"), (k, "k")))
        q, k = self.rotary(q, cos, sin), self.rotary(k, cos, sin)
        q, k, v = (b.op("transpose", t, perm=(0, 2, 1, 3)) for t in (q, k, v))
        o = b.op(
            "attend",
            q,
            k,
            v,
            heads=c.heads,
            kv_heads=c.kv_heads,
            scale=c.dim**-0.5,
            causal=True,
            window=c.window,
        )
        o = b.op("reshape", o, shape=dims("B", "S", c.heads * c.dim))
        x = b.op("add", x, self.linear(o, f"{name}.self_attn.o_proj", c.hidden, c.heads * c.dim))
        y = self.norm(x, f"{name}.post_attention_layernorm.weight", c.hidden)
        gate = b.op("silu", self.linear(y, f"{name}.mlp.gate_proj", c.inner, c.hidden))
        up = self.linear(y, f"{name}.mlp.up_proj", c.inner, c.hidden)
        return b.op("add", x, self.linear(b.op("mul", gate, up), f"{name}.mlp.down_proj", c.hidden, c.inner))
