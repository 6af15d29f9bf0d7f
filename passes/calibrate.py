"""calibrate: weights solved on samples, entered into the module as sources of its weights.

In: a captured graph whose weights are encoded, some by solvers that must see inputs; a calibrator in the
context, which runs the graph on samples. Out: the same graph; solved weights name the streams that were
found, rescaled ones the factors. Sources name tensors in files of the work folder, so that this stage and all
later ones can be read again. Which values are good is the solvers' business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from tilewright.ir.graph.core import Apply, Module, Weight
from tilewright.ir.weights.solved import Solution, solver_text, values_of, with_streams
from tilewright.passes.base import Pass, PassContext


@dataclass(frozen=True)
class Calibrate(Pass):
    """Solve weights on samples: enter the streams that solvers found, and the channel factors that awq and
    smoothquant chose."""

    name: ClassVar[str] = "calibrate"
    needs: ClassVar[frozenset[str]] = frozenset({"encoded-weights", "sequences", "unfused"})
    tolerance: ClassVar[float | None] = None

    def run(self, module: Module, ctx: PassContext) -> Module:
        if ctx.calibrator is None:
            ctx.declined(
                "solve", "the module", "no samples are given, so solvers that need some have not run"
            )
            return module
        found = ctx.calibrator(module, ctx)
        for name in found:
            ctx.applied("rescale" if found[name].muls else "solve", f"@{name}")
        return entered(module, found)


def entered(module: Module, found: Mapping[str, Solution]) -> Module:
    """The module with solutions in the sources of its weights, by name."""
    weights = (_changed(w, found[w.name]) if w.name in found else w for w in module.weights)
    return replace(module, weights=tuple(weights))


def _changed(w: Weight, found: Solution) -> Weight:
    """Factors go inside what the solver stores, streams beside it."""
    solver, source = solver_text(w), values_of(w.source)
    if found.muls:
        source = Apply("mul", (source, *found.muls))
    if found.add is not None:
        source = Apply("add", (source, found.add))
    return replace(w, source=with_streams(source, solver, found.streams) if solver else source)
