"""Capture of encoders and vision models from their directory: models that keep nothing between calls.

In: a directory and the kind of model in it. Out: a module with graph @forward, or @text and @image of a model
that compares both, whose weights are expressions over the files. As for language models, the model is built
on the meta device: no tensor data is read or made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from tilewright.capture.buffers import inline
from tilewright.capture.build import build_class
from tilewright.capture.checkpoint import WeightSource, expected_checkpoint, open_checkpoint
from tilewright.capture.configs import context_of, load_any_config
from tilewright.capture.elements import PYTORCH
from tilewright.capture.modules import WeightsOf, export, import_exported
from tilewright.capture.repeated import export_repeated
from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.ir.graph.core import Module, WeightExpr
from tilewright.ir.types import TensorType
from tilewright.runtime.task_entry import LARGEST_SIDE
from tilewright.tasks.files import read_json, whole
from tilewright.tasks.kinds import COMPARISON, EMBEDDING, Kind
from tilewright.tasks.preparation import read_preparation
from tilewright.tasks.sentences import Sentences, read_sentences

Tensors = dict[str, torch.Tensor]
#: tokens of the example texts, and their number: sizes of 1 would be taken for constants
EXAMPLE = (2, 16)
#: least length of a vector that is divided by it, as sentence-transformers has it
TINY = 1e-12


@dataclass(frozen=True)
class Call:
    """One graph: what it is called with, which of that varies, and what it does with the model."""

    graph: str
    inputs: Tensors
    varying: Mapping[str, Mapping[int, object]]
    run: Callable[[Tensors], Tensors]

    def of_three_tokens(self) -> Call:
        """The same for texts of at least three tokens."""
        axes = dict(next(iter(self.varying.values())))
        axes[1] = Dim("S", min=3, max=axes[1].max)  # type: ignore[attr-defined]
        return replace(self, varying=dict.fromkeys(self.varying, axes))


def capture_heads(directory: Path, kind: Kind, weights: bool = True) -> Module:
    """The module of a model for `kind.task`. RefusedError for a directory that is damaged or does not fit its
    config, UnsupportedError for a model that PyTorch cannot export."""
    config = load_any_config(directory)
    model = build_class(config, kind.architecture)
    found = open_checkpoint(directory) if weights else None
    dtype = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    source = _Source(WeightSource(found or expected_checkpoint(directory, model, dtype), model), model)
    modules = [_captured(model, call, source) for call in _calls(model, kind, directory)]
    meta: dict[str, object] = {"kind": "plain", "family": str(config.model_type)}
    most = dict(modules[0].symbols).get("S")
    return _joined(modules, {**meta, "context": most.hi} if most is not None else meta)


class _Source(WeightsOf):
    """Weights by their names in the files; what the model computes for itself as constants."""

    def __init__(self, source: WeightSource, model: Any) -> None:
        self.source, self.persistent = source, set(model.state_dict())

    def name(self, name: str) -> str:
        return self.source.stored_name(name) or name

    def __call__(self, name: str, x: Any) -> tuple[TensorType, WeightExpr]:
        return self.source.weight(name, x.shape) if name in self.persistent else inline(name, x, PYTORCH)


def _captured(model: Any, call: Call, source: WeightsOf) -> Module:
    """To the code of some models, one or two tokens are cases of their own: shorter texts are then padded to
    three."""
    with _calling(model, call):
        try:
            program = _exported(model, call)
        except RefusedError as e:
            if "Constraints violated (S)" not in e.message:
                raise
            call = call.of_three_tokens()
            program = _exported(model, call)
    program.graph_module.graph.eliminate_dead_code()  # a pooler that nobody asks for needs no weights
    return import_exported(program, source, dict(call.varying), call.graph)


def _exported(model: Any, call: Call) -> ExportedProgram:
    return export_repeated(model, lambda: export(model, call.inputs, dict(call.varying)))


@contextmanager
def _calling(model: Any, call: Call) -> Iterator[None]:
    """While open, the model takes the call's inputs by name and gives its results. No wrapper module, so that
    parameters keep their names."""

    def of_texts(
        self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: Any = None
    ) -> Tensors:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        return call.run(given if token_type_ids is None else {**given, "token_type_ids": token_type_ids})

    def of_images(self: Any, pixel_values: torch.Tensor) -> Tensors:
        return call.run({"pixel_values": pixel_values})

    model.forward = MethodType(of_images if "pixel_values" in call.inputs else of_texts, model)
    try:
        yield
    finally:
        del model.forward


def _joined(modules: list[Module], meta: Mapping[str, object]) -> Module:
    """One module of all graphs. What a single graph's metadata says of its structure, several do not share:
    their inputs and results are then tensors alone."""
    whole = dict(modules[0].meta) if len(modules) == 1 else {}
    checks = tuple(c for m in modules for c in dict(m.meta).get("checks", ()))  # type: ignore[attr-defined]
    stated = {**whole, **meta, **({"checks": checks} if checks else {})}
    weights = {w.name: w for m in modules for w in m.weights}
    symbols = {name: r for m in modules for name, r in m.symbols}
    graphs = tuple(g for m in modules for g in m.graphs)
    return Module(graphs, tuple(weights.values()), (), tuple(symbols.items()), tuple(stated.items()))


# ------------------------------------------------------------------ what each kind of model is called with
def _calls(model: Any, kind: Kind, directory: Path) -> list[Call]:
    if kind.task == COMPARISON:
        return [_comparing_text(model), _comparing_image(model)]
    if kind.task.startswith("image-"):
        _check_input(model, "pixel_values", directory)
        size = _image_size(model.config, directory)
        return [_images("forward", size, lambda given: _results(model, kind.task, given))]
    _check_input(model, "input_ids", directory)
    names = ["input_ids", "attention_mask"]
    if _has_types(model.config, directory):
        names.append("token_type_ids")
    if kind.task == EMBEDDING:
        sentences = read_sentences(directory)
        return [_texts("forward", names, _longest(model), lambda given: _embedded(model, sentences, given))]
    return [_texts("forward", names, _longest(model), lambda given: _results(model, kind.task, given))]


def _texts(graph: str, names: list[str], longest: int, run: Callable[[Tensors], Tensors]) -> Call:
    shape = (EXAMPLE[0], min(EXAMPLE[1], longest))
    axes = {0: Dim("B", min=1), 1: Dim("S", min=1, max=longest)}
    inputs = {n: torch.ones(shape, dtype=torch.int64) for n in names}
    return Call(graph, inputs, dict.fromkeys(names, axes), run)


def _images(graph: str, size: tuple[int, int, int], run: Callable[[Tensors], Tensors]) -> Call:
    example = torch.zeros(EXAMPLE[0], *size)
    return Call(graph, {"pixel_values": example}, {"pixel_values": {0: Dim("B", min=1)}}, run)


def _check_input(model: Any, wanted: str, directory: Path) -> None:
    if model.main_input_name != wanted:
        hint = "pass such models as an `nn.Module` with example inputs"
        message = f"{type(model).__name__} takes {model.main_input_name}, which is neither text nor images"
        raise UnsupportedError(message, str(directory / "config.json"), hint)


def _longest(model: Any) -> int:
    """Tokens that the model has positions for: where padding has a row of the table, positions begin after
    it."""
    tables = (getattr(m, "position_embeddings", None) for m in model.modules())
    rows: list[int] = [
        t.num_embeddings - (0 if t.padding_idx is None else t.padding_idx + 1)
        for t in tables
        if isinstance(t, torch.nn.Embedding)
    ]
    return max(2, min([context_of(model.config), *rows]))


def _has_types(config: Any, directory: Path) -> bool:
    """Whether tokens of the two texts of a pair differ to the model, and its tokenizer says so."""
    said = (read_json(directory / "tokenizer_config.json") or {}).get("model_input_names")
    listed = not isinstance(said, list) or "token_type_ids" in said
    return listed and int(getattr(config, "type_vocab_size", 0) or 0) > 1


def _image_size(config: Any, directory: Path) -> tuple[int, int, int]:
    """Channels, height and width: the config's, or else of what preparation makes."""
    where = str(directory / "config.json")
    channels = whole(getattr(config, "num_channels", 3), "num_channels", where, 1, 64)
    stated = getattr(config, "image_size", None)
    if stated is None:
        prepare = read_preparation(directory)
        stated = (prepare.size if prepare else None) or 224
    sides = list(stated) if isinstance(stated, list | tuple) else [stated, stated]
    if len(sides) != 2:
        raise RefusedError(f"image_size: expected one or two numbers, got {stated!r:.60}", where)
    height, width = (whole(n, "image_size", where, 1, LARGEST_SIDE) for n in sides)
    return channels, height, width


