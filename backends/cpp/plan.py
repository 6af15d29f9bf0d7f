"""Execution plans as C++: constant tables of calls, one line per call, which the native runtime executes.

In: a program whose buffers are placed. Out: the generated part of a library that follows the kernels' source;
it includes `tw_runtime.h` last, so that the library exports `tilewright.h`. Independent of instruction sets
or of how kernels look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

from tilewright.backends.cpp.caches import cache_tables
from tilewright.backends.cpp.expr import render_affine, render_dim
from tilewright.backends.cpp.hazards import waits
from tilewright.backends.cpp.literals import c_comment, c_function, c_string
from tilewright.backends.cpp.render import pick_schedules
from tilewright.backends.cpp.target import Target
from tilewright.backends.step import PlanError, length_switches, output_type, step_limits, upper
from tilewright.backends.storage import (
    PlacedWeight,
    Stream,
    content_id,
    place_weights,
    sequence_bytes,
    state_streams,
)
from tilewright.ir.plan.core import (
    Call,
    Plan,
    Program,
    counted_after,
    counted_symbols,
    plan_symbols,
)
from tilewright.ir.plan.step import SLICE, STEP, STEP_INPUTS, STEP_SYMBOLS, block_rows
from tilewright.ir.tile.core import Condition, Kernel, Schedule
from tilewright.ir.types import BITS, SymbolRange, TensorType

OPS = ("<=", "<", ">=", ">", "==")


@dataclass
class Tables:
    """The flat tables that calls point into."""

    refs: list[str] = field(default_factory=list)
    dims: list[str] = field(default_factory=list)
    conditions: list[str] = field(default_factory=list)
    most_refs: int = 1
    most_dims: int = 1
    most_values: int = 1


@dataclass
class Scope:
    """What the names of one plan stand for while it is rendered. `values`: distinct dimension expressions, in
    order of first use."""

    level: str
    plan: Plan
    places: Mapping[str, PlacedWeight]
    streams: Mapping[str, int]
    symbols: Mapping[str, int]
    ranges: Mapping[str, SymbolRange]
    values: dict[str, int] = field(default_factory=dict)

    def value(self, d: object) -> int:
        text = render_dim(d, self.symbols)
        return self.values.setdefault(text, len(self.values))


def render_step(program: Program, target: Target | str, linkage: str = "static") -> str:
    """The generated source after the kernels. `linkage` `extern`: the kernels are in other files of the
    library."""
    level = target if isinstance(target, str) else target.name
    places, total = place_weights(program.weights)
    streams = [s for state in program.states for s in state_streams(state)]
    tables = Tables()
    by_name = {w.name: w for w in places}
    plans = [
        _render_plan(program, level, p, n, by_name, streams, tables) for n, p in enumerate(program.plans)
    ]
    parts = [
        _declare(program.kernels) if linkage == "extern" else "",
        *plans,
        _render_tables(program, tables),
    ]
    constants = _constants(program, level, total, streams, tables)
    return "\n".join(
        [
            "// ---- the plan",
            constants,
            *[p for p in parts if p],
            _step_glue(program),
            '#include "tw_runtime.h"',
            "",
        ]
    )


def library_source(kernels: str, program: Program, target: Target | str) -> str:
    """One whole library as one file: types, the kernels, the plan, and the benchmark of machine limits that
    `bench` runs."""
    return f'#include "tw_tables.h"\n{kernels}\n{render_step(program, target)}#include "tw_limits.h"\n'


def _declare(kernels: Sequence[Kernel]) -> str:
    parameters = "void* const* P, const int64_t* D, int64_t tid, int64_t nt"
    return "\n".join(f'extern "C" void {c_function(k.name)}({parameters});' for k in kernels)


# ------------------------------------------------------------------ one plan
def _render_plan(
    program: Program,
    level: str,
    plan: Plan,
    n: int,
    places: Mapping[str, PlacedWeight],
    streams: Sequence[Stream],
    t: Tables,
) -> str:
    symbols = plan_symbols(program)
    scope = Scope(
        level,
        plan,
        places,
        {s.name: i for i, s in enumerate(streams)},
        {s: i for i, (s, _) in enumerate(symbols)},
        dict(symbols),
    )
    barriers = waits(program, plan)
    calls = [_render_call(program, c, w, scope, t) for c, w in zip(plan.calls, barriers, strict=True)]
    inputs = [_render_io(v.name, v.type, scope) for v in plan.inputs]
    outputs = [_render_io(name, output_type(plan, ref), scope) for name, ref in plan.outputs]
    t.most_values = max(t.most_values, len(scope.values))
    body = "\n".join(f"  v[{i}] = {text};" for text, i in scope.values.items())
    return "\n".join([
        f"static void tw_values_{n}(const int64_t* s, int64_t* v) {{\n  (void)s, (void)v;\n{body}\n}}",
        f"static const tw_call tw_calls_{n}[] = {{\n" + "\n".join(calls or ["  {}"]) + "\n};",
        f"static const tw_io tw_inputs_{n}[] = {{{', '.join(inputs) or '{}'}}};",
        f"static const tw_io tw_outputs_{n}[] = {{{', '.join(outputs) or '{}'}}};",
        *_counted(program, scope, n),
    ])  # fmt: skip


def _counted(program: Program, scope: Scope, n: int) -> list[str]:
    """A table of the symbols that the plan counts, in the order in which they become known; no table if there
    are none."""
    plan = scope.plan
    found = sorted(zip(counted_after(program, plan), plan.counted, strict=True))
    rows = [
        f"{{{scope.symbols[name]}, {after + 1}, {_place(ref, scope, f'symbol {name}')}}}"
        for after, (name, ref) in found
    ]
    return [f"static const tw_counted tw_counted_{n}[] = {{{', '.join(rows)}}};"] if rows else []


def _render_call(program: Program, call: Call, wait: bool, scope: Scope, t: Tables) -> str:
    kernel = program.kernel(call.kernel)
    if len(call.args) != len(kernel.params):
        raise PlanError(
            f"call @{call.kernel}: expected {len(kernel.params)} arguments, got {len(call.args)}: "
            f"{', '.join(call.args)}"
        )
    bound = dict(call.symbols)
    if tuple(bound) != kernel.symbols:
        raise PlanError(
            f"call @{call.kernel}: expected values for ({', '.join(kernel.symbols)}) in this order, got "
            f"({', '.join(bound)})"
        )
    conditions = (*call.when, *_not_empty(kernel, bound, scope))
    refs, dims, conds = len(t.refs), len(t.dims), len(t.conditions)
    t.refs += [_place(a, scope, f"call @{call.kernel}") for a in call.args]
    t.dims += [str(scope.value(d)) for d in bound.values()]
    t.conditions += [
        _condition(replace(c, symbol=str(bound.get(c.symbol, c.symbol))), scope) for c in call.when
    ]
    t.conditions += [_condition(c, scope) for c in conditions[len(call.when) :]]
    t.most_refs, t.most_dims = max(t.most_refs, len(call.args)), max(t.most_dims, len(bound))
    flags = f"{str(wait).lower()}, {_parts(kernel, scope.level)}, {_blocks(kernel, bound, scope)}"
    numbers = f"{refs}, {len(call.args)}, {dims}, {len(bound)}, {conds}, {len(conditions)}, {flags}"
    note = c_comment(f"{', '.join(call.args)}{'  ' + call.source if call.source else ''}")
    return f"  {{{c_function(call.kernel)}, {numbers}}},  // {note}"


def _parts(kernel: Kernel, level: str) -> int:
    """Into how many parts a call with few rows is divided: the largest option `parts` of its schedules."""
    return max(dict(s.options).get("parts", 1) for s in pick_schedules(kernel, level))


def _blocks(kernel: Kernel, bound: Mapping[str, object], scope: Scope) -> int:
    """The index, among the plan's values, of the number of grid blocks that threads may share; schedules may
    use larger blocks, and so fewer."""
    each = dict.fromkeys(_shared_blocks(kernel, s, bound, scope) for s in pick_schedules(kernel, scope.level))
    text = reduce(lambda a, b: f"tw_max({a}, {b})", each)
    return scope.values.setdefault(text, len(scope.values))


def _shared_blocks(kernel: Kernel, schedule: Schedule, bound: Mapping[str, object], scope: Scope) -> str:
    names = schedule.threads.replace(",", " ").split() or [*schedule.order, *[a.var for a in kernel.grid]][:1]
    sizes = dict(schedule.sizes)
    factors = []
    for axis in [a for a in kernel.grid if a.var in names]:
        step = axis.step if isinstance(axis.step, int) else sizes.get(axis.step, 1)
        extent = render_affine(
            axis.extent, {n: render_dim(bound[n], scope.symbols) for n, _ in axis.extent.terms}
        )
        factors.append(f"(({extent} + {step - 1}) / {step})" if step > 1 else extent)
    return " * ".join(factors) or "1LL"


def _not_empty(kernel: Kernel, bound: Mapping[str, object], scope: Scope) -> tuple[Condition, ...]:
    """A grid over no instances does nothing: skip the call where a symbol that may be 0 makes an extent 0."""
    found: list[Condition] = []
    for name in dict.fromkeys(n for a in kernel.grid for n in a.extent.names):
        d = bound.get(name)
        if str(d) in scope.symbols and scope.ranges[str(d)].lo < 1:
            found.append(Condition(str(d), ">=", 1))
    return tuple(found)


def _condition(c: Condition, scope: Scope) -> str:
    if c.symbol not in scope.symbols:
        raise PlanError(
            f"condition {c.symbol} {c.op} {c.value}: unknown symbol; the program has "
            f"{', '.join(scope.symbols)}"
        )
    return f"{{{scope.symbols[c.symbol]}, {OPS.index(c.op)}, {c.value}LL}}"


def _place(arg: str, scope: Scope, where: str) -> str:
    """`{base, offset}` of an argument of `where`; outputs are written directly to the caller's memory."""
    plan, name = scope.plan, arg[1:]
    inputs = [v.name for v in plan.inputs]
    first = 2 + len(inputs)
    if arg[0] == "@" and name in scope.places:
        return f"{{1, {scope.places[name].offset}}}"
    if arg[0] == "@" and name in scope.streams:
        return f"{{{first + len(plan.outputs) + scope.streams[name]}, 0}}"
    if arg[0] == "%" and name in inputs:
        return f"{{{2 + inputs.index(name)}, 0}}"
    outputs = [ref.lstrip("%") for _, ref in plan.outputs]
    if arg[0] == "%" and name in outputs:
        return f"{{{first + outputs.index(name)}, 0}}"
    buffer = next((b for b in plan.buffers if b.name == name), None) if arg[0] == "%" else None
    if buffer is None:
        raise PlanError(
            f"{where}: argument {arg} is not an input, buffer, weight or state of plan @{plan.name}"
        )
    if buffer.offset < 0 or buffer.offset + buffer.nbytes > plan.arena_bytes:
        raise PlanError(
            f"plan @{plan.name}: buffer %{name} has no offset in the arena ({plan.arena_bytes} bytes); run "
            "plan-memory"
        )
    return f"{{0, {buffer.offset}}}"


