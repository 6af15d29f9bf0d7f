"""recognise: finds norms, activations, rotary embeddings, attention, patches, narrow groups and odd strides.

In: a captured graph of small ops. Out: the same graph in semantic ops. Rules are a table by the op they end
in; each is tried on the unchanged graph, so one never hides another. A rule that almost matches says why it
did not (`--explain recognise`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.graph.live import tidy
from tilewright.passes.base import Pass, PassContext
from tilewright.passes.patterns import View
from tilewright.passes.recognise_attention import attention
from tilewright.passes.recognise_groups import joined_groups
from tilewright.passes.recognise_norms import (
    gelu,
    gelu_tanh,
    layer_norm,
    outer_product,
    quick_gelu,
    rms_norm,
    silu,
)
from tilewright.passes.recognise_patches import patches
from tilewright.passes.recognise_rotary import rotary_concat, rotary_interleaved, rotary_part, rotary_sum
from tilewright.passes.recognise_strides import whole_strides
from tilewright.passes.rewrite import Declined, Rewrite

Rule = Callable[[Rewrite, Op], "str | None"]

#: rounds of rules by the op a match ends in, in the order tried; a round sees what the rounds before it made
ROUNDS: tuple[Mapping[str, Sequence[tuple[str, Rule]]], ...] = (
    {
        "mul": (
            ("rms-norm", rms_norm), ("gelu", gelu), ("gelu-tanh", gelu_tanh), ("silu", silu),
            ("quick-gelu", quick_gelu),
        ),
        "div": (("layer-norm", layer_norm), ("silu", silu)),
        "add": (("layer-norm", layer_norm), ("rotary", rotary_sum)),
        "matmul": (("outer-product", outer_product),),
        "conv": (("patches", patches), ("joined-groups", joined_groups)),
    },
    {
        **dict.fromkeys(("conv", "max_pool", "sum_pool"), (("whole-strides", whole_strides),)),
        "concat": (("rotary", rotary_concat),), "reshape": (("rotary-interleaved", rotary_interleaved),),
    },
    {"concat": (("rotary-part", rotary_part),), "matmul": (("attention", attention),)},
)  # fmt: skip


@dataclass(frozen=True)
class Recognise(Pass):
    """Replace elementary arithmetic by high-level ops; a rule's name in `skip` disables it."""

    name: ClassVar[str] = "recognise"
    needs: ClassVar[frozenset[str]] = frozenset({"canonical", "sequences", "unfused"})
    gives: ClassVar[frozenset[str]] = frozenset({"recognised"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical", "no-attend"})
    tolerance: ClassVar[float | None] = 2e-5

    skip: tuple[str, ...] = ()

    def run(self, module: Module, ctx: PassContext) -> Module:
        for graph in module.graphs:
            for rules in ROUNDS:
                module = self._round(module, module.graph(graph.name), rules, ctx)
        return module

    def _round(
        self, module: Module, graph: Graph, rules: Mapping[str, Sequence[tuple[str, Rule]]], ctx: PassContext
    ) -> Module:
        b = GraphBuilder.over(module, graph, self.name)
        state = Rewrite(View(module, graph), b, {})
        for op in graph.ops:
            new = self._first(state, op, rules.get(op.name, ()), ctx)
            if new is None:
                b.copy(op)
            else:
                b.replace(f"%{op.result.name}", new)
        for n, o in enumerate(graph.outputs):
            b.output(b.mapped(o), graph.results[n] if graph.results else None)
        return tidy(b.module())

    def _first(
        self, state: Rewrite, op: Op, rules: Sequence[tuple[str, Rule]], ctx: PassContext
    ) -> str | None:
        state.b.loc = op.loc
        for name, rule in rules:
            if name in self.skip:
                continue
            try:
                new = rule(state, op)
            except Declined as why:
                ctx.declined(name, op, str(why))
                continue
            if new is not None:
                ctx.applied(name, op)
                return new
        return None
