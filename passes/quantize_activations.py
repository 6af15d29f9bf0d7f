"""quantize-activations: the form in which contractions read their input.

In: a module whose weights are encoded. Out: one `encode` for each value that contractions read, shared by all
of them that want the same form. `int8(token)` also carries what the weight's zero point needs: sums per group
of the weight it meets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tilewright.ir.encoding import Encoding, parse_encoding
from tilewright.ir.encodings.blocked import Blocked
from tilewright.ir.encodings.dense import Dense
from tilewright.ir.encodings.token import IntToken
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.passes.base import Context, Pass
from tilewright.passes.lower.record import Matrix, matrix_of
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
            matrix = matrix_of(op)
            want = self._wanted(view, op, matrix, ctx) if matrix is not None else None
            if matrix is None or want is None:
                b.copy(op)
                continue
            x = op.operands[matrix.times]
            key = (x, str(want))
            if key not in made:
                made[key] = b.op("encode", b.mapped(x), encoding=str(want), loc=op.loc)
            b.copy(replace(op, operands=_with(op.operands, matrix.times, made[key])))
        for n, o in enumerate(graph.outputs):
            b.output(b.mapped(o), graph.results[n] if graph.results else None)
        return b.module()

    def _wanted(self, view: View, op: Op, matrix: Matrix, ctx: Context) -> Encoding | None:
        """The form x must take for this contraction, None to leave it."""
        x, w = op.operands[matrix.times], op.operands[matrix.operand]
        if view.type(x).encoding is not None or view.type(x).dtype != "f32":
            return None
        text = first_rule(self.rules, w[1:]) or self.activations
        e = parse_encoding(text)
        stored = view.type(w).encoding
        if isinstance(e, IntToken):
            if not isinstance(stored, Blocked) or stored.zero is None:
                return self._float_instead(op, w, stored, ctx)
            return self._meeting(e, stored, w)
        return None if isinstance(e, Dense) and e.dtype == "f32" else e

    def _meeting(self, e: IntToken, stored: Blocked, w: str) -> Encoding:
        """With the sums that the weights' zero needs. RefusedError where groups on both sides do not fit each
        other."""
        (group, zero), own = stored.sums(), stored.blocks.block
        if e.block and (own and e.block % own or stored.terms and not own):
            why = f"its groups of {own}" if own else "a row of it"
            hint = f"use int{e.bits}(token), or a group that is a multiple of the weights'"
            raise RefusedError(
                f"{why} cannot meet groups of {e.block} of the activations",
                f"{w} as {stored}",
                hint,
            )
        return replace(e, group=(group or e.block) if zero else 0, zero=zero)

    def _float_instead(self, op: Op, w: str, stored: Encoding | None, ctx: Context) -> Encoding | None:
        narrow = isinstance(stored, Dense) and stored.dtype in ("bf16", "f16")
        form = stored.dtype if isinstance(stored, Dense) and narrow else "f32"
        ctx.declined("int8", op, f"{w} holds no integers; its input is read as {form}")
        return Dense(form) if narrow else None


def _with(operands: tuple[str, ...], n: int, new: str) -> tuple[str, ...]:
    return (*operands[:n], new, *operands[n + 1 :])
