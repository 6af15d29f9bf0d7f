"""select-rows: from the last attention on, only the rows whose logits are requested are computed.

In: a step graph over T tokens. Out: the same with input `rows`; every value that the tail reads from the body
is cut to those rows. The tail is all that no attention waits for: past the last attention every op is
token-local, so prefill computes one row of the last layer's MLP and of the head, not T.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import sympy

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Location, Module, Op
from tilewright.ir.graph.live import tidy
from tilewright.ir.ops.base import OPS, Array
from tilewright.ir.plan.step import MOST_TOKENS, STEP
from tilewright.ir.types import TensorType, as_dim, symbol, tensor
from tilewright.passes.axis_roles import worked_axes
from tilewright.passes.base import CheckCase, Pass, PassContext
from tilewright.passes.lower.record import Form, form_of
from tilewright.passes.patterns import View


@dataclass(frozen=True)
class SelectRows(Pass):
    """Compute the ops after the last attention only for the requested rows."""

    name: ClassVar[str] = "select-rows"
    needs: ClassVar[frozenset[str]] = frozenset({"incremental", "unfused"})
    gives: ClassVar[frozenset[str]] = frozenset({"row-selected"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"canonical", "incremental"})

    graph: str = STEP
    max_rows: int = MOST_TOKENS

    def run(self, module: Module, ctx: PassContext) -> Module:
        graph = module.graph(self.graph)
        state = View(module, graph)
        token, row = symbol("T"), symbol("R")
        tail = tail_ops(state, token)
        b = GraphBuilder.over(module, graph, self.name)
        b.symbol("R", 0, self.max_rows)
        b.add_input("rows", tensor("i32", "R"))
        inside = {id(op) for op in tail}
        cuts: dict[str, str] = {}
        made = {f"%{r.name}" for op in tail for r in op.results}
        for op in graph.ops:
            if id(op) not in inside:
                b.copy(op)
                continue
            for o in op.operands:
                if o not in made and o not in cuts and carries(state, o, token):
                    cuts[o] = _cut(b, state, o, op.loc, token, row)
                    ctx.applied("cut", op, f"{o} to the rows asked for")
            _copy_cut(b, op, cuts, token, row)
        for n, o in enumerate(graph.outputs):
            new = b.mapped(o)
            if o not in made and carries(state, o, token):
                new = b.op("select_rows", new, "%rows")
            b.output(new, graph.results[n] if graph.results else None)
        return tidy(b.module())

    def adapt(
        self, before: Module, after: Module, graph: str, inputs: Mapping[str, Array]
    ) -> CheckCase | None:
        if graph != self.graph:
            return None
        tokens = next(
            x
            for v in before.graph(graph).inputs
            if v.type.shape[:1] == (symbol("T"),)
            for x in [inputs[v.name]]
        )
        rows = np.arange(len(tokens), dtype=np.int32)
        return CheckCase(graph, {**inputs, "rows": rows}, lambda results: results)


def carries(view: View, operand: str, token: sympy.Expr) -> bool:
    t = view.types.get(operand)
    return t is not None and t.rank > 0 and t.shape[0] == token


def tail_ops(view: View, token: sympy.Expr) -> list[Op]:
    """Ops over tokens that no cache waits for, and no op that works along the token axis."""
    graph, producers = view.graph, view.producers
    early: set[int] = set()
    work = [op for op in graph.ops if OPS[op.name].state or _mixes(view, op, token)]
    while work:
        op = work.pop()
        if id(op) in early:
            continue
        early.add(id(op))
        work += [producers[o[1:]] for o in op.operands if o[0] == "%" and o[1:] in producers]
    return [op for op in graph.ops if id(op) not in early and any(_over(r.type, token) for r in op.results)]


def _mixes(view: View, op: Op, token: sympy.Expr) -> bool:
    """Whether a token's result depends on other tokens, by the op's axis roles: attention over a sequence
    does."""
    return any(
        carries(view, o, token) and 0 in worked_axes(op, view.type, n) for n, o in enumerate(op.operands)
    )


def _over(t: TensorType, token: sympy.Expr) -> bool:
    return any(not isinstance(d, int) and token in d.free_symbols for d in t.shape)


def _cut(
    b: GraphBuilder, view: View, operand: str, loc: Location | None, token: sympy.Expr, row: sympy.Expr
) -> str:
    """The rows of a value that are requested; one number throughout is made anew, for no kernel can pick from
    what is nowhere."""
    made = view.producer(operand)
    if made is None or form_of(made) is not Form.CONSTANT or "value" not in dict(made.attrs):
        return b.op("select_rows", b.mapped(operand), "%rows", loc=loc)
    attrs: dict[str, Any] = {k: _renamed(v, token, row) for k, v in made.attrs}
    return b.op(made.name, loc=made.loc, **attrs)


def _copy_cut(b: GraphBuilder, op: Op, cuts: Mapping[str, str], token: sympy.Expr, row: sympy.Expr) -> None:
    """The op over rows: operands cut, dimensions in attributes renamed."""
    changes = {k: _renamed(v, token, row) for k, v in op.attrs}
    changes = {k: v for k, v in changes.items() if v != dict(op.attrs)[k]}
    operands = tuple(cuts.get(o, o) for o in op.operands)
    b.copy(replace(op, operands=operands), **changes)


def _renamed(value: object, token: sympy.Expr, row: sympy.Expr) -> object:
    if isinstance(value, tuple):
        return tuple(_renamed(v, token, row) for v in value)
    return as_dim(value.subs(token, row)) if isinstance(value, sympy.Expr) else value
