"""Options of the `torch.compile` backend: what a user may write into `options={…}`, checked.

In: a mapping. Out: a frozen `Options`. Independent of graphs.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tilewright.arguments import said
from tilewright.ir.errors import RefusedError
from tilewright.recipe import Recipe, resolve_recipe

#: modes that PyTorch documents; they choose among ways of Inductor and mean nothing here
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
#: keys of `Recipe` that may be given beside it
_ENCODINGS = ("weights", "activations")
#: switches of `Recipe` that may be given beside it
_SWITCHES = ("pack",)


@dataclass(frozen=True)
class Options:
    """`recipe`: encodings, as `tilewright.compile` takes them (default `f32`: every tensor keeps its type);
    `target`: CPU levels (`native`); `strict`: an operator without a kernel is an error; `report`: say after
    each graph what was compiled, also where nothing is left to PyTorch; `freeze`: without gradients,
    parameters are packed once, and again when they change; `deterministic`: accepted, results always are;
    `threads`: as PyTorch's (0: `torch.get_num_threads()` when a graph is compiled)."""

    recipe: Recipe
    target: str = "native"
    strict: bool = False
    report: bool = False
    freeze: bool = True
    deterministic: bool = True
    threads: int = 0


def parse_options(options: Mapping[str, object] | None = None, mode: str | None = None) -> Options:
    """Raises RefusedError for a key or value that is not one, with what is close to it."""
    given = dict(options or {})
    _check_mode(mode or given.pop("mode", None))
    known = (*(f.name for f in fields(Options)), *_ENCODINGS, *_SWITCHES)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"options: {', '.join(known)}, mode"
            raise RefusedError(f"unknown option {key!r}", "torch.compile options", hint)
    encodings = {k: str(given.pop(k)) for k in _ENCODINGS if k in given}
    recipe: Any = given.pop("recipe", "f32")
    pack = _switch("pack", given.pop("pack")) if "pack" in given else None
    chosen = resolve_recipe(
        recipe, weights=encodings.get("weights"), activations=encodings.get("activations"), pack=pack
    )
    return Options(chosen, **{k: _checked(k, v) for k, v in given.items()})


def _check_mode(mode: object) -> None:
    if mode is not None and mode not in MODES:
        near = difflib.get_close_matches(str(mode), MODES, 1)
        hint = f"did you mean {near[0]}?" if near else f"modes: {', '.join(MODES)}"
        raise RefusedError(f"unknown mode {said(mode)}", "torch.compile options", hint)


def _switch(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise RefusedError(f"option {key}: expected bool, got {said(value)}", "torch.compile options")
    return value


def _checked(key: str, value: object) -> Any:
    default = next(f.default for f in fields(Options) if f.name == key)
    want = type(default)
    if type(value) is not want:
        message = f"option {key}: expected {want.__name__}, got {said(value)}"
        raise RefusedError(message, "torch.compile options")
    if key == "target":
        from tilewright.backends.registry import chosen

        chosen(str(value))
    if key == "threads" and not 0 <= int(str(value)) <= 1024:
        raise RefusedError(f"option threads: expected 0 to 1024, got {value}", "torch.compile options")
    return value
