"""Modules that several tests share, and hypothesis strategies of random well-typed graphs."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
import numpy as np
from hypothesis.strategies import DrawFn

from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Apply, Location, Module, State, Stored
from tilewright.ir.types import as_dim, symbol, tensor

UNARY = ("neg", "exp", "tanh", "silu", "gelu", "sigmoid", "relu", "softplus", "abs", "sin")
BINARY = ("add", "sub", "mul", "max", "min", "div")


def mlp(n: int = 16, hidden: int = 32) -> Module:
    """A gated layer of width n over a dynamic batch, with a fused weight, locations and metadata."""
    b = GraphBuilder("forward")
    b.symbol("B", 1, 64)
    b.meta.update(family="test", eos=(1, 2), ratio=0.5)
    x = b.add_input("x", tensor("f32", "B", hidden))
    parts = (Stored("model.safetensors", "gate"), Stored("model.safetensors", "up"))
    w = b.weight("gate_up", tensor("f32", 2 * n, hidden), Apply("concat", parts, (("axis", 0),)))
    down = b.weight(
        "down", tensor("f32", hidden, n, encoding=parse_encoding("bf16")), Stored("model.safetensors", "down")
    )
    b.loc = Location("model.py", 7, "layers.0")
    gate, up = b.multi("split", b.op("linear", x, w), axis=-1, sizes=[n, n])
    b.passes = ("merge-linears",)
    y = b.op("mul", b.op("silu", gate), up, as_="h")
    b.output(b.op("add", b.op("linear", y, down), x), "y")
    return b.module()


def step(stored: str = "bf16") -> Module:
    """One attention layer over flat tokens with a cache."""
    b = GraphBuilder("step")
    for name, hi in (("T", 64), ("R", 64), ("NB", 64)):
        b.symbol(name, 0 if name == "R" else 1, hi)
    ids, pos, seq = (b.add_input(n, tensor("i32", "T")) for n in ("ids", "pos", "seq"))
    blocks, rows = b.add_input("blocks", tensor("i32", "NB", 4)), b.add_input("rows", tensor("i32", "R"))
    how = parse_encoding(stored)
    cache = b.state(State("kv.0", 2, 8, 8, how, how, 256))
    embed = b.weight("embed", tensor("f32", 50, 32), Stored("m.safetensors", "embed"))
    x = b.op("gather", embed, ids)
    shape = (symbol("T"), 4, 8)
    q = b.op(
        "reshape", b.op("linear", x, b.weight("q", tensor("f32", 32, 32), Stored("m", "q"))), shape=shape
    )
    kv = b.op("linear", x, b.weight("kv", tensor("f32", 32, 32), Stored("m", "kv")))
    k, v = (
        b.op("reshape", p, shape=(symbol("T"), 2, 8)) for p in b.multi("split", kv, axis=1, sizes=[16, 16])
    )
    b.multi("cache_append", cache, k, v, seq, pos)
    y = b.op("attend_cache", cache, q, seq, pos, blocks, heads=4, kv_heads=2, scale=0.35)
    o = b.weight("o", tensor("f32", 32, 32), Stored("m", "o"))
    y = b.op("linear", b.op("reshape", y, shape=(symbol("T"), 32)), o)
    y = b.op("select_rows", b.op("add", x, y), rows)
    b.output(b.op("linear", y, embed), "logits")
    return b.module()


@dataclass
class _Fuzz:
    """One graph being drawn; every value is f32."""

    draw: DrawFn
    b: GraphBuilder
    pool: list[str] = field(default_factory=list)

    def value(self) -> str:
        return self.draw(st.sampled_from(self.pool))

    def step(self) -> None:
        x = self.value()
        t = self.b.type(x)
        match self.draw(
            st.sampled_from(
                ["unary", "binary", "linear", "norm", "reduce", "transpose", "reshape", "slice", "concat"]
            )
        ):
            case "unary":
                new = self.b.op(self.draw(st.sampled_from(UNARY)), x)
            case "binary":
                same = [p for p in self.pool if self.b.type(p).shape == t.shape]
                new = self.b.op(self.draw(st.sampled_from(BINARY)), x, self.draw(st.sampled_from(same)))
            case "linear" if t.rank and isinstance(t.shape[-1], int):
                n = self.draw(st.integers(1, 6))
                name = f"w{len(self.b.weights)}"
                new = self.b.op(
                    "linear",
                    x,
                    self.b.weight(name, tensor("f32", n, t.shape[-1]), Stored("m.safetensors", name)),
                )
            case "norm" if t.rank:
                new = self.b.op("rms_norm", x, eps=self.draw(st.sampled_from([1e-5, 0.1])), axis=-1)
            case "reduce" if t.rank:
                axis = self.draw(st.integers(0, t.rank - 1))
                new = self.b.op("sum", x, axes=[axis], keepdims=self.draw(st.booleans()))
            case "transpose":
                new = self.b.op("transpose", x, perm=list(self.draw(st.permutations(range(t.rank)))))
            case "reshape" if t.rank:
                merged = as_dim(t.shape[0] * t.shape[-1]) if t.rank > 1 else t.shape[0]
                new = self.b.op("reshape", x, shape=[merged, *t.shape[1:-1]])
            case "slice" if t.rank and isinstance(t.shape[-1], int):
                lo = self.draw(st.integers(0, t.shape[-1]))
                new = self.b.op("slice", x, axis=-1, start=lo, stop=self.draw(st.integers(lo, t.shape[-1])))
            case "concat" if t.rank:
                new = self.b.op("concat", x, x, axis=0)
            case _:
                return
        self.pool.append(new)


@st.composite
def graphs(draw: DrawFn) -> Module:
    """A random module of one graph over symbols A and B, with locations, provenance and regions."""
    b = GraphBuilder("fuzz")
    b.symbol("A", 1, 9)
    b.symbol("B", 1)
    f = _Fuzz(draw, b)
    for n, shape in enumerate([("A", 4), ("A", 4), ("B", "A", 3), ()]):
        f.pool.append(b.add_input(f"x{n}", tensor("f32", *shape)))
    for _ in range(draw(st.integers(1, 12))):
        files = st.sampled_from(["model.py", "my model.py", 'a"b', "Ω#x"])
        b.loc = Location(
            draw(files), draw(st.integers(0, 99)), draw(st.sampled_from(["", "layers.0", "a [b]"]))
        )
        b.passes = draw(st.sampled_from([(), ("fuse",), ("merge-linears", "fuse")]))
        f.step()
    for n, o in enumerate(f.pool[-2:]):
        b.output(o, f"y{n}")
    return b.module()


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
