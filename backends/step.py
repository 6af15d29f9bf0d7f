"""The step of a language model as the runtime calls it: its inputs, symbols and limits, checked.

In: a program. Out: numbers that the library and the manifest state, or PlanError. Independent of how a plan
is rendered.
"""

from __future__ import annotations

from tilewright.ir.errors import RefusedError
from tilewright.ir.plan.core import UNBOUNDED, Plan, Program, plan_symbols
from tilewright.ir.plan.step import STEP, STEP_INPUTS, STEP_SYMBOLS
from tilewright.ir.types import SymbolRange, TensorType, tensor, type_text


class PlanError(RefusedError):
    """A plan that cannot be rendered: what, in which call, and what was expected."""


def step_limits(program: Program) -> dict[str, int]:
    """What one step may hold: `vocab` (ids below it), `columns` of the logits, `context`, `max_tokens`,
    `max_rows`; all 0 if the program has no step."""
    plan = next((p for p in program.plans if p.name == STEP), None)
    if plan is None:
        return dict.fromkeys(("vocab", "columns", "context", "max_tokens", "max_rows"), 0)
    check_step(program)
    ranges = dict(program.symbols)
    contexts = [s.context for s in program.states]
    told = "context" in dict(program.meta) or not contexts
    contexts += [_metadata(program, "context")] if told else []  # caches have room for whole slices
    columns = int(str(output_type(plan, plan.outputs[0][1]).shape[-1]))
    tokens = upper(ranges["T"])
    return {
        "vocab": _metadata(program, "vocab", columns),
        "columns": columns,
        "context": min(contexts),
        "max_tokens": tokens,
        "max_rows": min(upper(ranges["R"]), tokens),
    }


def length_switches(program: Program) -> tuple[int, ...]:
    """Lengths beyond which other rotary factors apply to a whole sequence, so that its tokens must be
    processed again."""
    found = dict(program.meta).get("switches", ())
    if isinstance(found, tuple | list) and all(type(n) is int and 0 < n < 1 << 31 for n in found):
        return tuple(found)
    raise PlanError(f"meta switches: expected numbers of positions, got {found!r:.60}")


def check_step(program: Program) -> None:
    """The step is what the runtime calls: its inputs, its symbols, one row of logits for each row
    requested.
    """
    plan = next((p for p in program.plans if p.name == STEP), None)
    if plan is None:
        return
    known = {n for n, _ in plan_symbols(program)}
    wrong = [
        v for v in plan.inputs if v.name not in STEP_INPUTS or v.type != tensor("i32", *STEP_INPUTS[v.name])
    ]
    if wrong or len(plan.outputs) != 1 or not _is_logits(output_type(plan, plan.outputs[0][1])):
        names = ", ".join(f"{v.name}: {type_text(v.type)}" for v in plan.inputs)
        want = ", ".join(f"{n}: {type_text(tensor('i32', *shape))}" for n, shape in STEP_INPUTS.items())
        raise PlanError(
            f"plan @step: expected inputs among {want} and one output f32[R, N], got ({names}) and "
            f"{plan.outputs}"
        )
    if not {"T", "R"} <= known <= set(STEP_SYMBOLS):
        raise PlanError(
            f"plan @step: expected symbols T, R and others among {', '.join(STEP_SYMBOLS)}, got "
            f"{', '.join(known)}"
        )


def _is_logits(t: TensorType) -> bool:
    return t.rank == 2 and t == tensor("f32", "R", t.shape[1]) and isinstance(t.shape[1], int)


def _metadata(program: Program, key: str, default: object = None) -> int:
    """A positive number in the program's metadata."""
    value = dict(program.meta).get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
        raise PlanError(f"meta {key}: expected an integer from 1 and below 2^31, got {value!r}")
    return value


def output_type(plan: Plan, ref: str) -> TensorType:
    """The type of a buffer that the plan returns. Raises PlanError if the caller's memory cannot take its
    place.
    """
    name = ref.lstrip("%")
    found = next((b.type for b in plan.buffers if b.name == name), None)
    if found is None:
        raise PlanError(
            f"plan @{plan.name}: output %{name} is not a buffer; copy an input that is returned into a buffer"
        )
    if sum(r.lstrip("%") == name for _, r in plan.outputs) > 1:
        raise PlanError(f"plan @{plan.name}: buffer %{name} is returned twice; copy it into a second one")
    return found


def upper(r: SymbolRange) -> int:
    """The largest value of a symbol, or the one that lowering assumes if it has no upper bound."""
    return UNBOUNDED if r.hi is None else r.hi
