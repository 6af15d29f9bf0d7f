"""Sentence embedders as sentence-transformers saves them: their pooling, and how long texts may be.

In: `modules.json`, the pooling's config, `sentence_bert_config.json`. Out: `Sentences`. RefusedError for a
module that is not an encoder, a pooling or a normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.tasks.files import AGAIN, read_json, whole

#: the pooling's options in its config, by our names
MODES = {
    "pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"
}  # fmt: skip
SUPPORTED = "the supported poolings are mean, cls and max"


@dataclass(frozen=True)
class Sentences:
    """`pooling`: mean, cls or max; `normalized`: vectors of length 1; `longest`: most tokens, 0 for as many
    as the encoder takes."""

    pooling: str
    normalized: bool
    longest: int


def read_sentences(directory: Path) -> Sentences:
    """Raises RefusedError for damaged files, UnsupportedError for modules that are not known."""
    path = directory / "modules.json"
    kinds = [_module(m, str(path)) for m in read_json(path, list)]
    names = [name for name, _ in kinds]
    if names not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        hint = "expected Transformer and Pooling, and maybe Normalize"
        raise UnsupportedError(f"a sentence embedder of {', '.join(names)}", str(path), hint)
    if kinds[0][1] not in ("", "."):
        raise UnsupportedError(
            f"its encoder is in the folder {kinds[0][1]!r}", str(path), "move it to the top"
        )
    return Sentences(_pooling(directory / kinds[1][1] / "config.json"), len(names) == 3, _longest(directory))


def _module(m: Any, where: str) -> tuple[str, str]:
    """Class and folder of a module; nothing of that name is imported."""
    if not isinstance(m, dict) or not all(isinstance(m.get(k, ""), str) for k in ("type", "path")):
        raise RefusedError("expected objects with type and path", where, AGAIN)
    folder = str(m.get("path", ""))
    if Path(folder).name != folder and folder not in ("", "."):
        raise RefusedError(f"the folder {folder!r} is outside the directory", where, AGAIN)
    return str(m.get("type", "")).rpartition(".")[2], folder


def _pooling(path: Path) -> str:
    config = read_json(path)
    if config is None:
        raise RefusedError("no config of the pooling", str(path), "download it")
    named = config.get("pooling_mode")
    chosen = [named] if named is not None else [k for k, on in config.items() if k in _all(config) and on]
    found = [MODES.get(str(k), str(k)) for k in chosen]
    if len(found) != 1 or found[0] not in MODES.values():
        raise UnsupportedError(f"pooling by {' and '.join(found) or 'nothing'}", str(path), SUPPORTED)
    return found[0]


def _all(config: dict[str, Any]) -> list[str]:
    return [k for k in config if k.startswith("pooling_mode_")]


def _longest(directory: Path) -> int:
    path = directory / "sentence_bert_config.json"
    config = read_json(path) or {}
    if config.get("do_lower_case") is True:
        hint = "use the tokenizer's own normalizer instead"
        raise UnsupportedError("it lowers texts before the tokenizer sees them", str(path), hint)
    most = config.get("max_seq_length")
    return 0 if most is None else whole(most, "max_seq_length", str(path))
