"""decompose-attend: whole-sequence attention as matmul, mask, softmax, matmul.

In: graphs of plain modules, whose attention has no kernel of its own yet. Out: the same values from ops that
have one. Decoders never come here: their attention reads a cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.passes.base import Pass, PassContext

#: what a masked score becomes: its exponential is 0 beside any other, and a row that is masked throughout
#: stays finite
MASKED = -1e30


@dataclass(frozen=True)
class DecomposeAttend(Pass):
    """Replace every whole-sequence `attend` by elementary ops."""

    name: ClassVar[str] = "decompose-attend"
    needs: ClassVar[frozenset[str]] = frozenset({"recognised", "sequences", "unfused"})
    gives: ClassVar[frozenset[str]] = frozenset({"no-attend"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical"})

    def run(self, module: Module, ctx: PassContext) -> Module:
        for graph in module.graphs:
            if any(op.name == "attend" for op in graph.ops):
                module = _rewrite(module, module.graph(graph.name))
        return module


def _rewrite(module: Module, graph: Graph) -> Module:
    b = GraphBuilder.over(module, graph, "decompose-attend")
    for op in graph.ops:
        if op.name == "attend" and not op.attr("flat"):
            b.loc = op.loc
            b.replace(f"%{op.result.name}", Attention(b, op).build())
        else:
            b.copy(op)
    for n, o in enumerate(graph.outputs):
        b.output(b.mapped(o), graph.results[n] if graph.results else None)
    return b.module()


class Attention:
    """One attention being spelled out. Scores have shape [B, H, S, S2]."""

    def __init__(self, b: GraphBuilder, op: Op, operands: Sequence[str] = ()) -> None:
        """`operands`: other than the op's, in the graph being built."""
        self.b, self.op = b, op
        self.q, self.k, self.v, *self.extras = operands or [b.mapped(o) for o in op.operands]
        self.dtype = b.type(self.q).dtype
        self.heads, self.kv_heads = int(str(op.attr("heads"))), int(str(op.attr("kv_heads")))

    def build(self) -> str:
        q, k, v = (self._by_head(x) for x in (self.q, self.k, self.v))
        k, v = self._repeated(k), self._repeated(v)
        return self.b.op("transpose", self.b.op("matmul", self._scored(q, k), v), perm=(0, 2, 1, 3))

    def weights(self) -> str:
        """The attention that each query pays each key: [B, H, S, S2]."""
        return self._scored(self._by_head(self.q), self._repeated(self._by_head(self.k)))

    def _by_head(self, x: str) -> str:
        return self.b.op("transpose", x, perm=(0, 2, 1, 3))

    def _scored(self, q: str, k: str) -> str:
        b = self.b
        scores = b.op(
            "mul",
            b.op("matmul", q, k, transpose_b=True),
            b.const(float(str(self.op.attr("scale"))), self.dtype),
        )
        cap = float(str(self.op.attr("softcap") or 0.0))
        if cap:
            scores = b.op(
                "mul",
                b.op("tanh", b.op("mul", scores, b.const(1.0 / cap, self.dtype))),
                b.const(cap, self.dtype),
            )
        sinks = self.extras.pop(0) if self.op.attr("sinks") else None
        return self._weights(self._biased(scores), sinks)

    def _repeated(self, x: str) -> str:
        """KV heads repeated for the query heads that share them."""
        groups = self.heads // self.kv_heads
        if groups == 1:
            return x
        batch, kv, s, d = self.b.type(x).shape
        wide = self.b.op(
            "expand", self.b.op("reshape", x, shape=(batch, kv, 1, s, d)), shape=(batch, kv, groups, s, d)
        )
        return self.b.op("reshape", wide, shape=(batch, self.heads, s, d))

    def _biased(self, scores: str) -> str:
        bias = self.op.attr("bias")
        if bias == "none":
            return scores
        extra = self.extras.pop(0)
        if bias == "tensor":
            return self.b.op("add", scores, extra)
        slopes = self.b.op("reshape", extra, shape=(self.heads, 1, 1))
        distance = self.b.op("cast", self.b.op("sub", *self._positions(scores)[::-1]), dtype=self.dtype)
        return self.b.op("add", scores, self.b.op("mul", slopes, distance))

    def _positions(self, scores: str) -> tuple[str, str]:
        """Query positions [S, 1] and key positions [1, S2]."""
        s, s2 = self.b.type(scores).shape[-2:]
        rows = self.b.op("reshape", self.b.op("iota", size=s, dtype="i32"), shape=(s, 1))
        return rows, self.b.op("reshape", self.b.op("iota", size=s2, dtype="i32"), shape=(1, s2))

    def _near(self, scores: str) -> list[str]:
        """Which keys a query may see by their places: a query sees itself, whatever these say."""
        window, seen = int(str(self.op.attr("window") or 0)), list[str]()
        rows, columns = self._positions(scores) if self.op.attr("causal") or window else ("", "")
        if self.op.attr("causal"):
            seen.append(self.b.op("le", columns, rows))
        if window:
            seen.append(self.b.op("lt", self.b.op("sub", rows, columns), self.b.const(window, "i32")))
        return seen

    def _mask(self) -> str | None:
        """The mask that is an operand."""
        kind = self.op.attr("mask")
        mask = None if kind == "none" else self.extras.pop(0)
        if mask is None or kind != "padding":
            return mask
        batch, s2 = self.b.type(mask).shape
        return self.b.op("reshape", mask, shape=(batch, 1, 1, s2))

    def _weights(self, scores: str, sinks: str | None) -> str:
        """Softmax over the keys that are seen; zeros for a query that sees none, which only an operand can
        bring about."""
        b = self.b
        seen, mask = self._near(scores), self._mask()
        added = self.op.attr("bias") == "tensor"
        if mask is not None and b.type(mask).dtype == "bool":
            seen.append(mask)
        elif mask is not None:
            scores, added = b.op("add", scores, mask), True
        never = b.const(-math.inf if added else MASKED, self.dtype)
        for s in seen:
            scores = b.op("select", s, scores, never)
        weights = self._softmax(scores, sinks)
        if added:
            nothing = b.op("eq", b.op("max_reduce", scores, axes=(3,), keepdims=True), never)
            return b.op("select", nothing, b.const(0.0, self.dtype), weights)
        for s in seen if mask is not None else ():
            weights = b.op("select", s, weights, b.const(0.0, self.dtype))
        return weights

    def _softmax(self, scores: str, sinks: str | None) -> str:
        """Softmax along the keys; a sink is one more logit whose weight is dropped."""
        b = self.b
        shape: tuple[Any, ...] = b.type(scores).shape
        if sinks is None:
            return b.op("softmax", scores, axis=3)
        extra = b.op("expand", b.op("reshape", sinks, shape=(1, self.heads, 1, 1)), shape=(*shape[:3], 1))
        wide = b.op("softmax", b.op("concat", scores, extra, axis=3), axis=3)
        return b.op("slice", wide, axis=3, start=0, stop=shape[3])
