"""Which backends there are: a table of names and import paths, each imported when it is first requested.

In: a backend's name, or the words of `--target`. Out: the backend and its targets. A package of its own
registers itself with `register_backend`; nothing else of the compiler names a backend.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from tilewright.backends.base import Backend

#: name -> `module:object`; in the order in which backends are asked
_PATHS: dict[str, str] = {
    "cpp": "tilewright.backends.cpp.backend:BACKEND",
    "triton": "tilewright.backends.triton.backend:BACKEND",
}


class UnknownTargetError(ValueError):
    """A target that no backend has."""


def register_backend(name: str, path: str) -> None:
    """Add a backend, which is imported when it is first requested. `path`: `package.module:OBJECT`. Raises
    ValueError if the name is taken by another path."""
    if _PATHS.setdefault(name, path) != path:
        raise ValueError(f"backend {name!r} is registered already, as {_PATHS[name]}")


def known_backends() -> tuple[str, ...]:
    """Names, in the order in which they were registered."""
    return tuple(_PATHS)


def default_backend() -> str:
    """The name of the backend that a compile is for unless it names another: the first registered."""
    return next(iter(_PATHS))


@cache
def backend(name: str) -> Backend:
    """A backend by name. Raises ValueError for a name that is not registered."""
    if name not in _PATHS:
        raise ValueError(f"no backend {name!r}; registered are {', '.join(_PATHS)}")
    module, _, attribute = _PATHS[name].partition(":")
    found: Backend = getattr(import_module(module), attribute)
    return found


def chosen(words: str) -> tuple[Backend, tuple[str, ...]]:
    """The backend that has all the targets in a user's request (`native`, `avx2, avx512`, `triton`), and
    these targets, from least to best. Raises UnknownTargetError naming the word that no backend knows.
    """
    for name in _PATHS:
        if targets := backend(name).choose(words):
            return backend(name), targets
    each = [w.strip() for w in words.split(",")]
    wrong = next((w for w in each if not any(backend(name).choose(w) for name in _PATHS)), None)
    if wrong is None:
        raise UnknownTargetError(f"targets {words!r} belong to different backends; name those of one")
    raise UnknownTargetError(f"unknown target {wrong!r}; expected native, all, or some of {_known()}")


def _known() -> str:
    return ", ".join(t for name in _PATHS for t in backend(name).targets)
