"""Reads the configuration in a checkpoint directory: whether it is a causal language model, and its fields.

In: a directory. Out: a private copy of its config, and meta for the module's `meta`. Independent of
graphs.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
from pathlib import Path
from typing import Any

from tilewright.capture.hub import HINT
from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.user_files import read_text

#: names under which configs say how many positions a model was made for
_CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
)
CORRECT = "correct the config, or download it again"
#: what configs call their sizes, with more than any model has
SIZES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4096),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads"), 1 << 16),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_dim", "head_dim", "n_positions"),
        1 << 24,
    ),
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), 1 << 30),
}
#: positions of models whose config sets no limit (ALiBi, recurrent)
NO_LIMIT = 2048


def load_config(directory: Path) -> Any:
    """The config of a causal language model. RefusedError or UnsupportedError says why a directory holds
    none."""
    raw = _checked(directory)
    return _causal(_parsed(directory, raw), raw, str(directory / "config.json"))


def load_any_config(directory: Path) -> Any:
    """The config of any model of transformers. RefusedError or UnsupportedError says why a directory holds
    none."""
    return _parsed(directory, _checked(directory))


def _checked(directory: Path) -> dict[str, Any]:
    """config.json as it is, once nothing in it speaks against a model."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise _no_directory(directory)
    raw = _read_json(path)
    if raw is None:
        raise RefusedError("no config.json", str(directory), "pass a directory saved by `save_pretrained`")
    if "model_type" not in raw:
        raise RefusedError(
            "config.json has no model_type", str(path), "use a model that transformers supports"
        )
    if not isinstance(raw["model_type"], str):
        raise RefusedError(f"model_type: expected a name, got {raw['model_type']!r}", str(path), CORRECT)
    _check_sizes(raw, str(path))
    if "auto_map" in raw and not _known(raw["model_type"]):
        hint = (
            "only architectures included in transformers are supported; code from a checkpoint "
            "directory is never run"
        )
        raise UnsupportedError(f"model type {raw['model_type']!r} requires custom code", str(path), hint)
    if raw.get("quantization_config"):
        said = raw["quantization_config"]
        method = said.get("quant_method", "unknown") if isinstance(said, dict) else repr(said)
        hint = "use the unquantized checkpoint and choose the encoding with a recipe"
        raise UnsupportedError(f"checkpoint quantized with {method}", str(path), hint)
    return raw


def _check_sizes(raw: dict[str, Any], where: str, path: str = "") -> None:
    """Sizes and epsilons that no model has: building one would divide by zero, take all memory, or compute
    NaN."""
    for key, value in raw.items():
        name = f"{path}{key}"
        if isinstance(value, dict):
            _check_sizes(value, where, f"{name}.")
        elif isinstance(value, float) and math.isnan(value):
            raise RefusedError(f"{name} is NaN", where, CORRECT)
        elif key in SIZES and value is not None:
            most = SIZES[key]
            for n in value if isinstance(value, list) else [value]:  # some families give one per layer
                if type(n) is not int or not 1 <= n <= most:
                    raise RefusedError(
                        f"{name}: expected an integer from 1 to {most}, got {n!r}", where, CORRECT
                    )
        elif key.endswith(("_eps", "_epsilon")) and value is not None and not _is_epsilon(value):
            raise RefusedError(f"{name}: expected a number from 0 to 1, got {value!r}", where, CORRECT)


def _is_epsilon(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1  # type: ignore[operator]


def _no_directory(path: Path) -> RefusedError:
    """A file, a path with a slip in it, or one word that is neither a folder here nor a hub id."""
    if path.exists():
        return _a_file(path)
    if path.suffix == ".tw":
        return RefusedError(
            "no such artifact", str(path), "create one with `tilewright compile DIR -o model.tw`"
        )
    parent = path.parent
    names = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1)
    if near:
        hint = f"did you mean {str(parent / near[0])!r}?"
    elif path.is_absolute() or len(path.parts) > 1:
        upper = next((p for p in path.parents if p.is_dir()), parent)
        hint = f"check the path: {str(upper)!r} exists" + (
            f", {str(parent)!r} does not" if upper != parent else ""
        )
    else:
        hint = HINT
    return RefusedError(f"no checkpoint directory {str(path)!r}", "", hint)


