"""quantize-activations: the form in which contractions read their input.

In: a module whose weights are encoded. Out: one `encode` for each value that contractions read, shared by all
of them that want the same form. `int8(token)` also carries what the weight's zero point needs: sums per group
of the weight it meets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tilewright.ir.encoding import Encoding, parse_encoding
from tilewright.ir.encodings.blocked import Blocked
from tilewright.ir.encodings.dense import Dense
from tilewright.ir.encodings.token import IntToken
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.passes.base import Context, Pass
from tilewright.passes.patterns import View, tidy
from tilewright.passes.weight_roles import check_rules, first_rule


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """`activations`: f32, bf16, f16, int8(token) or int8(token, group=N); `rules`: (pattern on the weight's
    name, encoding)."""

    name: ClassVar[str] = "quantize-activations"
    needs: ClassVar[frozenset[str]] = frozenset({"encoded-weights"})
    gives: ClassVar[frozenset[str]] = frozenset({"quantized-activations"})
    tolerance: ClassVar[float | None] = None

    activations: str = "f32"
    rules: tuple[tuple[str, str], ...] = ()

    def run(self, module: Module, ctx: Context) -> Module:
        check_rules(self.rules, (w.name for w in module.weights), self.name)
        for graph in module.graphs:
            module = self._graph(module, module.graph(graph.name), ctx)
        return tidy(module)

    def _graph(self, module: Module, graph: Graph, ctx: Context) -> Module:
        view = View(module, graph)
        b = GraphBuilder.over(module, graph, self.name)
        made: dict[tuple[str, str], str] = {}
        for op in graph.ops:
            want = self._wanted(view, op, ctx) if op.name in ("linear", "grouped_linear") else None
            if want is None:
                b.copy(op)
                continue
            x = op.operands[0]
            key = (x, str(want))
            if key not in made:
                made[key] = b.op("encode", b.mapped(x), encoding=str(want), loc=op.loc)
            self._reading(b, op, made[key])
        for n, o in enumerate(graph.outputs):
            b.output(b.mapped(o), graph.results[n] if graph.results else None)
        return b.module()

    def _reading(self, b: GraphBuilder, op: Op, x: str) -> None:
        operands = [x, *(b.mapped(o) for o in op.operands[1:])]
        attrs: dict[str, Any] = dict(op.attrs)
        new = b.op(op.name, *operands, loc=op.loc, **attrs)
        b.replace(f"%{op.result.name}", new)

    def _wanted(self, view: View, op: Op, ctx: Context) -> Encoding | None:
        """The form x must take for this contraction, None to leave it."""
        x, w = op.operands[0], op.operands[1]
        if view.type(x).encoding is not None or view.type(x).dtype != "f32":
            return None
        text = first_rule(self.rules, w[1:]) or self.activations
        e = parse_encoding(text)
        stored = view.type(w).encoding
        if isinstance(e, IntToken):
            if not isinstance(stored, Blocked) or stored.zero is None:
                return self._float_instead(op, stored, ctx)
            return self._meeting(e, stored, op)
        return None if isinstance(e, Dense) and e.dtype == "f32" else e

    def _meeting(self, e: IntToken, stored: Blocked, op: Op) -> Encoding:
        """With the sums that the weights' zero needs. RefusedError where groups on both sides do not fit each
        other."""
        (group, zero), own = stored.sums(), stored.blocks.block
        if e.block and (own and e.block % own or stored.terms and not own):
            why = f"its groups of {own}" if own else "a row of it"
            hint = f"use int{e.bits}(token), or a group that is a multiple of the weights'"
            raise RefusedError(
                f"{why} cannot meet groups of {e.block} of the activations",
                f"{op.operands[1]} as {stored}",
                hint,
            )
        return replace(e, group=(group or e.block) if zero else 0, zero=zero)

    def _float_instead(self, op: Op, stored: Encoding | None, ctx: Context) -> Encoding | None:
        narrow = isinstance(stored, Dense) and stored.dtype in ("bf16", "f16")
        form = stored.dtype if isinstance(stored, Dense) and narrow else "f32"
        ctx.declined("int8", op, f"{op.operands[1]} holds no integers; its input is read as {form}")
        return Dense(form) if narrow else None
