"""The probe of the machine's limits as a source to build: the artifact writer places the library beside the kernels'."""

from __future__ import annotations

from pathlib import Path

from tilewright.backends.cpp.build import build_library
from tilewright.backends.cpp.target import Target


def limits_source() -> str:
    """A whole source file; export `tw_limits` (see the header). Small: it builds in a fraction of a second."""
    return '#include "tw_limits.h"\n'


def build_limits(target: Target) -> Path:
    """The probe for one level, as a shared library in the cache."""
    return build_library(limits_source(), target, name=f"limits-{target.name}")
