"""Reads the small JSON files beside a model's weights.

In: a path. Out: a JSON object or list, None where there is no such file. RefusedError for a file that is
damaged.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tilewright.ir.errors import RefusedError
from tilewright.user_files import read_text

AGAIN = "the file is damaged: download it again"
WANTED = "a checkpoint directory as `save_pretrained` writes it"


def read_json(path: Path, kind: type = dict) -> Any:
    """The file's object, or list if `kind` is list; None if there is no file."""
    if not path.exists():
        return None
    text = read_text(path, WANTED)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise RefusedError(f"cannot read it as JSON: {str(e)[:160]}", str(path), AGAIN) from None
    if not isinstance(found, kind):
        wanted = "a JSON object" if kind is dict else "a list"
        raise RefusedError(f"expected {wanted}, got {type(found).__name__}", str(path), AGAIN)
    return found


def whole(value: object, name: str, where: str, least: int = 1, most: int = 1 << 20) -> int:
    """An integer in a range."""
    if type(value) is not int or not least <= value <= most:
        raise RefusedError(f"{name}: expected an integer from {least} to {most}, got {value!r:.60}", where)
    return value


def number(value: object, name: str, where: str) -> float:
    """A finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise RefusedError(f"{name}: expected a number, got {value!r:.60}", where)
    return float(value)  # type: ignore[arg-type]
