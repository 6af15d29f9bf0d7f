"""The lowering pass: regions to kernels, values to buffers, the graph to a plan.

In: a module with fused graphs. Out: `Program`. If `fuse` ran just before, its regions and the kernels that it
built for them are used; else `legality` settles the regions here. An op that has no kernel at all is an error
naming every such op and its source lines at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tilewright.backends.base import Backend, KernelUse
from tilewright.backends.registry import backend, default_backend
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.graph.core import Graph, Location, Module, Op, Value
from tilewright.ir.ops.base import counted_in
from tilewright.ir.plan.core import Call, Plan, PlanBuffer, Program
from tilewright.ir.text.tile_printer import print_kernel
from tilewright.ir.tile.core import Kernel, Schedule
from tilewright.passes.lower.dims import RunTimeSize, nbytes
from tilewright.passes.lower.encode import copy_of
from tilewright.passes.lower.job import Built
from tilewright.passes.lower.legality import Explain, Settled, settle
from tilewright.passes.lower.record import Form, form_of
from tilewright.passes.lower.regions import Region


@dataclass
class Lowering:
    """Kernels found so far, by structure; and why regions were taken apart."""

    module: Module
    explain: Explain
    backends: tuple[Backend, ...]
    settled_before: Mapping[str, object]
    kernels: dict[Kernel, str] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    forms: dict[str, Kernel] = field(default_factory=dict)
    #: schedules of backends for kernels seen before: layers repeat theirs, and each request verifies the
    #: kernel
    wanted: dict[tuple[Kernel, KernelUse], tuple[Schedule, ...]] = field(default_factory=dict)

    def call(self, built: Built, source: str) -> Call:
        """The call of a kernel: equal tile programs share one kernel, also if they name their sizes
        differently."""
        key = replace(built.kernel, name="", schedules=self.schedules(built))
        if key not in self.kernels and not built.when:
            key = self.forms.setdefault(_form(key), key)
        if key not in self.kernels:
            base = re.sub(r"\W", "_", built.kernel.name)
            n = self.names[base] = self.names.get(base, 0) + 1
            self.kernels[key] = base if n == 1 else f"{base}_{n}"
        symbols = tuple((name, d) for name, (_, d) in zip(key.symbols, built.symbols, strict=True))
        return Call(self.kernels[key], built.args, symbols, built.when, source)

    def schedules(self, built: Built) -> tuple[Schedule, ...]:
        """The template's own schedules, then those of each backend."""
        kernel = replace(built.kernel, name="")
        if (kernel, built.use) not in self.wanted:
            asked = (b.schedules(built.kernel, built.use) for b in self.backends)
            all_of_them = [*kernel.schedules, *(s for found in asked for s in found)]
            self.wanted[kernel, built.use] = tuple(dict.fromkeys(all_of_them))
        return self.wanted[kernel, built.use]


def _form(kernel: Kernel) -> str:
    """The kernel's text with its symbols numbered."""
    text = print_kernel(kernel)
    for n, name in enumerate(kernel.symbols):
        text = re.sub(rf"(?<![%@\w]){re.escape(name)}\b", f"#{n}", text)
    return text


def lower(
    module: Module,
    explain: Explain = lambda why: None,
    backends: Sequence[Backend] | None = None,
    settled_before: Mapping[str, object] | None = None,
) -> Program:
    """Every graph of the module as a plan over shared kernels, with the schedules of `backends` (None: the
    default backend alone). `settled_before`: by graph name, reused where it still fits. Raises
    UnsupportedError naming all ops without a kernel.
    """
    asked = (backend(default_backend()),) if backends is None else backends
    state = Lowering(module, explain, tuple(asked), settled_before or {})
    plans = tuple(_lower_graph(state, g) for g in module.graphs)
    kernels = tuple(replace(k, name=n) for k, n in state.kernels.items())
    used = {a[1:] for p in plans for c in p.calls for a in c.args if a[0] == "@"}
    weights = tuple(w for w in module.weights if w.name in used)
    return Program(kernels, plans, weights, module.states, module.symbols, module.meta)


