"""`tilewright.compile`: a model in, a `Compiled` out that can be saved, loaded and inspected.

In: a checkpoint directory, an `nn.Module` or an exported program; a recipe; target levels. Out: the placed
program with the record of every stage, and the means to stream its weights. The pieces live elsewhere:
capture, passes, codegen, artifact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tilewright.arguments import check_arguments, check_plain_arguments, output_path
from tilewright.ir.graph.core import Module
from tilewright.ir.plan.core import Program
from tilewright.ir.plan.step import STEP
from tilewright.ir.weights.sources import WeightStore
from tilewright.recipe import Recipe

if TYPE_CHECKING:
    from tilewright.backends.base import Executable
    from tilewright.calibration.solving import Calibration
    from tilewright.passes.record import Record, Stage
    from tilewright.runtime.manifest import Manifest
    from tilewright.runtime.model import Model
    from tilewright.runtime.task_entry import TaskEntry

Result = TypeVar("Result")
#: told what is under way: text, done, total
Progress = Callable[[str, int, int], None]
#: arguments of `compile` whose types are checked
CHECKED = (
    "example_inputs", "dynamic_shapes", "weights", "activations", "kv", "cache", "target", "passes",
    "adapter",
    "context", "progress",
    "calibrate",
    "work", "samples", "sample_tokens", "max_ram", "rotate", "tokens", "tuning", "pack",
)  # fmt: skip


@dataclass
class Compiled:
    """A compiled model in this process. `record`: every stage from capture to the placed plan, with the
    passes that made them."""

    record: Record = field(repr=False)
    store: WeightStore = field(repr=False)
    recipe: Recipe
    target: str = "native"
    model_dir: Path | None = None
    #: a plain module's results in containers of its own classes, from their leaves; None: in Python's
    containers: Callable[[Sequence[object]], object] | None = field(default=None, repr=False)
    _making: Making | None = field(default=None, repr=False)
    #: of an encoder or vision model that was compiled from a folder
    task: TaskEntry | None = field(default=None, repr=False)
    _ready: Executable | None = field(default=None, repr=False)
    _loaded: Model | None = field(default=None, repr=False)

    @property
    def program(self) -> Program:
        """The placed program."""
        return self.record.program

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the record, in order."""
        return self.record.stages

    @property
    def notes(self) -> tuple[str, ...]:
        """Rewrites that fired or were declined, a line each."""
        return tuple(map(str, self.record.notes))

    def save(self, path: str | Path, progress: Progress | None = None) -> Manifest:
        """Build the libraries and write the artifact, atomically. Weights that turn out to have rows
        beyond their encoding's range get scales of a wider one, and the program is compiled again. Raises
        BuildError, ArtifactError and what reading the weights can raise."""
        return self._widening(lambda: self._write(output_path(path), progress))

    def executable(self, threads: int | None = None) -> Executable:
        """The program and its weights in this process; nothing is written but what the cache keeps. Made
        once, with the threads of the first call (None: as many as this process may use). Raises what `save`
        raises, and RefusedError if this machine cannot run the target.
        """
        from tilewright.artifact.libraries import load_program

        if self._ready is None:
            self._ready = self._widening(lambda: load_program(self.program, self.store, self.target, threads))
        return self._ready

    def _widening(self, consume: Callable[[], Result]) -> Result:
        """What `consume` makes of the program and its weights, once every weight's scales are wide enough."""
        from tilewright.ir.weights.sources import OutOfRange

        try:
            return consume()
        except OutOfRange as why:
            if (
                self._making is None
                or why.wider is None
                or why.weight in self.recipe.wide
                or self._making.passes
            ):
                raise
            self._widen(why.weight)
            return self._widening(consume)

    def _widen(self, name: str) -> None:
        from tilewright.backends.packing import out_of_range

        assert self._making is not None
        recipe = wide_recipe(self.recipe, (name, *out_of_range(self.store, self.program.weights)))
        self.recipe, self.record = self._making.program(recipe)

    def _write(self, path: Path, progress: Progress | None) -> Manifest:
        from tilewright.artifact.contents import Contents
        from tilewright.artifact.libraries import build_libraries
        from tilewright.artifact.writer import write_artifact
        from tilewright.backends.image import packed

        weights = packed(self.program, self.store)  # first: it may have a routine of its own to build
        levels = build_libraries(self.program, self.target, progress)

        def told(name: str, done: int, total: int) -> None:
            if progress:
                progress("write the weights", done, total)

        contents = Contents(self.record, levels, self.recipe.stated(), self.model_dir, self.task)
        return write_artifact(path, contents, weights, told)

    def load(self, threads: int | None = None) -> Model:
        """The model, running in this process as an artifact of it would: with sessions, text and generation.
        Raises what `executable` raises, and RefusedError for a target without the runtime's interface."""
        from tilewright.calling import model_of

        if self._loaded is None:
            self._loaded = model_of(self, self.executable(threads), threads)
        return self._loaded

    def __call__(self, *inputs: object, **named: object) -> object:
        """Run the model; torch tensors in give torch tensors out, over the same memory where they lie whole
        in the CPU's.
        """
        from tilewright.calling import call_language_model, call_plain

        if any(p.name == STEP for p in self.program.plans):
            return call_language_model(self.load(), inputs, named)
        return call_plain(self.executable(), self.program, inputs, named, self.containers)


