"""A placed program, built for an artifact or loaded into this process by the backend of its targets.

In: a program, the words of `--target`, weights. Out: a binary per target, or an executable. Knows no backend.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.backends.base import Backend, Binary, Executable, Progress
from tilewright.backends.registry import chosen
from tilewright.ir.errors import RefusedError
from tilewright.ir.plan.core import Program
from tilewright.ir.weights.sources import WeightStore
from tilewright.runtime.cpu import cpu_features


def build_libraries(program: Program, words: str, progress: Progress | None = None) -> Sequence[Binary]:
    """From least to best target, maybe still being built. Raises UnknownTargetError, RefusedError of a
    backend that builds none, and what its compiler raises.
    """
    backend, targets = chosen(words)
    return backend.build(program, targets, progress)


def load_program(
    program: Program, weights: WeightStore, words: str, threads: int | None = None
) -> Executable:
    """The program and its weights in this process, for the best of the targets that it can run. Raises what
    `Backend.load` raises, and RefusedError if this processor runs none of them."""
    backend, targets = chosen(words)
    return backend.load(program, weights, _best(backend, targets), threads)


def _best(backend: Backend, targets: Sequence[str]) -> str:
    lacking = {t: [f for f in backend.targets[t] if f not in cpu_features()] for t in targets}
    fit = [t for t in targets if not lacking[t]]
    if not fit:
        fewest = min(lacking.values(), key=len)
        hint = "compile with target native, or save the model and load it on another machine"
        raise RefusedError(f"this CPU lacks {', '.join(fewest)}", f"target {', '.join(targets)}", hint)
    return fit[-1]