def _lower_graph(state: Lowering, graph: Graph) -> Plan:
    asked = _copy_view_outputs(state.module, graph)
    settled = state.settled_before.get(graph.name)
    if not isinstance(settled, Settled) or not settled.fits(state.module, asked):
        settled = settle(state.module, asked, state.explain)
    if settled.problems:
        raise _no_kernel(settled.graph, settled.problems)
    return _plan(state, settled.graph, settled.regions)


class NoKernel(UnsupportedError):
    """Ops that no kernel computes, all at once. `problems`: each op's name, the reason, and the place of the
    model that it comes from (None: unknown)."""

    problems: tuple[tuple[str, str, Location | None], ...] = ()


def _no_kernel(graph: Graph, problems: Sequence[tuple[Op, Exception]]) -> NoKernel:
    lines: dict[tuple[str, str], list[str]] = {}
    for op, why in problems:
        where = loc.text if (loc := _place_of(graph, op)) else ""
        lines.setdefault((op.name, str(why)), []).append(where)
    text = "\n".join(
        f"  {name} x{len(places)}: {why}" + (f" ({places[0]})" if places[0] else "")
        for (name, why), places in lines.items()
    )
    hint = "write the model with supported ops"
    if any(isinstance(why, RunTimeSize) for _, why in problems):
        hint = "leave that size out of `dynamic_shapes`: compile for a fixed one, and pad the inputs to it"
    error = NoKernel(f"no kernel for these ops:\n{text}", "lowering", hint)
    error.problems = tuple((op.name, str(why), _place_of(graph, op)) for op, why in problems)
    return error


def _place_of(graph: Graph, op: Op) -> Location | None:
    """Where an op stands in the model; for an op that a pass made, the place of the nearest op before or
    after it. None if no op has one."""
    made = {f"%{r.name}": o for o in graph.ops for r in o.results}
    near, seen = [op], {id(op)}
    while near:
        if located := next((o.loc for o in near if o.loc), None):
            return located
        names = {f"%{r.name}" for o in near for r in o.results}
        around = [made[x] for o in near for x in o.operands if x in made] + [
            o for o in graph.ops if names & set(o.operands)
        ]
        near = [o for o in around if id(o) not in seen]
        seen |= {id(o) for o in near}
    return None


def _copy_view_outputs(module: Module, graph: Graph) -> Graph:
    """An output that is a view, an input or a weight gets a copy of its own: `decode` of a dense value is a
    plain store."""
    free = {r.name for op in graph.ops if form_of(op) in (Form.VIEW, Form.CONSTANT) for r in op.results}
    ops = list(graph.ops)
    outputs: list[str] = []
    values, weights = graph.values(), module.weight_map()
    inputs = {v.name for v in graph.inputs}
    seen: set[str] = set()
    for o in graph.outputs:
        if o[0] == "@" or o[1:] in free or o[1:] in inputs or o in seen:
            name = f"{o[1:]}.out{len(outputs)}"
            held = values[o[1:]].type if o[0] == "%" else weights[o[1:]].type.with_(encoding=None)
            ops.append(copy_of(o, Value(name, held)))
            o = f"%{name}"
        seen.add(o)
        outputs.append(o)
    return replace(graph, ops=tuple(ops), outputs=tuple(outputs))


def _plan(state: Lowering, graph: Graph, calls: Sequence[tuple[Region, list[Built]]]) -> Plan:
    values = graph.values()
    most = {n: r.hi if r.hi is not None else 4096 for n, r in state.module.symbols}
    results = graph.results or tuple(o[1:] for o in graph.outputs)
    outputs = tuple(zip(results, graph.outputs, strict=True))
    buffers = tuple(
        PlanBuffer(name, values[name].type, nbytes(values[name].type, most))
        for region, _ in calls for name in region.outputs
    )  # fmt: skip
    lines = tuple(state.call(b, _source(region)) for region, built in calls for b in built)
    counted = tuple((name, op.operands[-1]) for op in graph.ops for name in counted_in((op,)))
    return Plan(graph.name, graph.inputs, outputs, buffers, lines, counted=counted)


def _source(region: Region) -> str:
    loc = next((op.loc for op in region.ops if op.loc), None)
    return f"{loc.file}:{loc.line} {loc.scope}".strip() if loc else ""
