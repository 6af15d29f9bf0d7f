"""From a captured module to a placed program: the recipe's pipeline, run with the text of every stage kept.

In: a module, a recipe. Out: the program, stages, notes. Which passes run is data in `passes.pipelines`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Module
from tilewright.ir.plan.core import Program
from tilewright.ir.tile.verify import verify_kernel
from tilewright.ir.weights.sources import Weights
from tilewright.passes.base import Context, parse_pipeline
from tilewright.passes.driver import Options, run_passes
from tilewright.passes.pipelines import LOWERING
from tilewright.recipe import Recipe

Progress = Callable[[str, int, int], None]
Stages = tuple[tuple[str, str], ...]


def kind_of(module: Module) -> str:
    """`decoder`: one causal language model that a step function can serve; `plain`: anything else."""
    return (
        "decoder" if dict(module.meta).get("kind") == "decoder" or "vocab" in dict(module.meta) else "plain"
    )


def run_pipeline(
    module: Module, recipe: Recipe, passes: str | None = None, context: int | None = None, progress: Progress | None = None,
    weights: Weights | None = None,
) -> tuple[Program, Stages, tuple[str, ...]]:  # fmt: skip
    """The placed program. Raises what passes raise, naming the pass."""
    kind = kind_of(module)
    if context is not None and kind == "plain":
        hint = "leave it out: sizes of a plain module are those of its inputs and `dynamic_shapes`"
        raise RefusedError(
            f"a context of {context} positions for a module that keeps no sequences", "context", hint
        )
    chosen = replace(recipe, context=context or recipe.context, passes=passes or recipe.passes)
    text = chosen.pipeline(kind, lowering=True)
    if chosen.passes and "lower" not in (p.name for p in parse_pipeline(chosen.passes)):
        text = f"{text}, {', '.join(LOWERING)}"
    if progress:
        progress("run the passes", 0, 1)
    result = run_passes(module, text, Options(stages=True), Context(weights=weights))
    for kernel in result.program.kernels:
        verify_kernel(kernel)
    if progress:
        progress("run the passes", 1, 1)
    stages = tuple(("captured" if name == "input" else name, body) for name, body in result.stages)
    return result.program, stages, tuple(map(str, result.notes))
