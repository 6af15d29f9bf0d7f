"""From a captured module to a placed program: the recipe's pipeline, run as a whole.

In: a module, a recipe. Out: the record of the compile. Which passes run is data in `passes.pipelines`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tilewright.backends.registry import chosen, default_backend
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Module
from tilewright.ir.tile.verify import verify_kernel
from tilewright.ir.weights.solved import Solution
from tilewright.ir.weights.sources import Weights
from tilewright.passes.base import AnyPass, PassContext, parse_pipeline
from tilewright.passes.driver import run_passes
from tilewright.passes.lower import Lower
from tilewright.passes.pipelines import ENDS, LOWERING
from tilewright.passes.record import Record
from tilewright.recipe import Recipe

Progress = Callable[[str, int, int], None]
Calibrator = Callable[[Module, PassContext], Mapping[str, Solution]]

#: the stage that a compile starts from
CAPTURED = "captured"


def kind_of(module: Module) -> str:
    """`decoder`: one causal language model that a step function can serve; `plain`: anything else."""
    return (
        "decoder" if dict(module.meta).get("kind") == "decoder" or "vocab" in dict(module.meta) else "plain"
    )


def run_pipeline(
    module: Module, recipe: Recipe, passes: str | None = None, context: int | None = None,
    progress: Progress | None = None, weights: Weights | None = None, calibrator: Calibrator | None = None,
    target: str = "native",
) -> Record:  # fmt: skip
    """The record of a compile, whose last stage is the placed program. `calibrator`: what solves weights on
    samples, if there are some. `target`: as `--target` has it; its backend gives the kernels' schedules.
    Raises what passes raise, naming the pass, PassError for passes that do not lead from the module to such a
    program, and UnknownTargetError."""
    kind = kind_of(module)
    if context is not None and kind == "plain":
        hint = "omit it: the sizes of a plain module are those of its inputs and `dynamic_shapes`"
        raise RefusedError(
            f"a context of {context} positions for a module without sequences", "context", hint
        )
    if recipe.tokens and kind == "decoder":
        hint = "omit it: tokens are cut in encoders, compiled as plain modules; a decoder's caches need all"
        raise RefusedError(f"tokens={recipe.tokens} for a language model with caches", "tokens", hint)
    if recipe.pack and kind == "decoder":
        hint = "omit it: the tokens of a decoder's step are packed already"
        raise RefusedError("pack for a language model with caches", "pack", hint)
    text = whole_pipeline(
        replace(recipe, context=context or recipe.context, passes=passes or recipe.passes), kind
    )
    if progress:
        progress("run the passes", 0, 1)
    passes_run = for_target(parse_pipeline(text), target)
    record = run_passes(
        module, passes_run, None, PassContext(weights=weights, calibrator=calibrator), ENDS[kind]
    )
    for kernel in record.program.kernels:
        verify_kernel(kernel)
    if progress:
        progress("run the passes", 1, 1)
    captured, *later = record.stages
    return Record((replace(captured, name=CAPTURED), *later))


def for_target(passes: Sequence[AnyPass], target: str) -> tuple[AnyPass, ...]:
    """The passes, of which `lower` asks the target's backend for schedules unless it names backends itself.
    A default needs no words, so that the text of a compile for CPUs stays short."""
    name = chosen(target)[0].name
    asked = () if name == default_backend() else (name,)
    return tuple(replace(p, backends=p.backends or asked) if isinstance(p, Lower) else p for p in passes)


def whole_pipeline(recipe: Recipe, kind: str) -> str:
    """The recipe's passes down to a placed program; the user's own, with those of lowering if they have
    none."""
    text = recipe.pipeline(kind, lowering=True)
    if recipe.passes and "lower" not in (p.name for p in parse_pipeline(recipe.passes)):
        return f"{text}, {', '.join(LOWERING)}"
    return text