def _render_io(name: str, t: TensorType, scope: Scope) -> str:
    dtype = t.dtype if t.encoding is None else str(t.encoding)
    if BITS.get(dtype, 0) < 8 or t.rank > 8:
        raise PlanError(
            f"plan @{scope.plan.name}: {name} must be a dense tensor of at most 8 axes at the boundary"
        )
    dims = [scope.value(d) for d in t.shape]
    product = " * ".join([f"{BITS[dtype] // 8}LL", *[render_dim(d, scope.symbols) for d in t.shape]])
    size = scope.values.setdefault(product, len(scope.values))
    return (
        f"{{{c_string(name)}, {c_string(dtype)}, {t.rank}, {{{', '.join(map(str, dims)) or '0'}}}, {size}}}"
    )


# ------------------------------------------------------------------ the program's tables and constants
def _table(kind: str, name: str, rows: Sequence[str]) -> str:
    lines = [", ".join(rows[i : i + 12]) for i in range(0, len(rows), 12)]
    return f"static const {kind} {name}[] = {{{(',' + chr(10) + '  ').join(lines) or '{}'}}};"


def _render_tables(program: Program, t: Tables) -> str:
    ranges = [f"{{{c_string(n)}, {r.lo}LL, {upper(r)}LL}}" for n, r in plan_symbols(program)]
    caches = cache_tables(program.states)
    plans = [
        f"{{{c_string(p.name)}, tw_calls_{n}, {len(p.calls)}, tw_inputs_{n}, {len(p.inputs)}, "
        f"tw_outputs_{n}, {len(p.outputs)}, "
        f"tw_values_{n}, {str(_stateful(program, p)).lower()}"
        f"{f', tw_counted_{n}, {len(p.counted)}' if p.counted else ''}}}"
        for n, p in enumerate(program.plans)
    ]
    return "\n".join([
        _table("tw_ref", "tw_refs", t.refs), _table("int32_t", "tw_dims", [*t.dims, "0"]),
        _table("tw_condition", "tw_conditions", t.conditions), _table("tw_range", "tw_ranges", ranges),
        _table("tw_digit", "tw_digits", caches.digits), _table("tw_piece", "tw_pieces", caches.pieces),
        _table("tw_part", "tw_row_parts", caches.parts), _table("tw_stream", "tw_streams", caches.streams),
        _table("tw_state", "tw_states", caches.states), _table("tw_plan", "tw_plans", plans),
    ])  # fmt: skip


