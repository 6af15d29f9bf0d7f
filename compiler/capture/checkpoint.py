"""The tensors of a checkpoint directory, and which of them become which parameter of the module.

In: safetensors headers (one file, or shards with an index) and a model on the meta device. Out: a `Lazy` per
parameter, through transformers' own renaming and conversion tables. Only headers are read. Independent of
graphs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilewright.capture.convert import apply_converter
from tilewright.capture.lazy import Lazy, origin, stored
from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.ir.graph.core import WeightExpr
from tilewright.ir.types import TensorType
from tilewright.ir.weights.safetensors import SafeTensors
from tilewright.user_files import read_text

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Checkpoint:
    """Every tensor of a directory by its key in the files. `where`: the directory, for messages."""

    where: str
    tensors: Mapping[str, Lazy]


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read the headers. RefusedError for a directory without weights, a missing shard or a damaged file."""
    files = _files(directory)
    tensors: dict[str, Lazy] = {}
    for name, wanted in files.items():
        entries = SafeTensors(directory / name).entries
        missing = sorted((wanted or set()) - set(entries))
        if missing:
            raise RefusedError(
                f"no tensor {missing[0]!r}, which {INDEX} lists in this file",
                str(directory / name),
                "download it again",
            )
        for key, e in entries.items():
            tensors[key] = stored(name, key, e.shape, e.dtype or e.stored)
    return Checkpoint(str(directory), tensors)


def has_weights(directory: Path) -> bool:
    """Whether there is anything that could be meant as weights, readable or not."""
    return any(p.suffix in (".safetensors", ".bin", ".gguf") or p.name == INDEX for p in directory.glob("*"))


def expected_checkpoint(directory: Path, model: Any, dtype: str) -> Checkpoint:
    """What a checkpoint of this model would hold, each parameter under its own name: for a directory without
    weights."""
    tied = {str(k) for k in dict(getattr(model, "all_tied_weights_keys", None) or {})}
    kinds = {"bfloat16": "bf16", "float16": "f16"}
    tensors = {
        name: stored(SINGLE, name, tuple(int(n) for n in x.shape), kinds.get(dtype, "f32"))
        for name, x in model.state_dict().items() if name not in tied
    }  # fmt: skip
    return Checkpoint(str(directory), tensors)


def _files(directory: Path) -> dict[str, set[str] | None]:
    """File names, with the keys an index places in them."""
    if (directory / INDEX).is_file():
        return _indexed(directory)
    if (directory / SINGLE).is_file():
        return {SINGLE: None}
    alone = [f.name for f in sorted(directory.glob("*.safetensors")) if not f.name.startswith("adapter_")]
    if len(alone) == 1:
        return {alone[0]: None}
    hint = "pass a directory with model.safetensors, or its shards and their index"
    pickled = [f.name for f in sorted(directory.glob("*.bin"))]
    if pickled:
        hint = f"{pickled[0]} is a pickle file, which is never opened; save the model with `save_pretrained`"
    raise RefusedError(
        "no weights: expected model.safetensors or model.safetensors.index.json", str(directory), hint
    )


def _indexed(directory: Path) -> dict[str, set[str] | None]:
    where = str(directory / INDEX)
    text = read_text(directory / INDEX, "an index of shards: an object with `weight_map`")
    try:
        table = json.loads(text)["weight_map"]
        pairs = [(str(k), str(v)) for k, v in table.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise RefusedError(
            f"not an index of shards: {e}", where, "expected an object with `weight_map`"
        ) from None
    out: dict[str, set[str] | None] = {}
    for key, name in pairs:
        if Path(name).name != name:
            raise RefusedError(f"shard {name!r} is outside the directory", where)
        if name not in out and not (directory / name).is_file():
            raise RefusedError(f"shard {name!r} is missing; it should contain {key!r}", where, "download it")
        keys = out.setdefault(name, set())
        assert keys is not None
        keys.add(key)
    return out


# ------------------------------------------------------------------ file key -> module key
@dataclass
class _Group:
    """Stored tensors that one converter of transformers turns into one or several parameters."""

    converter: Any = None
    tensors: dict[str, list[Lazy]] = field(default_factory=lambda: defaultdict(list))


def parameters_of(checkpoint: Checkpoint, model: Any) -> dict[str, Lazy]:
    """Parameters and persistent buffers of a transformers model by their names in the module. Tensors that
    the module has no place for are left out, as transformers does."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key

    table = get_model_conversion_mapping(model)
    renamings = [e for e in table if isinstance(e, WeightRenaming)]
    converters = [e for e in table if isinstance(e, WeightConverter)]
    by_pattern = {p: c for c in converters for p in c.source_patterns}
    names = dict(model.state_dict())
    groups: dict[str, _Group] = {}
    out: dict[str, Lazy] = {}
    for key in sorted(checkpoint.tensors, key=dot_natural_key):
        name, pattern = _place(key, renamings, converters, model.base_model_prefix, names)
        if pattern is None:
            out[name] = checkpoint.tensors[key]
        elif name in names:
            group = groups.setdefault(name, _Group(by_pattern[pattern]))
            group.tensors[pattern].append(checkpoint.tensors[key])
    for name, group in groups.items():
        out.update(apply_converter(group.converter, name, group.tensors, model))
    return {k: v for k, v in out.items() if k in names}


def _place(
    key: str, renamings: list[Any], converters: list[Any], prefix: str, names: dict[str, Any]
) -> tuple[str, str | None]:
    from transformers.core_model_loading import rename_source_key

    name, pattern = rename_source_key(key, renamings, converters, prefix, names)
    if name not in names and key in names:
        name, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=names)
    return name, pattern


# ------------------------------------------------------------------ what the importer asks for
class WeightSource:
    """Types and expressions of a model's parameters, by module key."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        self.where = checkpoint.where
        self.tensors = parameters_of(checkpoint, model)
        self.ties = {
            str(k): str(v) for k, v in dict(getattr(model, "all_tied_weights_keys", None) or {}).items()
        }

    def stored_name(self, name: str) -> str | None:
        """The parameter under which the files hold `name`: itself, or one that it is tied to (None: they lack
        it)."""
        root = self.ties.get(name, name)
        return next(
            (n for n in (name, root, *(k for k, v in self.ties.items() if v == root)) if n in self.tensors),
            None,
        )

    def weight(self, name: str, shape: Iterable[int]) -> tuple[TensorType, WeightExpr]:
        """Of one parameter; RefusedError if the files lack it or hold it in another shape."""
        key, expected = self.stored_name(name), tuple(int(n) for n in shape)
        if key is None:
            message = f"no tensor for the parameter {name!r} {list(expected)}"
            raise RefusedError(message, self.where, "the checkpoint does not match its config.json")
        found = self.tensors[key]
        if found.shape != expected:
            message = f"parameter {name!r} has shape {list(found.shape)}, the model expects {list(expected)}"
            raise RefusedError(
                message, f"{self.where}/{origin(found.expr)}", "the checkpoint does not match its config.json"
            )
        if found.dtype not in ("f64", "f32", "bf16", "f16", "i64", "i32", "i16", "u8", "i8", "bool"):
            message = f"parameter {name!r} is stored as {found.dtype}"
            raise UnsupportedError(
                message, f"{self.where}/{origin(found.expr)}", "use a checkpoint in bf16, f16 or f32"
            )
        return found.type(), found.expr