# ------------------------------------------------------------------ what they give
#: fields of transformers' results, by task
FIELDS = {
    "question-answering": ("start_logits", "end_logits"),
    "feature-extraction": ("last_hidden_state",),
    "image-feature-extraction": ("last_hidden_state",),
}


def _results(model: Any, task: str, given: Tensors) -> Tensors:
    found = _forward(model, given)
    return {name: found[name] for name in FIELDS.get(task, ("logits",))}


def _forward(model: Any, given: Tensors) -> Any:
    """The model's own results; models that could keep a cache are told not to."""
    own = type(model).forward
    more = {"use_cache": False} if getattr(model.config, "use_cache", None) is not None else {}
    return own(model, **given, **more, return_dict=True)


def _embedded(model: Any, how: Sentences, given: Tensors) -> Tensors:
    """One vector per text."""
    hidden = _forward(model, given)["last_hidden_state"]
    vectors = _pooled(hidden, given["attention_mask"], how.pooling)
    return {"vectors": _unit(vectors) if how.normalized else vectors}


def _pooled(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    if pooling == "cls":
        return hidden[:, 0]
    kept = mask[:, :, None].to(hidden.dtype)
    if pooling == "max":
        return hidden.masked_fill(kept == 0, -1e9).amax(1)
    return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=TINY)


def _comparing_text(model: Any) -> Call:
    """Texts as vectors of length 1, and the factor of their products with those of images."""

    def run(given: Tensors) -> Tensors:
        vectors = model.text_projection(model.text_model(**given, return_dict=True).pooler_output)
        return {"vectors": _unit(vectors), "scale": model.logit_scale.exp()}

    longest = max(2, context_of(model.config.text_config))
    return _texts("text", ["input_ids", "attention_mask"], longest, run)


def _comparing_image(model: Any) -> Call:
    """Images as vectors of length 1."""

    def run(given: Tensors) -> Tensors:
        pooled = model.vision_model(**given, return_dict=True).pooler_output
        return {"vectors": _unit(model.visual_projection(pooled))}

    return _images("image", _image_size(model.config.vision_config, Path()), run)
