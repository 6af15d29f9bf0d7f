"""One computation, four values: eager, Graph-interpreted, Tile-interpreted, compiled.

A failure reports all four, so that it identifies the faulty stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.graph.core import Module
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.interp.kv_cache import InterpStates
from tilewright.ir.interp.plan import PlanRunner
from tilewright.ir.plan.core import Program
from tilewright.ir.weights.sources import Weights
from tilewright.passes.driver import difference
from tilewright.tools.ir_text import compiled

Array = NDArray[np.generic]
STAGES = ("eager", "graph", "tile", "compiled")


def four_values(
    module: Module,
    program: Program,
    graph: str,
    inputs: Mapping[str, Array],
    weights: Weights,
    target: str = "avx2",
    eager: Mapping[str, Array] | None = None,
) -> dict[str, dict[str, Array]]:
    """Results by stage and name, from fresh caches. `module`: what `program` was lowered from."""
    out = {"eager": dict(eager)} if eager is not None else {}
    out["graph"] = Interpreter(module, weights).run(graph, inputs, InterpStates(module.states))
    out["tile"] = PlanRunner(program, weights).run(graph, inputs)
    out["compiled"] = PlanRunner(program, weights, compiled(target, 1)).run(graph, inputs)
    return out


def assert_agree(values: Mapping[str, Mapping[str, Array]], tolerance: float = 1e-5) -> None:
    """Every stage agrees with the one before it; AssertionError shows all stages and names the first that
    does not."""
    stages = [s for s in STAGES if s in values]
    for name in values[stages[0]]:
        gaps = [
            difference(values[a][name], values[b][name]) for a, b in zip(stages, stages[1:], strict=False)
        ]
        bad = [b for b, gap in zip(stages[1:], gaps, strict=True) if not gap <= tolerance]
        assert not bad, report(name, stages, values, bad[0])


def report(name: str, stages: Sequence[str], values: Mapping[str, Mapping[str, Array]], guilty: str) -> str:
    """The four values where the guilty stage is farthest off, and how far each stage is from the first."""
    first, wrong = values[stages[0]][name], values[guilty][name]
    gap = np.abs(np.nan_to_num(first.astype(float)) - np.nan_to_num(wrong.astype(float)))
    at = tuple(int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape)) if gap.size else ()
    lines = [f"{name}: {guilty} does not follow {stages[stages.index(guilty) - 1]}; at {list(at)}:"]
    lines += [
        f"  {s:9} {values[s][name][at]!s:>14}  largest difference {difference(first, values[s][name]):.3g}"
        for s in stages
    ]
    return "\n".join(lines)