def _a_file(path: Path) -> RefusedError:
    """A file where a folder is meant: the folder it lies in may be a model, or its kind is none that is
    read."""
    if (path.parent / "config.json").is_file():
        return RefusedError(
            "expected a checkpoint directory, got a file",
            str(path),
            f"pass the folder that contains it: {path.parent}",
        )
    if path.suffix == ".gguf":
        hint = (
            "pass the model that it was created from, a folder with config.json and *.safetensors; "
            "--weights supports GGUF's encodings"
        )
        return RefusedError("GGUF files are not supported as input", str(path), hint)
    if path.suffix in (".bin", ".pt", ".pth"):
        hint = "save the model with `save_pretrained`, and pass that folder"
        return RefusedError(
            "expected a checkpoint directory, got a file (pickles are never opened)", str(path), hint
        )
    return RefusedError("expected a checkpoint directory, got a file", str(path), HINT)


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    text = read_text(path, "a checkpoint directory as `save_pretrained` writes it")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise RefusedError(f"cannot read it as JSON: {e}", str(path), "the file is damaged") from None
    if not isinstance(raw, dict):
        raise RefusedError("expected a JSON object", str(path), "the file is damaged")
    return raw


def _known(model_type: str) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _parsed(directory: Path, raw: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    where = str(directory / "config.json")
    if not _known(raw["model_type"]):
        import transformers

        message = f"model type {raw['model_type']!r} is unknown to transformers {transformers.__version__}"
        raise UnsupportedError(message, where, "update transformers, or pass an `nn.Module`")
    try:
        return copy.deepcopy(AutoConfig.from_pretrained(directory, local_files_only=True))
    except Exception as e:  # whatever a config class raises, it says that the config is none
        said = " ".join(str(e).split()) or type(e).__name__
        raise RefusedError(f"transformers rejects it: {said}", where, CORRECT) from None


def _causal(config: Any, raw: dict[str, Any], where: str) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    listed = raw.get("architectures") or []
    named = [str(n) for n in (listed if isinstance(listed, list) else [listed])]
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    classes = [c.__name__ for c in (known if isinstance(known, tuple) else (known,)) if c is not None]
    if not classes or (named and not set(named) & set(classes)):
        what = ", ".join(named) or raw["model_type"]
        hint = "pass such models as an `nn.Module` with example inputs"
        raise UnsupportedError(f"{what} is not a causal language model", where, hint)
    return config


def context_of(config: Any) -> int:
    """Positions the model was made for."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in _CONTEXT)
    return next((n for n in found if isinstance(n, int) and n > 0), NO_LIMIT)


def metadata_of(directory: Path, config: Any, context: int) -> dict[str, object]:
    """What the module's `meta` says: family, sizes, special tokens."""
    text = config.get_text_config()
    generation = _read_json(directory / "generation_config.json") or {}
    meta: dict[str, object] = {
        "family": str(config.model_type), "vocab": int(text.vocab_size), "context": context,
        "layers": int(text.num_hidden_layers), "heads": int(getattr(text, "num_attention_heads", 0) or 0),
        "dtype": str(getattr(config, "dtype", None) or "float32").removeprefix("torch."),
    }  # fmt: skip
    for name, key in (("bos", "bos_token_id"), ("pad", "pad_token_id"), ("eos", "eos_token_id")):
        value = generation.get(key, getattr(text, key, None))
        ids = tuple(int(v) for v in (value if isinstance(value, list | tuple) else [value]) if v is not None)
        if name == "eos" or ids:
            meta[name] = ids if name == "eos" else ids[0]
    return meta
