"""Encodings by name: what registers them, and the text form that recipes, graphs and artifacts use.

In: text such as `int4(group=32) + sparse(1%)`. Out: an encoding, by the maker that is registered for each
name. A user's file registers its own. Independent of any particular encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from tilewright.ir.encoding import Addend, Encoding, EncodingError
from tilewright.ir.plan.step import RECENT_MOST, RECENT_STEP

Args = Mapping[str, "int | float | str | bool"]
Made = TypeVar("Made", Encoding, Addend)
_REGISTRY: dict[str, Callable[[Args], Encoding]] = {}
_SIDES: dict[str, Callable[[Args], Addend]] = {}


def register_encoding(name: str, make: Callable[[Args], Encoding]) -> None:
    """Make `name(arg, key=value, …)` parse to `make(args)`; positional arguments arrive under "0", "1", …"""
    given: tuple[object, object] = (name, make)
    if not (isinstance(given[0], str) and callable(given[1])):
        raise EncodingError(f"register_encoding: expected a name and a function, got {name!r} and {make!r}")
    if name in _REGISTRY:
        raise EncodingError(f"encoding {name!r} is registered twice")
    _REGISTRY[name] = make


def register_side(name: str, make: Callable[[Args], Addend]) -> None:
    """Make `… + name(arg, key=value, …)` parse to the encoding before the `+` with `make(args)` added."""
    if name in _SIDES:
        raise EncodingError(f"{name!r} is registered twice as an addition to encodings")
    _SIDES[name] = make


def known_encodings() -> tuple[str, ...]:
    return tuple(sorted(_REGISTRY))


def known_sides() -> tuple[str, ...]:
    return tuple(sorted(_SIDES))


def parse_encoding(text: str) -> Encoding:
    """The encoding that a text such as `int4(group=32)` or `int4(group=32) + sparse(1%)` names. EncodingError
    lists the known names.
    """
    of, plus, last = text.rpartition("+")
    if plus:
        beside = _made(last, _SIDES, "unknown addition to an encoding, {}")
        return beside.beside(parse_encoding(of))
    return _made(text, _REGISTRY, "unknown encoding {}")


def parse_cache_encodings(text: str) -> tuple[Encoding, Encoding]:
    """The encodings of keys and values that `KEYS / VALUES` names, or one for both, as caches lay them out;
    `+ recent(N)` may follow (see `recent_rows`). EncodingError if there are more, or kernels do not make one
    of them."""
    text, recent = recent_rows(text)
    parts = text.split("/")
    if len(parts) > 2:
        raise EncodingError(f"{text!r} names {len(parts)} encodings; expected one, or KEYS / VALUES")
    keys, values = (parse_encoding(p) for p in (parts[0], parts[-1]))
    for e in (keys, values):
        if e.ahead_of_time:
            raise EncodingError(f"{e} is only made ahead of time, for weights: {e.ahead_of_time}")
    if recent and keys.element and values.element:
        raise EncodingError(f"recent({recent}) keeps rows in bf16, and {text.strip()} is no smaller; omit it")
    return keys.arranged("keys"), values.arranged("values")


def recent_rows(text: str) -> tuple[str, int]:
    """The text of a cache's encodings without the `+ recent(N)` at its end, and N: of the last N tokens, bf16
    rows are kept beside the encoded ones. 0 without it. EncodingError if N cannot be that."""
    of, plus, last = text.rpartition("+")
    words = last.strip()
    if not plus or not words.startswith("recent") or "/" in words:
        if "recent" in text:
            raise EncodingError(
                f"{text!r}: recent(N) goes last and is of both sides: KEYS / VALUES + recent(N)"
            )
        return text, 0
    number = words.removeprefix("recent(").removesuffix(")").strip()
    n = int(number) if number.isdecimal() else 0
    if words.replace(" ", "") != f"recent({n})" or n % RECENT_STEP or not 0 < n <= RECENT_MOST:
        least = f"a multiple of {RECENT_STEP} from {RECENT_STEP} to {RECENT_MOST}"
        raise EncodingError(f"{words}: expected {least}, as in recent(64)")
    return of, n


def _made(text: str, registry: Mapping[str, Callable[[Args], Made]], unknown: str) -> Made:
    """What the maker registered for a name returns for its arguments."""
    name, _, rest = text.strip().partition("(")
    if rest and not rest.endswith(")"):
        raise EncodingError(f"encoding {text!r}: expected a closing parenthesis")
    args: dict[str, int | float | str | bool] = {}
    for n, part in enumerate(p.strip() for p in rest[:-1].split(",") if p.strip()):
        key, eq, value = part.partition("=")
        args[key.strip() if eq else str(n)] = _value(value.strip() if eq else part)
    make = registry.get(name.strip())
    if make is None:
        beside = (
            f"; write it after an encoding, as in int4(group=32) + {text.strip()}"
            if name.strip() in _SIDES
            else ""
        )
        words = unknown.format(repr(name.strip()))
        raise EncodingError(f"{words}; known: {', '.join(sorted(registry))}{beside}")
    try:
        return make(args)
    except EncodingError:
        raise
    except (ArithmeticError, TypeError, ValueError) as e:
        raise EncodingError(f"encoding {text[:80]!r}: {str(e)[:200]}") from None


def _value(text: str) -> int | float | str | bool:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
