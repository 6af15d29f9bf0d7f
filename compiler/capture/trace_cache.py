"""Captured modules kept as text: a model seen before is not traced again, and PyTorch is not loaded for it.

In: a checkpoint directory, maybe an adapter. Out: its module, from the cache if everything that decides it is
as it was: the configuration, the headers of the weight files, the model's code in transformers, the versions
of the libraries, and our own code. Failures are not kept. Independent of how capture works.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from tilewright.backends.cache import Cache, CacheError, code_digest, open_cache
from tilewright.collector import collected_once, collector_paused
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Module
from tilewright.ir.text.graph_parser import parse_module
from tilewright.ir.text.graph_printer import print_module
from tilewright.ir.weights.safetensors import MAX_HEADER
from tilewright.packages import require
from tilewright.runtime.files import check_folder
from tilewright.tasks.kinds import kind_of

#: what capture runs on
LIBRARIES = ("torch", "transformers", "accelerate", "safetensors")
#: our own code that decides a module and its text
CODE = ("tilewright.capture", "tilewright.tasks", "tilewright.ir")
ADAPTER_CONFIG = "adapter_config.json"
KIND, SUFFIX = "captures", ".ir"


def capture_directory(path: str | Path, *, adapter: str | Path | None = None, weights: bool = True) -> Module:
    """As `huggingface.capture_directory`, or `heads.capture_heads` for what is not a language model; they are
    asked where nothing is kept."""
    for folder in (path, adapter):
        if folder is not None and Path(folder).is_dir():
            _check(Path(folder))
    require("torch", "transformers", "accelerate", "safetensors")
    key = content_key(Path(path), None if adapter is None else Path(adapter)) if weights else None
    cache = open_cache()
    text = None if key is None else cache.read(KIND, key, SUFFIX)
    if text is not None:
        return parse_module(text.decode(), f"{key}{SUFFIX}")
    with collector_paused():
        capture = _capturing(Path(path), adapter, weights)
        with collected_once():
            module = capture()
    if key is not None:
        _keep(cache, key, module)
    return module


def _capturing(path: Path, adapter: str | Path | None, weights: bool) -> Callable[[], Module]:
    """What captures the kind of model in a directory, with its code loaded."""
    kind = kind_of(path)
    if kind is None:
        from tilewright.capture import huggingface

        return lambda: huggingface.capture_directory(path, adapter=adapter, weights=weights)
    from tilewright.capture.heads import capture_heads

    if adapter is not None:
        raise RefusedError("adapters are merged into language models only", str(adapter), "leave it out")
    return lambda: capture_heads(path, kind, weights)


def _check(folder: Path) -> None:
    """Transformers opens what lies there by name: a pipe among it would be waited for."""
    try:
        check_folder(folder)
    except OSError as e:
        raise RefusedError(
            str(e.strerror), str(e.filename), "a checkpoint directory contains regular files only"
        ) from None


def _keep(cache: Cache, key: str, module: Module) -> None:
    """A cache that cannot be written keeps nothing; a caller that needs it to build says so."""
    with contextlib.suppress(CacheError, OSError):
        cache.text(KIND, key, SUFFIX, lambda: print_module(module))


# ------------------------------------------------------------------ the key
def content_key(directory: Path, adapter: Path | None) -> str | None:
    """A name for all that decides the module; None for a model that transformers has no folder for, or a
    directory or an adapter that is not whole: capture then says what is wrong with it."""
    try:
        raw = (directory / "config.json").read_bytes()
        model_type = json.loads(raw)["model_type"]
        source = _model_source(str(model_type))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if source is None:
        return None
    if adapter is not None and not (adapter / ADAPTER_CONFIG).is_file():
        return None
    h = hashlib.sha256()
    for part in _parts(directory, adapter, source):
        h.update(len(part).to_bytes(8, "little") + part)
    return h.hexdigest()[:40]


def _parts(directory: Path, adapter: Path | None, source: Path) -> Iterator[bytes]:
    yield f"{platform.python_version()} {[version(n) for n in LIBRARIES]} {code_digest(*CODE)}".encode()
    for p in sorted(source.glob("*.py")):
        yield p.name.encode() + b"\n" + p.read_bytes()
    for folder in (directory, *([adapter] if adapter else [])):
        named = (*folder.glob("*.json"), *folder.glob("*/config.json"), *folder.glob("*.safetensors"))
        for p in sorted(named):
            yield (
                str(p.relative_to(folder)).encode()
                + b"\n"
                + (_header(p) if p.suffix == ".safetensors" else p.read_bytes())
            )


def _model_source(model_type: str) -> Path | None:
    """The folder of the model's code in transformers, found without importing it."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None or os.sep in model_type:
        return None
    folder = Path(spec.origin).parent / "models" / model_type.replace("-", "_").removesuffix("_text")
    return folder if (folder / "__init__.py").is_file() else None


def _header(path: Path) -> bytes:
    """The header of a weight file with the file's size; a damaged one counts as a few bytes, and capture
    refuses it."""
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        return f"{path.stat().st_size} ".encode() + f.read(min(length, MAX_HEADER))
