"""Facts about a stage that passes need and give, and the check that a pipeline runs them in order.

In: passes, and the IR that the first of them gets. Out: what holds after the last; PassError for a pass whose
needs do not hold at its place. Whether a fact holds of a text of any stage is read from the IR itself, so the
order of a pipeline is checked wherever it starts. Knows the forms of the IR, and of passes only their names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.plan.core import Program
from tilewright.ir.plan.step import STEP, STEP_INPUTS
from tilewright.ir.tile.expand import expand_encodings
from tilewright.ir.types import symbol, tensor
from tilewright.ir.weights.solved import solver_text
from tilewright.passes.base import IR, PASSES, AnyPass, PassContext, PassError, find_pass
from tilewright.passes.lower.record import lowering_of
from tilewright.passes.rules import rules_of
from tilewright.passes.weight_roles import EMBEDDING, OTHER, roles


@dataclass(frozen=True)
class Fact:
    """`words`: what holds, as messages say it; `holds`: whether it does, of a module or program."""

    words: str
    holds: Callable[[IR], bool]


def observed(ir: IR, name: str) -> bool:
    """Whether a fact holds of some IR; facts that are not in the table hold of none."""
    return name in FACTS and FACTS[name].holds(ir)


# ------------------------------------------------------------------ order
def check_order(pipeline: Sequence[AnyPass], ir: IR, ends: frozenset[str] = frozenset()) -> None:
    """PassError if a pass needs what neither holds of `ir` nor is given by a pass before it, or if a fact of
    `ends` does not hold after the last pass."""
    state = _State(ir, {}, {})
    for p in pipeline:
        for need in sorted(wanted(p)):
            if not state.holds(need):
                raise _out_of_place(p.name, need, state.ended.get(need))
        state.held |= dict.fromkeys(p.takes_away, False) | dict.fromkeys(p.gives, True)
        state.ended |= dict.fromkeys(p.takes_away - p.gives, p.name)
    for end in sorted(ends):
        if not state.holds(end):
            raise _out_of_place("the end of the pipeline", end, state.ended.get(end))


def wanted(p: AnyPass) -> frozenset[str]:
    """All that a pass needs: its own needs and the form of IR that it works on."""
    return p.needs | {p.works_on} if p.works_on else p.needs


@dataclass
class _State:
    """What is known at one place of a pipeline; `ended`: by fact, the last pass that took it away."""

    ir: IR
    held: dict[str, bool]
    ended: dict[str, str]

    def holds(self, fact: str) -> bool:
        if fact not in self.held:
            self.held[fact] = observed(self.ir, fact)
        return self.held[fact]


def _out_of_place(where: str, need: str, ended_by: str | None) -> PassError:
    words = f" ({FACTS[need].words})" if need in FACTS else ""
    givers = [n for n in sorted(PASSES) if need in find_pass(n).gives]
    put = f"put {' or '.join(givers)} before it" if givers else ""
    if ended_by is None:
        return PassError(f"needs {need!r}{words}, which no earlier pass provides", where, put)
    hint = " or ".join(x for x in (f"move it before {ended_by}", put and f"{put}, after {ended_by}") if x)
    return PassError(f"needs {need!r}{words}, which does not hold after {ended_by}", where, hint)


# ------------------------------------------------------------------ what facts say of the IR
def _ops(ir: IR) -> list[Op]:
    return [op for g in ir.graphs for op in g.ops] if isinstance(ir, Module) else []


def _takes_step(g: Graph) -> bool:
    """Whether some input is one that the runtime makes for a step."""
    return any(v.name in STEP_INPUTS and v.type == tensor("i32", "T") for v in g.inputs)


def _over_tokens(g: Graph) -> bool:
    return any(v.type.shape[:1] == (symbol("T"),) for v in g.inputs)


def _step(ir: IR) -> Graph | None:
    """The graph that serves a step from caches, if there is one."""
    return next((g for g in ir.graphs if g.name == STEP), None) if isinstance(ir, Module) else None


def _is_flat(ir: IR) -> bool:
    return isinstance(ir, Module) and _step(ir) is None and any(map(_over_tokens, ir.graphs))


def _is_sequences(ir: IR) -> bool:
    return isinstance(ir, Module) and _step(ir) is None and not any(map(_takes_step, ir.graphs))


def _is_incremental(ir: IR) -> bool:
    step = _step(ir)
    return step is not None and all(v.name != "rows" for v in step.inputs)


def _is_row_selected(ir: IR) -> bool:
    plans = ir.plans if isinstance(ir, Program) else [g for g in (_step(ir),) if g]
    return any(p.name == STEP and any(v.name == "rows" for v in p.inputs) for p in plans)


def _is_recognised(ir: IR) -> bool:
    if not isinstance(ir, Module):
        return False
    return any("recognise" in op.passes for op in _ops(ir)) or not _rewrites("recognise", ir)


def _rewrites(name: str, ir: IR) -> bool:
    """Whether a pass finds something to rewrite."""
    ctx = PassContext(pass_name=name)
    find_pass(name)().apply(ir, ctx)
    return any(note.applied for note in ctx.notes)


def _needs_no_cache(ir: IR) -> bool:
    """Whether no op is left that runs only over a cache: what has a cached form and no kernel."""
    waiting = (op for op in _ops(ir) if rules_of(op).cached is not None and lowering_of(op) is None)
    return isinstance(ir, Module) and not any(waiting)


def _unchanged_by(name: str, ir: IR) -> bool:
    """Whether a pass finds nothing to do."""
    return isinstance(ir, Module) and find_pass(name)().apply(ir, PassContext()) == ir


def _is_encoded(ir: IR) -> bool:
    if not isinstance(ir, Module):
        return False
    plain = {w.name for w in ir.weights if w.type.dtype == "f32" and w.type.encoding is None}
    return all(role in (OTHER, EMBEDDING) for name, role in roles(ir).items() if name in plain)


def _is_unsolved(ir: IR) -> bool:
    return isinstance(ir, Module) and all(solver_text(w) is None for w in ir.weights)


def _is_unfused(ir: IR) -> bool:
    return isinstance(ir, Module) and all(op.region is None for op in _ops(ir))


def _is_fused(ir: IR) -> bool:
    """Regions are numbered; in a graph of views and constants alone, there is nothing to number."""
    return isinstance(ir, Module) and (not _is_unfused(ir) or _unchanged_by("fuse", ir))


def _is_expanded(ir: IR) -> bool:
    return isinstance(ir, Program) and all(expand_encodings(k) == k for k in ir.kernels)


def _is_placed(ir: IR) -> bool:
    return isinstance(ir, Program) and all(b.offset >= 0 for p in ir.plans for b in p.buffers)


#: every fact that a pass of ours needs or a whole compile ends with
FACTS: dict[str, Fact] = {
    "graphs": Fact("graphs, not yet lowered", lambda ir: isinstance(ir, Module)),
    "program": Fact("tile programs and plans", lambda ir: isinstance(ir, Program)),
    "sequences": Fact("batch and time are axes of their own", _is_sequences),
    "flat-tokens": Fact("the tokens of a step lie along one axis", _is_flat),
    "incremental": Fact("graph @step reads caches and gives the logits of every token", _is_incremental),
    "row-selected": Fact("graph @step gives the logits of the rows asked for", _is_row_selected),
    "canonical": Fact("nothing is left to fold, merge or drop", partial(_unchanged_by, "canonicalize")),
    "recognised": Fact("norms, rotary embeddings and attention are single ops", _is_recognised),
    "no-attend": Fact("no attention over whole sequences is left", _needs_no_cache),
    "no-fwht": Fact("no online rotation is left", partial(_unchanged_by, "expand-fwht")),
    "no-token-choice": Fact("no choice of tokens is left", partial(_unchanged_by, "expand-tokens")),
    "encoded-weights": Fact("the weights of contractions have encodings", _is_encoded),
    "unsolved-weights": Fact("no weight names a solver yet", _is_unsolved),
    "unfused": Fact("no op belongs to a region yet", _is_unfused),
    "fused": Fact("ops are grouped into regions", _is_fused),
    "expanded": Fact("kernels decode what they load", _is_expanded),
    "placed": Fact("every temporary has its place in the arena", _is_placed),
}
