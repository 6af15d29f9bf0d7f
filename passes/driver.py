"""Runs pipelines: order, verification, checks by interpretation, dumps and explanations around every pass.

In: a module or program and passes. Out: the record of what they made of it. All of it works on every pass
because the driver does it. Independent of what a pass does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tilewright.ir.errors import TilewrightError, VerifyError
from tilewright.ir.graph.core import Module
from tilewright.ir.graph.random_values import RandomWeights, random_inputs, signatures
from tilewright.ir.graph.verify import verify_module
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.interp.kv_cache import InterpStates
from tilewright.ir.interp.plan import PlanRunner
from tilewright.ir.ops.base import Array
from tilewright.ir.plan.core import Program
from tilewright.ir.plan.verify import verify_program
from tilewright.ir.tile.verify import verify_kernel
from tilewright.ir.weights.sources import Weights
from tilewright.passes.base import IR, AnyPass, CheckCase, Note, PassContext, PassError, parse_pipeline
from tilewright.passes.facts import FACTS, check_order, observed
from tilewright.passes.record import INPUT, Record, Stage, stamped

#: allowed differences of a lowered program from its module, as shares of the largest value: f32 throughout,
#: or narrower
EXACT, NARROW = 1e-4, 5e-3


class CheckError(TilewrightError):
    """A pass changed what a graph computes by more than its stated tolerance."""

    kind = "check error"


@dataclass(frozen=True)
class Options:
    """What the driver does around each pass. `print_after`: pass names, `*` for all. `dump`: a folder for
    numbered stages (default: TW_DUMP). `weights`: for checking; random ones by default."""

    verify_each: bool = False
    check_each: bool = False
    print_after: tuple[str, ...] = ()
    dump: Path | None = None
    weights: Weights | None = None
    log: Callable[[str], None] = print


def verify_ir(ir: IR) -> None:
    """Raise VerifyError if a rule of this form of IR is broken."""
    if isinstance(ir, Module):
        verify_module(ir)
        return
    for k in ir.kernels:
        verify_kernel(k)
    verify_program(ir)


def run_passes(
    ir: IR,
    pipeline: str | Sequence[AnyPass],
    options: Options | None = None,
    ctx: PassContext | None = None,
    ends: frozenset[str] = frozenset(),
) -> Record:
    """Run a pipeline on IR of any stage. `ends`: facts that must hold after it. Raises PassError before
    anything runs if a pass is out of place, what passes raise, and VerifyError and CheckError naming the
    pass."""
    passes = parse_pipeline(pipeline) if isinstance(pipeline, str) else tuple(pipeline)
    options, ctx = options or Options(), ctx or PassContext()
    check_order(passes, ir, ends)
    shown = _Shown(options)
    stages = [shown.stage(Stage(INPUT, ir))]
    for p in passes:
        stages.append(shown.stage(_step(p, stages[-1].ir, ctx)))
        if options.verify_each:
            verify_after(p, stages[-1].ir)
        if options.check_each:
            check_pass(p, stages[-2].ir, stages[-1].ir, options.weights, ctx.seed)
    return Record(tuple(stages))


def _step(p: AnyPass, ir: IR, ctx: PassContext) -> Stage:
    """One pass, with the notes it made and the time it took."""
    ctx.pass_name, seen, began = p.name, len(ctx.notes), time.perf_counter()
    after = stamped(ir, p.apply(ir, ctx), p.name)
    return Stage(p.name, after, str(p), time.perf_counter() - began, tuple(ctx.notes[seen:]))


class _Shown:
    """Prints and dumps stages."""

    def __init__(self, options: Options) -> None:
        folder = os.environ.get("TW_DUMP")
        self.options = options
        self.dump = options.dump or (Path(folder) if folder else None)
        self.count = 0

    def stage(self, stage: Stage) -> Stage:
        wanted = stage.name in self.options.print_after or (
            "*" in self.options.print_after and self.count > 0
        )
        if self.dump is not None:
            self.dump.mkdir(parents=True, exist_ok=True)
            (self.dump / f"{self.count:03}_{stage.name}.ir").write_text(stage.text, "utf-8")
        if wanted:
            self.options.log(f"# after {stage.name}\n{stage.text}")
        self.count += 1
        return stage


def explain(notes: Iterable[Note], pass_name: str = "*") -> str:
    """The notes of one pass (or all), a line each."""
    return "".join(f"{n}\n" for n in notes if pass_name in ("*", n.pass_name))


def verify_after(p: AnyPass, ir: IR) -> None:
    """Verify what a pass made, and that what it says to give holds; the error names the pass."""
    try:
        verify_ir(ir)
    except VerifyError as e:
        e.where = f"after {p}: {e.where}"
        raise
    for fact in sorted(p.gives & FACTS.keys()):
        if not observed(ir, fact):
            raise PassError(f"gives {fact!r} ({FACTS[fact].words}), which does not hold after it", p.name)


# ------------------------------------------------------------------ check-each
def check_pass(p: AnyPass, before: IR, after: IR, weights: Weights | None = None, seed: int = 0) -> None:
    """Interpret every graph or plan before and after on equal random inputs; CheckError names pass, graph,
    result and difference. A lowered program runs on the tile interpreter."""
    known = before if isinstance(before, Module) else signatures(before)
    weights = weights or RandomWeights(seed).learn(known)
    lowered = isinstance(before, Module) and isinstance(after, Program)
    tolerance = tolerance_of(known) if lowered else p.tolerance
    for g in known.graphs:
        inputs = random_inputs(known, g.name, seed)
        case = None
        if isinstance(before, Module) and isinstance(after, Module):
            case = p.adapt(before, after, g.name, inputs)
        case = case or CheckCase(g.name, inputs, lambda results: results)
        want = interpret(before, g.name, inputs, weights)
        got = case.back(interpret(after, case.graph, case.inputs, weights))
        compare_results(p, g.name, case.front(want), got, tolerance)


def interpret(ir: IR, name: str, inputs: Mapping[str, Array], weights: Weights) -> dict[str, Array]:
    """Results of a graph or plan from empty caches, by the interpreter of its form."""
    if isinstance(ir, Program):
        return PlanRunner(ir, weights).run(name, inputs)
    return Interpreter(ir, weights).run(name, inputs, InterpStates(ir.states))


def tolerance_of(module: Module) -> float:
    """How far a lowered module may differ: more if a weight, a cache or a value is stored narrower than f32,
    because kernels round what they multiply to that."""
    values = [r.type.encoding for g in module.graphs for op in g.ops for r in op.results]
    caches = [c.encoding for s in module.states for c in (s.keys, s.values)]
    stored = [*(w.type.encoding for w in module.weights), *values, *caches]
    return NARROW if any(e is not None and not str(e).startswith("f32") for e in stored) else EXACT


def compare_results(
    p: AnyPass, graph: str, want: Mapping[str, Array], got: Mapping[str, Array], tolerance: float | None
) -> None:
    """Results that both sides have, within a tolerance (None: shapes only)."""
    for name in want:
        where = f"{p}: graph @{graph}, result {name}"
        if name not in got:
            continue
        if want[name].shape != got[name].shape:
            raise CheckError(f"shape {got[name].shape}, expected {want[name].shape}", where)
        if tolerance is not None:
            share = difference(want[name], got[name])
            if not share <= tolerance:
                message = f"differs by {share:.3g} of its largest value, allowed {tolerance:.3g}"
                raise CheckError(message, where, "run with --print-ir-after to see the result of the pass")


def difference(want: Array, got: Array) -> float:
    """Largest |want - got| as a share of the largest finite |want| (equal infinities and NaNs count as
    equal)."""
    a, b = np.asarray(want, np.float64), np.asarray(got, np.float64)
    if a.size == 0:
        return 0.0
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    gap = np.where(same, 0.0, np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b)))
    size = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    return float(np.where(np.isnan(gap), np.inf, gap).max() / (size or 1.0))
