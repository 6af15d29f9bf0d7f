"""Which CPU levels to build for: names in a user's request to targets.

In: `native`, `all`, or a list of level names. Out: targets from the instruction tables. The processor's
features are detected by `runtime.cpu`.
"""

from __future__ import annotations

from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.target import Target
from tilewright.runtime.cpu import available_levels, missing_features


class UnknownLevelError(ValueError):
    """An unknown level name; the message lists the known ones."""


def native_level() -> Target:
    """The best level of this machine."""
    return TARGETS[available_levels()[0]]


def runnable() -> list[Target]:
    """Targets whose code this machine can run, from least to best."""
    return [t for t in TARGETS.values() if not missing_features(t.name)]


def resolve_levels(text: str) -> tuple[Target, ...]:
    """`native`, `all`, or names separated by commas, as targets from least to best without repetition."""
    names = [n.strip() for n in text.split(",")]
    chosen: set[str] = set()
    for name in names:
        if name not in ("native", "all", *TARGETS):
            raise UnknownLevelError(
                f"unknown CPU level {name!r}; expected native, all, or some of {', '.join(TARGETS)}"
            )
        chosen |= {native_level().name} if name == "native" else set(TARGETS) if name == "all" else {name}
    return tuple(t for n, t in TARGETS.items() if n in chosen)