def _stateful(program: Program, plan: Plan) -> bool:
    names = {s.name for state in program.states for s in state_streams(state)}
    return any(a[1:] in names for c in plan.calls for a in c.args if a[0] == "@")


def _constants(program: Program, level: str, total: int, streams: Sequence[Stream], t: Tables) -> str:
    limits = step_limits(program)
    arena = max((p.arena_bytes for p in program.plans), default=0)
    step = next((n for n, p in enumerate(program.plans) if p.name == STEP), -1)
    switches = length_switches(program)
    bases = 2 + len(streams) + max((len(p.inputs) + len(p.outputs) for p in program.plans), default=0)
    constants: dict[str, object] = {
        "LEVEL": c_string(level), "ID": c_string(content_id(program)), "STEP": step,
        "BLOCK": block_rows(program.symbols),
        "WEIGHTS": f"{total}LL", "ARENA": f"{arena + 64}LL",
        "SEQUENCE": f"{sum(map(sequence_bytes, program.states))}LL",
        **{k.upper(): v for k, v in limits.items()},
        "FOLLOWS": int(any(v.name == "length" for p in program.plans if p.name == STEP for v in p.inputs)),
        "OBSERVES": int(any(s.observed for s in program.states)), "NSTATES": len(program.states),
        "SHARES": int(any(s.shares for s in program.states)),
        "SELECTS": int(any(s.select for s in program.states)),
        "RECENT_ROWS": max((s.recent for s in program.states), default=0),
        "SLICE": SLICE, "SLICES": max((s.slices for s in program.states), default=0),
        "NSWITCHES": len(switches), "SWITCHES": ", ".join(map(str, (*switches, 0))),
        "NPLANS": len(program.plans), "NSYMBOLS": len(plan_symbols(program)), "NSTREAMS": len(streams),
        "MAX_REFS": t.most_refs, "MAX_DIMS": t.most_dims, "MAX_VALUES": t.most_values, "MAX_BASES": bases,
    }  # fmt: skip
    counted = len(counted_symbols(program))
    if counted:  # the last of the symbols
        constants["NGIVEN"] = len(plan_symbols(program)) - counted
    lines = [f"#define TW_{k} {v}" for k, v in constants.items()]
    helpers = [
        f"static inline int64_t tw_{f}(int64_t a, int64_t b) {{ return a {op} b ? a : b; }}"
        for f, op in (("max", ">"), ("min", "<"))
    ]
    return "\n".join([*lines, *[f"[[maybe_unused]] {h}" for h in helpers]])


def _step_glue(program: Program) -> str:
    """The functions by which tw_step binds the plan's symbols and orders its inputs."""
    plan = next((p for p in program.plans if p.name == STEP), None)
    if plan is None:
        return ""
    index = {n: i for i, (n, _) in enumerate(plan_symbols(program))}
    binds = "".join(f"  s[{index[n]}] = {n};\n" for n in STEP_SYMBOLS if n in index)
    order = "".join(f"  in[{i}] = {v.name};\n" for i, v in enumerate(plan.inputs))
    symbols = ", ".join(f"int64_t {n}" for n in STEP_SYMBOLS)
    arrays = ", ".join(f"const int32_t* {n}" for n in STEP_INPUTS)
    unused = "  " + ", ".join(f"(void){n}" for n in (*STEP_SYMBOLS,)) + ";\n"
    unread = "  " + ", ".join(f"(void){n}" for n in STEP_INPUTS) + ";\n"
    return (
        f"static void tw_bind_step(int64_t* s, {symbols}) {{\n{unused}{binds}}}\n"
        f"static void tw_order_step(const void** in, {arrays}) {{\n{unread}{order}}}"
    )
