"""Cache policies by name, and the text form that Python, the command line and recipes share.

In: text such as `h2o(budget=0.2)`. Out: a policy. Built-in policies are imported when they are first named;
a user's file registers its own with the same decorator.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from importlib import import_module
from typing import TypeVar

from tilewright.runtime.cache.options import near, read_options
from tilewright.runtime.cache.policy import CachePolicy
from tilewright.runtime.errors import SessionError
from tilewright.runtime.json_fields import kind

#: the module of `tilewright.runtime.cache` that registers each built-in policy
HOMES = {
    "full": "basic",
    "window": "basic",
    "random": "basic",
    "h2o": "heavy",
    "tova": "heavy",
    "snapkv": "snap",
    "pyramidkv": "snap",
    "scalekv": "snap",
    "windowkv": "windows",
    "zipvl": "coverage",
    "prefixkv": "coverage",
    "elastic": "merging",
    "d2o": "merging",
    "lookm": "merging",
    "duo": "supplied",
    "trimkv": "supplied",
    "quest": "selecting",
    "kinetics": "selecting",
    "mpcache": "selecting",
}
_REGISTRY: dict[str, type[CachePolicy]] = {}
_FORM = re.compile(r"\s*([\w-]*)\s*(?:\((.*)\))?\s*", re.S)
Policy = TypeVar("Policy", bound=type[CachePolicy])


def register_policy(cls: Policy) -> Policy:
    """Make `cls.name(option=value, …)` known; a decorator, over `@dataclass(frozen=True)` where the class has
    options of its own."""
    own = f"tilewright.runtime.cache.{HOMES.get(cls.name, '')}"
    added = {k for k, hint in inspect.get_annotations(cls).items() if "ClassVar" not in str(hint)}
    if not added <= {f.name for f in fields(cls)}:
        hint = "write @dataclass(frozen=True) between this decorator and the class"
        raise SessionError(
            f"{', '.join(sorted(added))}: not an option yet", f"register_policy({cls.__name__})", hint
        )
    if not cls.name.isidentifier():
        raise SessionError(
            f"name: expected an identifier, got {cls.name!r}", f"register_policy({cls.__name__})"
        )
    if cls.name in _REGISTRY or (cls.name in HOMES and cls.__module__ != own):
        raise SessionError(
            f"cache policy {cls.name!r} is registered twice", "register_policy", "choose another name"
        )
    _REGISTRY[cls.name] = cls
    return cls


def known_policies() -> tuple[str, ...]:
    """Names of all policies, built-in and registered."""
    return tuple(sorted({*HOMES, *_REGISTRY}))


def policy_class(name: str) -> type[CachePolicy]:
    """The class of a policy. SessionError names those that are similar."""
    if name not in _REGISTRY and name in HOMES:
        import_module(f"tilewright.runtime.cache.{HOMES[name]}")
    if name not in _REGISTRY:
        known = known_policies()
        raise SessionError(
            f"unknown cache policy {name!r}{near(name, known)}", "cache", f"known: {', '.join(known)}"
        )
    return _REGISTRY[name]


def parse_policy(text: str | CachePolicy) -> CachePolicy:
    """The policy that a text names; a policy is returned as it is. SessionError says what was expected."""
    if isinstance(text, CachePolicy):
        return text
    if not isinstance(text, str):
        raise SessionError(f"expected text such as h2o(budget=0.2), or a policy, got {kind(text)}", "cache")
    match = _FORM.fullmatch(text)
    if match is None:
        raise SessionError(
            f"{text!r}: expected the form name(option=value, …)", "cache", "for example h2o(budget=0.2)"
        )
    cls = policy_class(match[1])
    return cls(**read_options(cls, match[2] or ""))
