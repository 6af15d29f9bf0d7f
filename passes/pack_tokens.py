"""pack-tokens: an encoder computes the tokens that its attention mask keeps, and no padding.

In: a graph whose attention is recognised. Out: the same over packed rows: where attention shows kept tokens
the kept tokens of their sequence and nothing else, whatever works token by token before, between and behind
runs over one axis of them, whose length is counted when the graph runs. What takes tokens together, and
results, see [B, S] again, with zeros in place of padding. "ByteTransformer: A High-Performance Transformer
Boosted for Variable-Length Inputs".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any, ClassVar

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.graph.live import tidy
from tilewright.ir.ops.common import product
from tilewright.ir.plan.core import UNBOUNDED
from tilewright.ir.types import as_dim, evaluate_dim, symbol
from tilewright.passes.base import Pass, PassContext
from tilewright.passes.pack_masks import kept_by
from tilewright.passes.pack_rows import Rows, over_rows, taken_rows
from tilewright.passes.patterns import View
from tilewright.passes.rewrite import Declined


@dataclass(frozen=True)
class PackTokens(Pass):
    """Pack the tokens that attention masks keep. In the results, padding is zero, not what eager PyTorch
    makes of it."""

    name: ClassVar[str] = "pack-tokens"
    needs: ClassVar[frozenset[str]] = frozenset({"recognised", "sequences", "unfused"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical"})
    tolerance: ClassVar[float | None] = None

    def run(self, module: Module, ctx: PassContext) -> Module:
        for graph in module.graphs:
            view = View(module, graph)
            mask, layers = _packed_layers(view, ctx)
            if layers:
                module = tidy(_Packing(view, mask, layers).run())
                words = f"{len(layers)} attentions and what works token by token, over the tokens of {mask}"
                ctx.applied("pack", f"graph @{graph.name}", words)
        return module


def _packed_layers(view: View, ctx: PassContext) -> tuple[str, frozenset[int]]:
    """The mask that most attentions have, and these attentions, as places in the graph."""
    found: dict[str, list[int]] = {}
    known: dict[object, str | Declined] = {}
    for n, op in enumerate(view.graph.ops):
        if op.name == "attend":
            like = (op.attrs, op.operands[3:], *(view.type(o).shape for o in op.operands[:2]))
            if like not in known:  # layers share their mask
                known[like] = _mask_of(view, op)
            mask = known[like]
            if isinstance(mask, str):
                found.setdefault(mask, []).append(n)
            else:
                ctx.declined("pack", op, str(mask))
    if not found:
        if not any(op.name == "attend" for op in view.graph.ops):
            ctx.declined("pack", f"graph @{view.graph.name}", "no attention is recognised")
        return "", frozenset()
    mask = max(found, key=lambda m: len(found[m]))
    for other in found:
        for n in found[other] if other != mask else ():
            ctx.declined("pack", view.graph.ops[n], f"more attentions have the mask {mask}")
    return mask, frozenset(found[mask])


def _mask_of(view: View, op: Op) -> str | Declined:
    try:
        return kept_by(view, op)
    except Declined as why:
        return why


class _Packing:
    """One graph being rewritten."""

    def __init__(self, view: View, mask: str, layers: frozenset[int]) -> None:
        self.view, self.mask, self.layers = view, mask, layers
        self.b = GraphBuilder.over(view.module, view.graph, PackTokens.name)
        self.rows: Rows | None = None

    def run(self) -> Module:
        graph = self.view.graph
        for n, op in enumerate(graph.ops):
            self.b.loc = op.loc
            if n in self.layers:
                self._attend(op)
            elif self.rows is None or not over_rows(self.rows, op) and not taken_rows(self.rows, op):
                self._whole(op)
        self._outputs(graph)
        return self.b.module()

    def _whole(self, op: Op) -> None:
        """The op over [B, S]."""
        for o in op.operands if self.rows else ():
            self.rows.whole(o)  # type: ignore[union-attr]
        self.b.copy(op)

    def _attend(self, op: Op) -> None:
        q, k, v = op.operands[:3]
        if self.rows is None:
            self.rows = self._counted(self.view.type(q).shape[:2])  # type: ignore[arg-type]
        rows, known = self.rows, dict(op.attrs)
        attrs: dict[str, Any] = {key: known[key] for key in ("heads", "kv_heads", "scale", "softcap")}
        packed = [rows.packed(o, 2) for o in (q, k, v)]
        rows.define(op, [self.b.op("attend_packed", *packed, rows.seq, rows.starts, **attrs)], 2)

    def _outputs(self, graph: Graph) -> None:
        for n, o in enumerate(graph.outputs):
            if self.rows:
                self.rows.whole(o)
            self.b.output(self.b.mapped(o), graph.results[n] if graph.results else None)

    # -------------------------------------------------------------- which rows there are
    def _counted(self, lead: tuple[Any, Any]) -> Rows:
        """The index maps between tokens [B, S] and packed rows, from the mask. Tokens are moved by one
        permutation: those that are kept to the front, in their order, and padding behind them."""
        b, every = self.b, product(lead)
        kept = self._kept(every)
        ones = b.op("cast", kept, dtype="i32")
        so_far, total = b.op("cumsum", ones, axis=0), b.op("sum", ones, axes=(0,), keepdims=True)
        token, row = b.op("iota", size=every, dtype="i32"), b.op("sub", so_far, b.const(1, "i32"))
        behind = b.op("add", total, b.op("sub", token, so_far))
        target = b.op("select", kept, row, behind)
        moved = b.op("index_put", b.op("full", value=0, dtype="i32", shape=(every,)), target, token)
        size = self._symbol(every)
        rows = b.op("leading_rows", moved, total, size=symbol(size))
        slots = b.op("select", kept, row, b.const(-1, "i32"))
        return Rows(
            self.view, b, lead, size, rows, self._index(0, lead, rows), self._index(1, lead, rows),
            self._starts(so_far, lead), b.op("reshape", slots, shape=lead),
        )  # fmt: skip

    def _kept(self, every: Any) -> str:
        """bool[B * S]: whether a token is kept."""
        b, mask = self.b, self.b.mapped(self.mask)
        if b.type(mask).dtype != "bool":
            mask = b.op("ne", mask, b.const(0, b.type(mask).dtype))
        return b.op("reshape", mask, shape=(every,))

    def _symbol(self, every: Any) -> str:
        """A symbol for the number of kept tokens."""
        names = (f"kept{k or ''}" for k in count())
        name = next(n for n in names if n not in self.b.symbols)
        sizes = {n: r.hi if r.hi is not None else UNBOUNDED for n, r in self.view.module.symbols}
        return self.b.symbol(name, 0, evaluate_dim(every, sizes))

    def _index(self, axis: int, lead: tuple[Any, Any], rows: str) -> str:
        """The sequence of each row, or its place in that sequence: i32[size]."""
        b = self.b
        shape = (lead[0], 1) if axis == 0 else (1, lead[1])
        line = b.op("reshape", b.op("iota", size=lead[axis], dtype="i32"), shape=shape)
        every = b.op("reshape", b.op("expand", line, shape=lead), shape=(product(lead),))
        return b.op("select_rows", every, rows)

    def _starts(self, so_far: str, lead: tuple[Any, Any]) -> str:
        """The first row of each sequence, and the end of the last: i32[B + 1]."""
        b, (batch, tokens) = self.b, lead
        lines = b.op("reshape", so_far, shape=lead)
        ends = b.op("slice", lines, axis=1, start=as_dim(tokens - 1), stop=tokens)
        return b.op("pad", b.op("reshape", ends, shape=(batch,)), pads=(1, 0))
