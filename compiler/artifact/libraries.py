"""The libraries of an artifact: built by the backend that has the targets asked for.

In: a placed program, the words of `--target`. Out: a binary per target. Knows no backend.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.backends.base import Binary, Progress
from tilewright.backends.registry import chosen
from tilewright.ir.plan.core import Program


def build_libraries(program: Program, words: str, progress: Progress | None = None) -> Sequence[Binary]:
    """From least to best target, maybe still being built. Raises UnknownTargetError, RefusedError of a backend
    that builds none, and what its compiler raises."""
    backend, targets = chosen(words)
    return backend.build(program, targets, progress)
