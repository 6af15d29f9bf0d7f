"""Checks arguments of `tilewright.compile` before any work: a wrong or ignored one is a RefusedError.

In: values that a caller gave. Out: nothing, or the error. Whether names and paths exist is checked where they
are used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tilewright.ir.errors import RefusedError

#: arguments that are text, a path or a number, by name: (types, what to say)
TEXT = ("weights", "activations", "kv", "cache", "target", "passes", "rotate", "tokens")
PATHS = ("adapter", "work", "tuning")
#: least value of a number
NUMBERS = {"context": 1, "samples": 1, "sample_tokens": 2, "max_ram": 0}
WHERE = "compile"


def check_arguments(model: object, given: Mapping[str, object]) -> None:
    """`given`: the arguments of `compile` by name; None: not given."""
    for name, value in given.items():
        if value is not None:
            _check(name, value)
    of_folder = isinstance(model, str | os.PathLike)
    hint = "pass an `nn.Module` with example_inputs, or the path of a checkpoint directory"
    if not of_folder and not hasattr(model, "state_dict"):
        raise RefusedError(f"cannot compile {said(model)}", WHERE, hint)
    if isinstance(model, type):
        raise RefusedError(
            f"cannot compile the class {model.__name__}", WHERE, f"pass an instance: {model.__name__}(…)"
        )
    for name in ("example_inputs", "dynamic_shapes") if of_folder else ("adapter",):
        if given.get(name) is not None:
            kind = "a checkpoint directory" if of_folder else "an `nn.Module`"
            raise RefusedError(f"{name} is not supported for {kind}", WHERE, "leave it out")


def check_plain_arguments(plain: bool, given: Mapping[str, object]) -> None:
    """RefusedError for an argument that only caches have a use for, where an encoder or a vision model is
    compiled."""
    for name, value in given.items():
        if plain and value is not None:
            message = f"{name} is for language models: this one keeps no cache"
            raise RefusedError(message, WHERE, "leave it out")


def _check(name: str, value: object) -> None:
    if name in TEXT:
        _expect(name, value, isinstance(value, str) and bool(value.strip()), "a non-empty string")
    elif name in PATHS:
        _expect(name, value, is_path(value), "a path")
    elif name in NUMBERS:
        least = NUMBERS[name]
        _expect(name, value, type(value) is int and value >= least, f"an integer of at least {least}")
    elif name == "pack":
        _expect(name, value, isinstance(value, bool), "True or False")
    elif name == "calibrate":
        _expect(
            name,
            value,
            is_path(value) or isinstance(value, Iterable) and not isinstance(value, str | bytes),
            "the path of a text file or of token ids, or an iterable of samples",
        )
    elif name == "progress":
        _expect(name, value, callable(value), "a function of (text, done, total)")
    elif name == "example_inputs":
        fits = isinstance(value, Sequence | Mapping) and not isinstance(value, str | bytes)
        _expect(name, value, fits, "a tuple of tensors, or a dict of keyword arguments")


def _expect(name: str, value: object, fits: bool, wanted: str) -> None:
    if not fits:
        raise RefusedError(f"{name}: expected {wanted}, got {said(value)}", WHERE)


def output_path(value: object) -> Path:
    """Where to save to."""
    if not is_path(value):
        raise RefusedError(
            f"expected a path, got {said(value)}", "save", "pass the artifact's path, such as model.tw"
        )
    return Path(str(value))


def is_path(value: object) -> bool:
    return isinstance(value, str | Path) and bool(str(value)) and "\0" not in str(value)


def said(value: object) -> str:
    """A value for a message: short, and without running much of its own code."""
    simple = isinstance(value, str | int | float | bytes | bool | None)
    text = repr(value) if simple else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
