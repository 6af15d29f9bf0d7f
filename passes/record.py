"""The record of a run of passes: every stage as an IR object, with what the pass was told, noted and took.

In: what the driver saw. Out: stages to look up, their texts, costs, and the history of every op down to the
calls that it became. Texts are printed when they are requested. Independent of what a pass does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import sympy

from tilewright.ir.graph.core import Location, Module, Op
from tilewright.ir.ops.base import find_op
from tilewright.ir.plan.core import Call, Program
from tilewright.ir.text.graph_printer import print_module
from tilewright.ir.text.plan_printer import print_program
from tilewright.ir.text.tile_printer import print_kernels
from tilewright.ir.types import as_dim
from tilewright.passes.base import IR, Note, PassError

#: the name of the stage that a pipeline starts from
INPUT = "input"


def print_ir(ir: IR) -> str:
    """The text of a graph module or of a program."""
    return print_module(ir) if isinstance(ir, Module) else print_program(ir)


@dataclass(frozen=True)
class Stage:
    """The IR after a pass. `made_by`: the pass with its options, as pipelines write it (empty: what came in);
    `seconds`: what the pass took; `notes`: what it did and declined."""

    name: str
    ir: IR
    made_by: str = ""
    seconds: float = 0.0
    notes: tuple[Note, ...] = ()

    @cached_property
    def text(self) -> str:
        """As `dump` prints it, and parsers read it."""
        return print_ir(self.ir)

    @property
    def form(self) -> str:
        """`graph`, or `plan`: tile programs and the calls of them."""
        return "graph" if isinstance(self.ir, Module) else "plan"

    @cached_property
    def kernels(self) -> str:
        """The text of its tile programs; empty for graphs."""
        return print_kernels(self.ir.kernels) if isinstance(self.ir, Program) else ""

    def cost(self) -> Mapping[str, int | sympy.Expr]:
        """Operations of arithmetic that each graph takes, as the records of its ops say: in its symbols and
        CONTEXT."""
        return {g.name: _cost(self.ir, g.ops) for g in self.ir.graphs} if isinstance(self.ir, Module) else {}


def _cost(module: Module, ops: tuple[Op, ...]) -> int | sympy.Expr:
    types = {f"@{w.name}": w.type for w in module.weights}
    types |= {f"%{v.name}": v.type for g in module.graphs for v in g.values().values()}
    total: sympy.Expr = sympy.Integer(0)
    for op in ops:
        cost = find_op(op.name).cost
        if cost is not None:
            total += sympy.sympify(cost([types[o] for o in op.operands if o in types], dict(op.attrs)))
    return as_dim(total)


@dataclass(frozen=True)
class Origin:
    """What an op was made of: its line in the model's source, and the passes that made or changed it, in
    order."""

    value: str
    op: str
    loc: Location | None
    passes: tuple[str, ...]

    def __str__(self) -> str:
        where = self.loc.text if self.loc else "no line of the model"
        return f"%{self.value} = {self.op}: {where}" + "".join(f" -> {p}" for p in self.passes)


@dataclass(frozen=True)
class Record:
    """A run of passes, stage by stage; the first stage is what came in."""

    stages: tuple[Stage, ...]

    @property
    def ir(self) -> IR:
        """What the last pass made."""
        return self.stages[-1].ir

    @property
    def module(self) -> Module:
        """The result as graphs; PassError if it was lowered."""
        if not isinstance(self.ir, Module):
            message = "the pipeline ended with a lowered program, but graphs are expected"
            raise PassError(message, "pipeline", "omit `lower`")
        return self.ir

    @property
    def program(self) -> Program:
        """The result as a program; PassError if it was not lowered."""
        if not isinstance(self.ir, Program):
            message = "the pipeline ended with graphs, but a lowered program is expected"
            raise PassError(message, "pipeline", "add `lower`")
        return self.ir

    @property
    def notes(self) -> tuple[Note, ...]:
        """What all passes did and declined, in order."""
        return tuple(n for s in self.stages for n in s.notes)

    def stage(self, name: str) -> Stage:
        """The last stage of this name; KeyError names those there are."""
        for s in reversed(self.stages):
            if s.name == name:
                return s
        raise KeyError(f"no stage {name!r}; the stages are {', '.join(s.name for s in self.stages)}")

    def then(self, stage: Stage) -> Record:
        """The same with one more stage."""
        return replace(self, stages=(*self.stages, stage))

    @property
    def graphs(self) -> Module:
        """The last stage that still is graphs."""
        return next(s.ir for s in reversed(self.stages) if isinstance(s.ir, Module))

    # -------------------------------------------------------------- where things come from
    def origins(self) -> tuple[Origin, ...]:
        """Every op of the last graphs: where in the model it stands, and which passes touched it."""
        return tuple(origin(op) for g in self.graphs.graphs for op in g.ops)

    def origins_of(self, plan: str, call: Call) -> tuple[Origin, ...]:
        """The ops that a call of a plan computes: those of the region that its results belong to. Empty for a
        copy that lowering added."""
        graph = self.graphs.graph(plan)
        made, kernel = graph.producers(), self.program.kernel(call.kernel)
        written = set(kernel.written())
        results = [a[1:] for a, p in zip(call.args, kernel.params, strict=True) if p.name in written]
        ops = [made[r] for r in results if r in made]
        regions = {op.region for op in ops if op.region is not None}
        return tuple(origin(op) for op in graph.ops if op in ops or op.region in regions)


def origin(op: Op) -> Origin:
    """The history that an op carries."""
    return Origin(op.results[0].name if op.results else "", op.name, op.loc, op.passes)


def stamped(before: IR, after: IR, pass_name: str) -> IR:
    """`after` with the pass named in the history of every op that it made: those whose results have names
    that no value had before. Passes name themselves where they change an op."""
    if not isinstance(before, Module) or not isinstance(after, Module):
        return after
    old = {r.name for g in before.graphs for op in g.ops for r in op.results}

    def mark(op: Op) -> Op:
        new = any(r.name not in old for r in op.results)
        return replace(op, passes=(*op.passes, pass_name)) if new and pass_name not in op.passes else op

    graphs = tuple(replace(g, ops=tuple(map(mark, g.ops))) for g in after.graphs)
    return after if graphs == after.graphs else replace(after, graphs=graphs)
