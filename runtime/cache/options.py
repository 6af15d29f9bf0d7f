"""Options of cache policies: from text, to text, and checked, by the types of a dataclass's fields.

In: `budget=0.2, sinks=4`. Out: the values, or a SessionError that says what was expected and what is near a
misspelt name. Independent of what options mean.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from typing import Any, NoReturn, get_type_hints

from tilewright.runtime.errors import SessionError
from tilewright.runtime.json_fields import kind

#: what a value of each type must be, in words
WANTED = {
    int: "a whole number from 0",
    float: "a number",
    str: "text",
    bool: "true or false",
    int | float: "a number of tokens, or a fraction such as 0.2 or 20%",
}
#: text that stands for itself; anything else is quoted
PLAIN = re.compile(r"[\w./:+~-]+")


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean …?` with the known names that are similar, or nothing."""
    found = difflib.get_close_matches(name, list(known), 3)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def refuse(policy: Any, option: str, wanted: str, got: object) -> NoReturn:
    """Raise the error for an option's value."""
    raise SessionError(f"{option}: expected {wanted}, got {got!r}", f"cache policy {policy.name}")


def split(text: str) -> list[str]:
    """Parts between commas that are not inside quotes, without the spaces around them."""
    parts = re.findall(r'(?:"[^"]*"|[^,"])+', text)
    return [p.strip() for p in parts if p.strip()]


def read_options(cls: type[Any], text: str) -> dict[str, Any]:
    """Values by name; those without a name are taken in the order of the fields."""
    known, hints = [f.name for f in fields(cls)], get_type_hints(cls)
    found: dict[str, Any] = {}
    for n, part in enumerate(split(text)):
        name, given, value = part.partition("=") if not part.startswith('"') else (part, "", "")
        if not given:
            if n >= len(known):
                raise SessionError(
                    f"{part!r}: expected at most {len(known)} options", f"cache policy {cls.name}"
                )
            name, value = known[n], part
        name = name.strip()
        if name not in known:
            said = f"unknown option {name!r}{near(name, known)}"
            options = f"its options: {', '.join(known)}" if known else "it has no options"
            raise SessionError(said, f"cache policy {cls.name}", options)
        if name in found:
            raise SessionError(f"option {name!r} is given twice", f"cache policy {cls.name}")
        found[name] = _value(cls, name, hints[name], value.strip())
    lacking = [f.name for f in fields(cls) if _required(f) and f.name not in found]
    if lacking:
        hint = f"write {cls.name}({lacking[0]}=…)"
        raise SessionError(f"option {lacking[0]!r} must be given", f"cache policy {cls.name}", hint)
    return found


def _required(f: Field[Any]) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _value(cls: type[Any], name: str, hint: Any, text: str) -> Any:
    """A value of the field's type."""
    if hint is str:
        return text.strip('"')
    if hint is bool:
        return {"true": True, "false": False}.get(text, text)
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return float(text) if hint is float or not re.fullmatch(r"[+-]?\d+", text) else int(text)
    except ValueError:
        refuse(cls, name, WANTED[hint], text)


def check_options(policy: Any) -> None:
    """Every option of a policy is of its field's type; integers of other types (NumPy's) become Python's."""
    for name, hint in get_type_hints(type(policy)).items():
        if name in {f.name for f in fields(policy)}:
            object.__setattr__(policy, name, _checked(policy, name, hint, getattr(policy, name)))


def _checked(policy: Any, name: str, hint: Any, value: object) -> object:
    if hint not in WANTED:
        raise SessionError(
            f"{name}: options are of type int, float, str, bool or Budget, not {hint}",
            f"cache policy {policy.name}",
        )
    good = value
    if hint in (str, bool):
        ok = isinstance(value, hint)
    elif hint is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        good = float(value) if ok else value  # type: ignore[arg-type]
    elif isinstance(value, float):
        ok = hint is not int and 0 < value <= 1
    else:
        good = _integer(value)
        ok = isinstance(good, int) and good >= 0
    if not ok:
        refuse(policy, name, WANTED[hint], value if isinstance(value, int | float | str) else kind(value))
    return good


def _integer(value: object) -> object:
    """An int of any integer type but bool; anything else as it is."""
    try:
        return value if isinstance(value, bool | str) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return value


def options_text(policy: Any) -> str:
    """`name(option=value, …)`: the budget, and the options that are not at their defaults."""
    values = {f.name: (getattr(policy, f.name), f.default) for f in fields(policy)}
    said = [f"{k}={_text(v)}" for k, (v, default) in values.items() if v != default or k == "budget"]
    return f"{policy.name}({', '.join(said)})" if said else str(policy.name)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if not isinstance(value, str) or PLAIN.fullmatch(text) else f'"{text}"'
