"""What the manifest says of a model's task, from its directory and its captured graphs.

In: a directory, its module. Out: a `TaskEntry`, None for a language model or a plain module. RefusedError for
labels or sizes that do not fit the graphs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Graph, Module
from tilewright.runtime.task_entry import LONGEST_LABEL, ImageEntry, TaskEntry, TextEntry
from tilewright.tasks.kinds import EMBEDDING, Kind, kind_of
from tilewright.tasks.preparation import read_preparation
from tilewright.tasks.sentences import read_sentences

CORRECT = "correct the config, or download it again"


def task_of(directory: Path, module: Module) -> TaskEntry | None:
    """None unless the module was captured for a task."""
    kind = kind_of(directory)
    if kind is None:
        return None
    sentences = read_sentences(directory) if kind.task == EMBEDDING else None
    labels = _labels(kind, module, str(directory / "config.json"))
    return TaskEntry(
        kind.task,
        labels,
        _scores(kind.config, len(labels)),
        sentences.pooling if sentences else "",
        sentences.normalized if sentences else False,
        _text(kind, module, sentences.longest if sentences else 0),
        _image(module, directory),
    )


def _labels(kind: Kind, module: Module, where: str) -> tuple[str, ...]:
    """Of the logits' columns, under the config's names or LABEL_0, LABEL_1, …"""
    if "classification" not in kind.task or kind.task.startswith("zero-shot"):
        return ()
    graph = module.graphs[0]
    at = graph.results.index("logits")
    count = graph.values()[graph.outputs[at][1:]].type.shape[-1]
    assert isinstance(count, int)
    names = kind.config.get("id2label") or {}
    if not isinstance(names, dict) or not all(str(k).isdigit() for k in names):
        raise RefusedError("id2label: expected an object of names by number", where, CORRECT)
    found = {int(k): str(v)[:LONGEST_LABEL] for k, v in names.items()}
    if found and set(found) != set(range(count)):
        raise RefusedError(f"id2label names {len(found)} labels, the model has {count}", where, CORRECT)
    return tuple(found.get(n, f"LABEL_{n}") for n in range(count))


def _scores(config: dict[str, Any], labels: int) -> str:
    """As transformers' pipelines choose."""
    problem = config.get("problem_type")
    if labels == 0 or problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or labels == 1 else "softmax"


def _text(kind: Kind, module: Module, longest: int) -> TextEntry | None:
    graph = _reading("input_ids", module)
    if graph is None:
        return None
    most = next(r.hi for name, r in module.symbols if name == "S") or (1 << 20)
    inner = kind.config.get("text_config")
    pad = (inner if isinstance(inner, dict) else kind.config).get("pad_token_id")
    return TextEntry(graph.name, min(most, longest or most), pad if type(pad) is int and pad >= 0 else 0)


def _image(module: Module, directory: Path) -> ImageEntry | None:
    graph = _reading("pixel_values", module)
    if graph is None:
        return None
    channels, height, width = (int(str(d)) for d in graph.inputs[0].type.shape[1:])
    prepare = read_preparation(directory)
    made = None if prepare is None else prepare.size
    if made is not None and made != (height, width):
        message = f"it makes images of {made[0]} x {made[1]}, the model takes {height} x {width}"
        raise RefusedError(message, str(directory / "preprocessor_config.json"), CORRECT)
    return ImageEntry(graph.name, channels, height, width, prepare)


def _reading(name: str, module: Module) -> Graph | None:
    return next((g for g in module.graphs if g.inputs and g.inputs[0].name == name), None)
