"""decompose-attend: whole-sequence attention as matmul, mask, softmax, matmul.

In: graphs of plain modules, whose attention has no kernel of its own yet. Out: the same values from ops that have one. Decoders
never come here: their attention reads a cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tilewright.ir.builder import GraphBuilder
from tilewright.ir.graph import Graph, Module, Op
from tilewright.passes.base import Context, Pass

#: what a masked score becomes: its exponential is 0 beside any other, and a row that is masked throughout stays finite
MASKED = -1e30


@dataclass(frozen=True)
class DecomposeAttend(Pass):
    """Every whole-sequence `attend` taken apart."""

    name: ClassVar[str] = "decompose-attend"
    gives: ClassVar[frozenset[str]] = frozenset({"no-attend"})

    def run(self, module: Module, ctx: Context) -> Module:
        for graph in module.graphs:
            if any(op.name == "attend" for op in graph.ops):
                module = _rewrite(module, module.graph(graph.name))
        return module


def _rewrite(module: Module, graph: Graph) -> Module:
    b = GraphBuilder.over(module, graph, "decompose-attend")
    for op in graph.ops:
        if op.name == "attend" and not op.attr("flat"):
            b.loc = op.loc
            b.replace(f"%{op.result.name}", _Attend(b, op).build())
        else:
            b.copy(op)
    for n, o in enumerate(graph.outputs):
        b.output(b.mapped(o), graph.results[n] if graph.results else None)
    return b.module()


class _Attend:
    """One attention being spelled out. Scores have shape [B, H, S, S2]."""

    def __init__(self, b: GraphBuilder, op: Op) -> None:
        self.b, self.op = b, op
        self.q, self.k, self.v, *self.extras = [b.mapped(o) for o in op.operands]
        self.heads, self.kv_heads = int(str(op.attr("heads"))), int(str(op.attr("kv_heads")))

    def build(self) -> str:
        b = self.b
        q, k, v = (b.op("transpose", x, perm=(0, 2, 1, 3)) for x in (self.q, self.k, self.v))
        k, v = self._repeated(k), self._repeated(v)
        scores = b.op("mul", b.op("matmul", q, k, transpose_b=True), b.const(float(str(self.op.attr("scale")))))
        cap = float(str(self.op.attr("softcap") or 0.0))
        if cap:
            scores = b.op("mul", b.op("tanh", b.op("mul", scores, b.const(1.0 / cap))), b.const(cap))
        sinks = self.extras.pop(0) if self.op.attr("sinks") else None
        scores = self._masked(self._biased(scores))
        weights = self._softmax(scores, sinks)
        return b.op("transpose", b.op("matmul", weights, v), perm=(0, 2, 1, 3))

    def _repeated(self, x: str) -> str:
        """KV heads repeated for the query heads that share them."""
        groups = self.heads // self.kv_heads
        if groups == 1:
            return x
        batch, kv, s, d = self.b.type(x).shape
        wide = self.b.op("expand", self.b.op("reshape", x, shape=(batch, kv, 1, s, d)), shape=(batch, kv, groups, s, d))
        return self.b.op("reshape", wide, shape=(batch, self.heads, s, d))

    def _biased(self, scores: str) -> str:
        bias = self.op.attr("bias")
        if bias == "none":
            return scores
        extra = self.extras.pop(0)
        if bias == "tensor":
            return self.b.op("add", scores, extra)
        slopes = self.b.op("reshape", extra, shape=(self.heads, 1, 1))
        distance = self.b.op("cast", self.b.op("sub", *self._positions(scores)[::-1]), dtype="f32")
        return self.b.op("add", scores, self.b.op("mul", slopes, distance))

    def _positions(self, scores: str) -> tuple[str, str]:
        """Query positions [S, 1] and key positions [1, S2]."""
        s, s2 = self.b.type(scores).shape[-2:]
        rows = self.b.op("reshape", self.b.op("iota", size=s, dtype="i32"), shape=(s, 1))
        return rows, self.b.op("reshape", self.b.op("iota", size=s2, dtype="i32"), shape=(1, s2))

    def _masked(self, scores: str) -> str:
        b, never = self.b, self.b.const(MASKED)
        window = int(str(self.op.attr("window") or 0))
        if self.op.attr("causal") or window:
            rows, columns = self._positions(scores)
            if self.op.attr("causal"):
                scores = b.op("select", b.op("le", columns, rows), scores, never)
            if window:
                near = b.op("lt", b.op("sub", rows, columns), b.const(window, "i32"))
                scores = b.op("select", near, scores, never)
        kind = self.op.attr("mask")
        if kind == "none":
            return scores
        mask = self.extras.pop(0)
        if kind == "padding":
            batch, s2 = b.type(mask).shape
            mask = b.op("reshape", mask, shape=(batch, 1, 1, s2))
        return b.op("select", mask, scores, never) if b.type(mask).dtype == "bool" else b.op("add", scores, mask)

    def _softmax(self, scores: str, sinks: str | None) -> str:
        """Softmax along the keys; a sink is one more logit whose weight is dropped."""
        b = self.b
        shape: tuple[Any, ...] = b.type(scores).shape
        if sinks is None:
            return b.op("softmax", scores, axis=3)
        extra = b.op("expand", b.op("reshape", sinks, shape=(1, self.heads, 1, 1)), shape=(*shape[:3], 1))
        wide = b.op("softmax", b.op("concat", scores, extra, axis=3), axis=3)
        return b.op("slice", wide, axis=3, start=0, stop=shape[3])
