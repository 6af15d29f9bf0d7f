"""The source of the machine-limits benchmark, part of each level's library so that it needs no compiler."""

from __future__ import annotations

from pathlib import Path

from tilewright.backends.cpp.build import build_library
from tilewright.backends.cpp.target import Target


def limits_source() -> str:
    """One more source for `build_library`: the library then exports `tw_limits`. It builds in a tenth of a
    second."""
    return '#include "tw_limits.h"\n'


def build_limits(target: Target) -> Path:
    """The benchmark alone, for one level, as a shared library in the cache."""
    return build_library(limits_source(), target, name=f"limits-{target.name}")
