"""quantize-activations: the form in which contractions read their input.

In: a module whose weights are encoded. Out: one `encode` for each value that contractions read, shared by all
of them that want the same form. `int8(token)` also carries what the weight's zero point needs: sums per group
of the weight it meets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NoReturn

from tilewright.ir.contraction_form import ContractionForm, OperandForm
from tilewright.ir.encoding import Encoding
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.graph.live import tidy
from tilewright.passes.base import Pass, PassContext
from tilewright.passes.lower.record import Matrix, matrix_of
from tilewright.passes.patterns import View
from tilewright.passes.weight_roles import check_rules, first_rule


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """Choose the encoding of contraction inputs; `activations`: f32, bf16, f16, int8(token) or int8(token,
    group=N); `rules`: (pattern on the weight's name, encoding).
    """

    name: ClassVar[str] = "quantize-activations"
    needs: ClassVar[frozenset[str]] = frozenset({"encoded-weights", "unfused"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical"})
    tolerance: ClassVar[float | None] = None

    activations: str = "f32"
    rules: tuple[tuple[str, str], ...] = ()

    def run(self, module: Module, ctx: PassContext) -> Module:
        check_rules(self.rules, (w.name for w in module.weights), self.name)
        for graph in module.graphs:
            module = self._graph(module, module.graph(graph.name), ctx)
        return tidy(module)

    def _graph(self, module: Module, graph: Graph, ctx: PassContext) -> Module:
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
            touched = op.passes if self.name in op.passes else (*op.passes, self.name)
            b.copy(replace(op, operands=_with(op.operands, matrix.times, made[key]), passes=touched))
        for n, o in enumerate(graph.outputs):
            b.output(b.mapped(o), graph.results[n] if graph.results else None)
        return b.module()

    def _wanted(self, view: View, op: Op, matrix: Matrix, ctx: PassContext) -> Encoding | None:
        """The form x must take for this contraction, None to leave it."""
        x, w = op.operands[matrix.times], op.operands[matrix.operand]
        if view.type(x).encoding is not None or view.type(x).dtype != "f32":
            return None
        text = first_rule(self.rules, w[1:]) or self.activations
        e = parse_encoding(text)
        stored = view.type(w).encoding
        if e.ahead_of_time:
            hint = "use f32, bf16, f16 or int8(token)"
            why = f"{text} is an encoding of weights, made ahead of time: {e.ahead_of_time}"
            raise RefusedError(why, self.name, hint)
        if e.operand_form is None:
            return None if e.element == "f32" else e
        if matrix.windows:
            ctx.declined("windows", op, f"windows of {text} have no kernel")
            return None
        form = stored.contraction_form if stored is not None else None
        if form is None or form.zero is None:
            return self._float_instead(op, w, stored, ctx)
        found = form.meeting(e.operand_form)
        return _refuse(e.operand_form, form, w, stored) if found is None else e.with_operand(found)

    def _float_instead(self, op: Op, w: str, stored: Encoding | None, ctx: PassContext) -> Encoding | None:
        form = stored.element if stored is not None and stored.element in ("bf16", "f16") else "f32"
        ctx.declined("int8", op, f"{w} is not an integer encoding; its input is read as {form}")
        return None if form == "f32" else parse_encoding(form)


def _refuse(x: OperandForm, form: ContractionForm, w: str, stored: Encoding | None) -> NoReturn:
    """The groups on both sides do not fit each other."""
    raise RefusedError(
        f"{f'its groups of {form.block}' if form.block else 'one row'} cannot be combined with groups of "
        f"{x.block} of the activations",
        f"{w} as {stored}",
        "use activations without a group, or a group that is a multiple of the weights'",
    )


def _with(operands: tuple[str, ...], n: int, new: str) -> tuple[str, ...]:
    return (*operands[:n], new, *operands[n + 1 :])
