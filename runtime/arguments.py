"""Checks the arguments of public functions: a wrong type or value is a SessionError that names it.

In: values that a caller gave. Out: the same, as plain Python numbers and strings. Independent of what they
mean.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.errors import SessionError
from tilewright.runtime.json_fields import kind

#: more threads than any machine has
MOST_THREADS = 1024


def integer(value: object, name: str, where: str, lo: int, hi: int = (1 << 63) - 1) -> int:
    """An int, or any other integer type (NumPy's), within lo..hi; a bool is refused."""
    try:
        n = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        n = None
    if n is None or isinstance(value, bool):
        raise SessionError(f"{name}: expected an integer, got {kind(value)}", where)
    if not lo <= n <= hi:
        wanted = f"at least {lo}" if hi == (1 << 63) - 1 else f"{lo} to {hi}"
        raise SessionError(f"{name}: expected {wanted}, got {n}", where)
    return n


def threads_of(value: object, where: str) -> int | None:
    """None or 0: as many as this process may use."""
    return None if value is None else integer(value, "threads", where, 0, MOST_THREADS)


def real(value: object, name: str, where: str) -> float:
    """A number that is neither a bool nor text; its range is checked where it is used."""
    if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
        raise SessionError(f"{name}: expected a number, got {kind(value)}", where)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as e:
        raise SessionError(f"{name}: expected a number: {e}", where) from None


def array_of(value: object, where: str) -> NDArray[Any]:
    """A NumPy array of numbers; lists of lists of unequal length, strings and other objects are not."""
    try:
        a = np.asarray(value)
    except (TypeError, ValueError, OverflowError) as e:
        raise SessionError(f"expected numbers, got {kind(value)} ({str(e).splitlines()[0]})", where) from None
    if a.dtype.kind in "OSU":
        raise SessionError(f"expected numbers, got {kind(value)}", where)
    return a


def path_of(value: object, where: str) -> str:
    """A path as text."""
    if not isinstance(value, str | os.PathLike):
        raise SessionError(f"expected a path, got {kind(value)}", where)
    text = os.fspath(value)
    if not isinstance(text, str) or "\0" in text or not text:
        raise SessionError(f"expected a path, got {text!r}", where)
    return text


def texts(value: object, name: str, where: str) -> tuple[str, ...]:
    """None, one string or several, none of them empty."""
    items = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(items, Sequence) or not all(isinstance(s, str) for s in items):
        raise SessionError(f"{name}: expected a string or a list of strings, got {kind(value)}", where)
    if "" in items:
        raise SessionError(f"{name}: an empty stop string would match everywhere", where, "leave it out")
    return tuple(utf8(s, name) for s in items)


def utf8(text: str, where: str) -> str:
    """The text, if it can be written as UTF-8: halves of characters (lone surrogates) cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        message = f"is not UTF-8 text: {text[e.start : e.start + 1]!r} at {e.start}"
        raise SessionError(message, where, "pass text that was decoded from UTF-8") from None
    return text