def compile(
    model: object, *, example_inputs: Sequence[object] | None = None, dynamic_shapes: object = None,
    recipe: str | Path | Recipe | Mapping[str, object] | None = None, weights: str | None = None,
    activations: str | None = None,
    kv: str | None = None, cache: str | None = None, target: str = "native", passes: str | None = None,
    adapter: str | Path | None = None,
    context: int | None = None, progress: Progress | None = None, calibrate: object = None,
    work: str | Path | None = None,
    samples: int = 128, sample_tokens: int = 512, max_ram: int = 0, rotate: str | None = None,
    tokens: str | None = None, tuning: str | Path | None = None, share_prefixes: bool | None = None,
    pack: bool | None = None,
) -> Compiled:  # fmt: skip
    """Compile a model.

    `model`: a Hugging Face checkpoint directory or hub id; an `nn.Module` or `ExportedProgram` (then
    `example_inputs`, and `dynamic_shapes` as `torch.export` takes them). `recipe`: a preset's name, a TOML
    file, or a `Recipe`; `weights`, `activations`, `kv` override its encodings (`int4(group=32)`,
    `int8(token)`, `bf16`). `target`: `native`, `all`, or levels. `passes`: pipeline text instead of the
    recipe's. `cache`: which tokens the KV cache keeps, `h2o(budget=0.2)`. `share_prefixes`: a step reads once
    what its sequences have in common. `adapter`: a LoRA directory. `context`: maximum positions of a
    sequence. `calibrate`: what solvers such as `gptq(int4(group=128))` see: a text file, an .npy or
    .safetensors file of token ids, or an iterable of samples; at most `samples` of `sample_tokens` tokens,
    within `max_ram` bytes (0: no bound). Results are kept in `work` (default: a temporary folder), where an
    interrupted run continues. `rotate`: `offline` or `online`, see `Recipe`. `tokens`: how the later layers
    of an encoder compute fewer tokens, such as `evit(keep=0.7)` (docs/tokens.md). `pack`: an encoder computes
    only the tokens that its attention mask keeps; padding is zero in its results (docs/tokens.md). `tuning`:
    a file of schedules that `tilewright tune` measured; results stay bit-identical. Raises UnsupportedError
    naming every unsupported op, RefusedError, and errors of the files read."""
    from tilewright.backends.registry import chosen as chosen_backend
    from tilewright.calibration.solving import Calibration
    from tilewright.recipe import resolve_recipe

    given = locals()
    check_arguments(model, {name: given[name] for name in CHECKED})
    chosen_backend(target)  # a wrong name shows before the work, not after it
    calibration = Calibration(calibrate, Path(work) if work else None, samples, sample_tokens, max_ram)
    chosen = resolve_recipe(
        recipe,
        weights=weights,
        activations=activations,
        kv=kv,
        rotate=rotate,
        cache=cache,
        tokens=tokens,
        share_prefixes=share_prefixes,
        pack=pack,
    )
    if progress:
        progress("capture the model", 0, 1)
    directory: Path | None = None
    if isinstance(model, str | Path):
        from tilewright.artifact.model_files import check_model_files
        from tilewright.capture import capture_directory
        from tilewright.capture.hub import resolve_model
        from tilewright.tasks.entry import task_of

        directory, added = resolve_model(model), Path(adapter) if adapter else None
        check_model_files(directory)
        module, store = capture_directory(directory, adapter=added), WeightStore(directory, adapter=added)
        containers, task = None, task_of(directory, module)
    else:
        from tilewright.capture.modules import capture_module, containers_of, exported

        traced = exported(model, example_inputs, dynamic_shapes)
        module, memory = capture_module(traced, None, dynamic_shapes)
        store, containers, task = WeightStore(memory=memory), containers_of(traced), None
    check_plain_arguments(task is not None, {"kv": kv, "cache": cache, "share_prefixes": share_prefixes})
    making = Making(module, store, calibration, directory, passes, context, tuning, progress, target)
    chosen, record = making.program(chosen)
    return Compiled(record, store, chosen, target, directory, containers, making, task)


