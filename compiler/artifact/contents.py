"""What an artifact holds besides its weights, and the manifest that lists it.

In: the record of a compile, built libraries, a recipe. Out: `Manifest`. Writes no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tilewright.artifact.stages import stage_entries
from tilewright.backends.base import Binary
from tilewright.backends.native import graph_entry
from tilewright.backends.step import step_limits
from tilewright.backends.storage import (
    PlacedWeight,
    content_id,
    place_weights,
    recent_bytes,
    sequence_bytes,
    state_streams,
)
from tilewright.ir.graph.core import State, Weight
from tilewright.ir.plan.core import Program, counted_symbols
from tilewright.ir.plan.step import BLOCK_COLUMNS, MOST_SEQUENCES, SLICE, STEP, block_rows
from tilewright.ir.tile.core import Kernel, Load, Pick, index_scalars, walk
from tilewright.ir.types import TensorType, type_text
from tilewright.ir.weights.solved import is_rescaled, solver_text
from tilewright.passes.record import Record
from tilewright.runtime.manifest import (
    FileEntry,
    LevelEntry,
    Manifest,
    StateEntry,
    StepEntry,
    WeightEntry,
)
from tilewright.runtime.task_entry import TaskEntry
from tilewright.version import __version__


@dataclass(frozen=True)
class Contents:
    """Everything of an artifact but the weights. `record`: of the compile, which ends in the program;
    `model_dir`: where tokenizer files lie; `task`: of an encoder or vision model."""

    record: Record
    levels: Sequence[Binary]
    recipe: Mapping[str, object] = field(default_factory=dict)
    model_dir: Path | None = None
    task: TaskEntry | None = None

    @property
    def program(self) -> Program:
        return self.record.program


def make_manifest(c: Contents, files: Mapping[str, FileEntry]) -> Manifest:
    """The manifest of an artifact with these contents and files."""
    program = c.program
    places, total = place_weights(program.weights)
    limits = step_limits(program)
    whole = _read_whole(program)
    return Manifest(
        id=content_id(program),
        made_by=f"tilewright {__version__}",
        levels=tuple(
            LevelEntry(v.name, v.features, f"lib/{v.name}.so", f"src/{v.name}.cpp") for v in c.levels
        ),
        graphs=tuple(graph_entry(p) for p in program.plans),
        symbols={
            n: (r.lo, r.hi if r.hi is not None else (1 << 31) - 1)
            for n, r in program.symbols
            if n not in counted_symbols(program)
        },
        states=tuple(_state(s) for s in program.states),
        weights=tuple(_weight(p, w, whole) for p, w in zip(places, program.weights, strict=True)),
        weights_bytes=total,
        limits={k: limits[k] for k in ("vocab", "context", "max_tokens")},
        recipe=dict(c.recipe),
        meta=dict(program.meta),
        stages=stage_entries(c.record),
        kernels=tuple(k.name for k in program.kernels),
        step=_step(program),
        task=c.task,
        files=dict(sorted(files.items())),
    )


def _state(s: State) -> StateEntry:
    streams = [(c, x) for c, x in zip(s.streams, state_streams(s), strict=True) if not c.recent]
    each = sum(x.block_bytes * x.heads // x.block for _, x in streams if x.rows)
    each += sum(x.slot for c, x in streams if c.name in ("summary", "worth", "list")) // s.context
    total, window = sequence_bytes(s), s.window or 0
    kinds = s.evicts, s.observed, str(s.select or ""), s.recent, recent_bytes(s)
    return StateEntry(s.name, s.heads, s.context, str(s.k), str(s.v), total, each, window, *kinds)


def _step(program: Program) -> StepEntry | None:
    """The step protocol, of a program that has a step."""
    if all(p.name != STEP for p in program.plans):
        return None
    return StepEntry(block_rows(program.symbols), BLOCK_COLUMNS, SLICE, MOST_SEQUENCES)


def _weight(p: PlacedWeight, w: Weight, whole: set[str]) -> WeightEntry:
    decoded = TensorType(p.type.dtype, p.type.shape)
    elements = math.prod(int(str(d)) for d in p.type.shape)
    encoding = str(p.type.encoding or p.type.dtype)
    return WeightEntry(
        p.name,
        p.offset,
        p.nbytes,
        elements,
        type_text(decoded),
        encoding,
        "whole" if p.name in whole else "rows",
        solver_text(w) or "",
        "rescaled" if is_rescaled(w) else "model",
    )


def _read_whole(program: Program) -> set[str]:
    """Weights that some call reads from end to end: not only at places that data picks."""
    found: set[str] = set()
    for call in (c for p in program.plans for c in p.calls):
        kernel = program.kernel(call.kernel)
        for arg, param in zip(call.args, kernel.params, strict=True):
            if arg[0] == "@" and not _picked(kernel, param.name):
                found.add(arg[1:])
    return found


def _picked(kernel: Kernel, param: str) -> bool:
    loads = [s for s in walk(kernel.body) if isinstance(s, Load) and s.buffer.split(".")[0] == param]
    return bool(loads) and all(
        any(isinstance(i, Pick) for i in s.index) or index_scalars(s.index) for s in loads
    )
