"""Files of a checkpoint directory that are copied into the artifact, checked before any other work.

In: the folder. Out: nothing, or a RefusedError that names the file. Independent of weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from tilewright.ir.errors import RefusedError
from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.text import tokenizer_of
from tilewright.user_files import read_text

#: files that are taken over unchanged
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json",
    "chat_template.jinja",
)  # fmt: skip
AGAIN = "download the file again, or remove it: a model without a tokenizer takes token ids"


def check_model_files(folder: Path) -> None:
    """RefusedError for one of them that is there and cannot be what its name says."""
    for name in TOKENIZER_FILES:
        if (folder / name).exists():
            text = read_text(folder / name, "a checkpoint directory as `save_pretrained` writes it")
            if name.endswith(".json"):
                _check_json(text, folder / name)
            if name == "tokenizer.json":
                _check_tokenizer(text, folder / name)


def _check_json(text: str, path: Path) -> None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise RefusedError(f"it is not JSON: {str(e)[:160]}", str(path), AGAIN) from None
    if not isinstance(value, dict):
        raise RefusedError(f"expected a JSON object, got a {type(value).__name__}", str(path), AGAIN)


def _check_tokenizer(text: str, path: Path) -> None:
    try:
        tokenizer_of(text, str(path))
    except ArtifactError as e:
        raise RefusedError(e.message, str(path), AGAIN) from None
