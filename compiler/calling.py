"""Calls a compiled model in the process that compiled it: NumPy arrays or torch tensors, in and out.

In: a program that is loaded, its inputs, in order or by name. Out: what the module gives, in containers of
its own classes. The work is the backend's and the runtime's; tensors of a CPU are passed and given back
without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tilewright.artifact.contents import Contents, make_manifest
from tilewright.artifact.model_files import TOKENIZER_FILES
from tilewright.backends.base import Executable
from tilewright.backends.native import NativeProgram, graph_entry
from tilewright.ir.errors import RefusedError
from tilewright.ir.numbers import bits_to_bf16
from tilewright.ir.plan.core import Program
from tilewright.passes.record import Record
from tilewright.recipe import Recipe
from tilewright.runtime.artifact import Artifact
from tilewright.runtime.checks import read_checks
from tilewright.runtime.manifest import FileEntry
from tilewright.runtime.model import Model
from tilewright.runtime.structure import Structure
from tilewright.runtime.task_entry import TaskEntry

Containers = Callable[[Sequence[object]], object]


class Made(Protocol):
    """What is known of a compiled model besides its weights."""

    record: Record
    recipe: Recipe
    target: str
    model_dir: Path | None
    task: TaskEntry | None


def model_of(made: Made, ready: Executable, threads: int | None) -> Model:
    """The runtime's model over a program in memory; it reads the tokenizer where the model keeps it.
    RefusedError for a backend whose programs have no C interface.
    """
    if not isinstance(ready, NativeProgram):
        hint = "call the compiled model itself, or compile for a CPU level"
        raise RefusedError("its programs run graphs and have no sessions", f"target {made.target}", hint)
    folder = made.model_dir or Path()
    there = [n for n in TOKENIZER_FILES if made.model_dir and (folder / n).is_file()]
    files = {name: FileEntry((folder / name).stat().st_size, "") for name in there}
    contents = Contents(made.record, (), made.recipe.stated(), made.model_dir, made.task)
    return Model(Artifact(folder, make_manifest(contents, files)), ready.library, threads)


def call_language_model(model: Model, inputs: Sequence[object], named: Mapping[str, object]) -> object:
    """Logits, as a torch tensor if any input is one. Raises what `Model` raises."""
    out = model(*(_array(x) for x in inputs), **{k: _array(v) for k, v in named.items()})
    return _tensor(out) if any(map(_is_tensor, (*inputs, *named.values()))) else out


def call_plain(
    ready: Executable,
    program: Program,
    inputs: Sequence[object],
    named: Mapping[str, object],
    containers: Containers | None = None,
) -> object:
    """Results in the containers that `containers` makes of their leaves, or in Python's; torch tensors if any
    input is one. Raises SessionError for inputs that do not fit, and what the backend raises."""
    meta, entry = dict(program.meta), graph_entry(program.plans[0])
    outputs = {t.name: t.dtype for t in entry.outputs}
    hidden = {c.name for c in read_checks(meta, list(outputs), len(program.plans) == 1)}
    form = Structure.of(meta, [t.name for t in entry.inputs], [n for n in outputs if n not in hidden])
    given, dtypes = form.tensors(inputs, named), {t.name: t.dtype for t in entry.inputs}
    found = ready.run(entry.name, {k: _array(v, dtypes[k]) for k, v in given.items()})
    give = _tensor if any(map(_is_tensor, given.values())) else _numbers
    results: dict[str, Any] = {name: give(x, outputs[name]) for name, x in found.items()}
    return form.build(results) if containers is None else containers(form.leaves(results))


# ------------------------------------------------------------------ tensors and arrays
def _is_tensor(x: object) -> bool:
    return type(x).__module__.startswith("torch")


def _array(x: Any, dtype: str = "") -> Any:
    """A tensor's memory as an array, where it lies in the CPU's; bfloat16 as its bits where `dtype` asks for
    it."""
    if not _is_tensor(x):
        return x  # numbers in lists are judged by their values, arrays by their dtype
    held = x.detach().cpu()
    if str(held.dtype) != "torch.bfloat16":
        return held.numpy()
    import torch

    return held.view(torch.uint16).numpy() if dtype == "bf16" else held.float().numpy()


def _tensor(x: Any, dtype: str = "") -> Any:
    """An array's memory as a tensor."""
    import torch

    out = torch.from_numpy(np.asarray(x, order="C"))
    return out.view(torch.bfloat16) if dtype == "bf16" else out


def _numbers(x: Any, dtype: str = "") -> Any:
    return bits_to_bf16(x) if dtype == "bf16" else x
