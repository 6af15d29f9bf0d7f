"""What the pass *calibrate* is given: the samples a user named, and how weights are solved on them.

In: what was asked for, a recipe, a weight store. Out: a function from a module to what solvers found. Loads
PyTorch only when it runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Module
from tilewright.ir.weights.solved import Solution
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.base import PassContext
from tilewright.recipe import Recipe

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Calibration:
    """What solvers are shown, and how much of it. `work`: where results are kept; None: in a temporary
    folder, as long as the store that reads them."""

    source: object = None
    work: Path | None = None
    samples: int = 128
    tokens: int = 512
    max_ram: int = 0


class WiderScales(Exception):
    """Weights, by name, with rows beyond their encodings' range: they must be encoded again before they are
    solved."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(f"rows beyond the range of their encodings: {', '.join(names)}")
        self.names = names


def check_samples(asked: Calibration, recipe: Recipe, calibrates: bool) -> None:
    """RefusedError for samples that no pass would read."""
    if asked.source is None or calibrates:
        return
    if recipe.needs_samples():
        hint = "put `calibrate` into the passes, after encode-weights"
        raise RefusedError("the passes do not calibrate, so the samples would not be used", "calibrate", hint)
    hint = (
        "omit `calibrate`, or use a solver that needs samples: gptq(int4(group=128)), awq(int4(group=32)), …"
    )
    message = "no weight has a solver that needs samples, so they would not be used"
    raise RefusedError(message, _named(recipe), hint)


@dataclass
class Calibrator:
    """Solves the weights of a module that need samples."""

    store: WeightStore
    asked: Calibration
    recipe: Recipe
    model_dir: Path | None
    progress: Progress | None
    #: keeps a temporary folder, as long as its results may be read
    _folder: object = field(default=None, repr=False)

    def __call__(self, module: Module, ctx: PassContext) -> Mapping[str, Solution]:
        """What solvers found, by weight. Raises WiderScales before anything is solved, RefusedError without
        samples, and what solving raises."""
        from tilewright.backends.packing import out_of_range
        from tilewright.calibration.calibrate import calibrate, wanted
        from tilewright.calibration.samples import SampleSize, samples_of

        left = wanted(module)
        if not left:
            return {}
        wide = tuple(n for n in out_of_range(self.store, left.values()) if n not in self.recipe.wide)
        if wide:
            raise WiderScales(wide)
        if self.asked.source is None:
            message = f"the solver of @{next(iter(left))} needs samples"
            raise RefusedError(message, _named(self.recipe), "pass a text: --calibrate FILE")
        size = SampleSize(self.asked.samples, self.asked.tokens)
        samples = samples_of(self.asked.source, module, self.model_dir, size)
        found, declined = calibrate(
            module, self.store, samples, self._work(), self.asked.max_ram, self.progress
        )
        for where, why in declined:
            ctx.declined("equalize", where, why)
        return found

    def _work(self) -> Path:
        if self.asked.work is not None:
            return self.asked.work
        folder = tempfile.TemporaryDirectory(prefix="tilewright-")
        self.store.keeps = folder
        return Path(folder.name)


def _named(recipe: Recipe) -> str:
    return f"recipe {recipe.name}"
