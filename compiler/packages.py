"""The packages that Tilewright runs on: which versions of each, what for, and the command that gets them.

In: names of packages. Out: PackageError, in one sentence, for one that is missing or of another version.
Imports none of them. The ranges here are those of pyproject.toml (a test compares the two), and another test
runs the lowest of each: of all but torch and triton, whose older builds bring the CUDA libraries with them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

CHECKOUT = "in a checkout: pip install -c constraints.txt '.[compile]'"


@dataclass(frozen=True)
class Package:
    """`extra`: the optional part of the install that brings it (empty: every install has it). `below`: the
    first version that is not accepted (empty: none is known)."""

    extra: str
    use: str
    at_least: str
    below: str = ""

    @property
    def range(self) -> str:
        return f">={self.at_least}" + (f",<{self.below}" if self.below else "")


PACKAGES: Mapping[str, Package] = {
    "torch": Package("compile", "compiling models", "2.11"),
    "transformers": Package("compile", "compiling Hugging Face models", "5.7", "6"),
    "accelerate": Package("compile", "compiling Hugging Face models", "1.0"),
    "safetensors": Package("compile", "compiling Hugging Face models", "0.5"),
    "networkx": Package("compile", "tracing models", "3.2"),
    "lark": Package("compile", "reading IR", "1.2.1"),
    "sympy": Package("compile", "sizes known only at run time", "1.13.3"),
    "pillow": Package("vision", "reading images", "11"),
    "triton": Package("triton", "the GPU backend", "3.4"),
    "numpy": Package("", "everything", "2.0"),
    "tokenizers": Package("", "tokenization", "0.21"),
    "jinja2": Package("", "chat templates", "3.1"),
    "click": Package("", "the command line", "8.1"),
    "rich": Package("", "the command line", "13"),
}


class PackageError(ImportError):
    """A package is missing, or of a version that Tilewright does not work with. `hint`: the command that gets
    it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message}\n  help: {hint}")
        self.message, self.hint = message, hint


def version_of(name: str) -> str | None:
    """Of an installed package; None if it does not exist."""
    from importlib import metadata  # not needed by a program that starts well

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def install(name: str) -> str:
    """The command that gets a package as part of what it belongs to."""
    extra = PACKAGES[name].extra
    return f"pip install 'tilewright[{extra}]'" if extra else "pip install tilewright"


def problem(name: str, version: str | None) -> PackageError | None:
    """Why this version (None: not installed) does not do."""
    wanted = PACKAGES[name]
    if version is None:
        more = f" ({CHECKOUT})" if wanted.extra == "compile" else ""
        return PackageError(f"{name} is not installed (for {wanted.use})", install(name) + more)
    have = _numbers(version)
    if have < _numbers(wanted.at_least):
        fault = "too old"
    elif wanted.below and have >= _numbers(wanted.below):
        fault = "too new"
    else:
        return None
    message = f"{name} {version} is {fault}: this version of Tilewright works with {name}{wanted.range}"
    return PackageError(message, f"pip install '{name}{wanted.range}'")


def require(*names: str) -> None:
    """Raises PackageError for the first package that is missing or of another version."""
    for name in names:
        found = problem(name, version_of(name))
        if found is not None:
            raise found


def missing(e: ImportError) -> PackageError | None:
    """What to say of an import that failed because a package does not exist; None for any other failure."""
    name = (e.name or "").partition(".")[0]
    return problem(name, None) if isinstance(e, ModuleNotFoundError) and name in PACKAGES else None


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` as (2, 13): numbers up to the first other part, without zeros at the end, so that 5 equals
    5.0."""
    parts = [int(x) for x in re.findall(r"\d+", (re.match(r"[\d.]+", version) or [""])[0])]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