def outline(
    model: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    passes: str | None = None,
    target: str = "native",
    progress: Progress | None = None,
) -> Compiled:
    """What `compile` makes of a checkpoint directory, for looking at: also of one that holds a config and no
    weights yet, whose values are then those of no checkpoint. Raises what `compile` raises.
    """
    from tilewright.capture import capture_directory
    from tilewright.capture.checkpoint import has_weights
    from tilewright.capture.hub import resolve_model
    from tilewright.pipeline import run_pipeline
    from tilewright.recipe import resolve_recipe
    from tilewright.tasks.entry import task_of

    chosen, directory = resolve_recipe(recipe), resolve_model(model)
    if progress:
        progress("capture the model", 0, 1)
    module = capture_directory(directory, weights=has_weights(directory))
    store = WeightStore(directory)
    record = run_pipeline(module, chosen, passes, None, progress, store, target=target)
    return Compiled(record, store, chosen, target, directory, task=task_of(directory, module))


@dataclass
class Making:
    """How the program of a captured module is made: once, and again if its weights turn out to need other
    scales."""

    module: Module
    store: WeightStore
    calibration: Calibration
    directory: Path | None = None
    passes: str | None = None
    context: int | None = None
    tuning: str | Path | None = None
    progress: Progress | None = None
    target: str = "native"

    def program(self, recipe: Recipe) -> tuple[Recipe, Record]:
        """The recipe with the names of weights whose scales are wide, and the record of the compile."""
        from tilewright.calibration.solving import Calibrator, WiderScales, check_samples
        from tilewright.passes.base import parse_pipeline
        from tilewright.pipeline import kind_of, run_pipeline, whole_pipeline

        chosen = replace(recipe, passes=self.passes or recipe.passes)
        names = [p.name for p in parse_pipeline(whole_pipeline(chosen, kind_of(self.module)))]
        check_samples(self.calibration, recipe, "calibrate" in names)
        solve = Calibrator(self.store, self.calibration, recipe, self.directory, self.progress)
        try:
            record = run_pipeline(
                self.module, recipe, self.passes, self.context, self.progress, self.store, solve, self.target
            )
        except WiderScales as found:
            return self.program(wide_recipe(recipe, found.names))
        return recipe, _tuned(record, self.tuning)


def wide_recipe(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """The recipe with more weights that need wide scales; the copy of a tied table that is the head goes by
    the table's name."""
    bare = (n.removesuffix(".head") for n in names)
    return replace(recipe, wide=tuple(dict.fromkeys((*recipe.wide, *names, *bare))))


def _tuned(record: Record, tuning: str | Path | None) -> Record:
    """The record with measured schedules, as a last stage."""
    if tuning is None:
        return record
    from tilewright.passes.base import Note
    from tilewright.passes.record import Stage
    from tilewright.tools.tuning_file import apply_tuning, read_tuning

    program, used = apply_tuning(record.program, read_tuning(Path(tuning)), str(tuning))
    note = Note("tune", "schedules", True, str(tuning), f"{used} of {len(program.kernels)} kernels")
    return record.then(Stage("tune", program, notes=(note,)))
