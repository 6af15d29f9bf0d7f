"""A placed program to built libraries: kernels rendered per level, spread over files, compiled in parallel, cached by content.

In: a program, levels. Out: one library per level with its source. Knows nothing of graphs or weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tilewright.artifact import Level
from tilewright.backends.cpp.build import build_library
from tilewright.backends.cpp.isa import prelude
from tilewright.backends.cpp.limits import limits_source
from tilewright.backends.cpp.plan import render_step
from tilewright.backends.cpp.render import render_kernel
from tilewright.backends.cpp.target import Target
from tilewright.ir.plan import Program

#: told what is under way: text, done, total
Progress = Callable[[str, int, int], None]


def build_levels(program: Program, targets: Sequence[Target], progress: Progress | None = None) -> tuple[Level, ...]:
    """The libraries of a program, from least to best level. Raises BuildError and CacheError."""
    out = []
    for n, target in enumerate(targets):
        if progress:
            progress(f"build {target.name}", n, len(targets))
        out.append(build_level(program, target))
    if progress:
        progress("build", len(targets), len(targets))
    return tuple(out)


def build_level(program: Program, target: Target) -> Level:
    """One level: a file per group of kernels, and one for the plan."""
    kernels = [exported(render_kernel(k, target), k.name) for k in program.kernels]
    step = '#include "tw_tables.h"\n' + render_step(program, target, linkage="extern")
    files = ["\n".join(group) for group in _spread(kernels, 2 * _cpus())]
    sources = [*[prelude(target, text) + text for text in files], step, limits_source()]
    library: Path = build_library(sources, target, name=target.name)
    whole = "\n".join(kernels)
    return Level(target.name, target.features, library, f"{prelude(target, whole)}{whole}\n// ---- the plan\n{step}")


def exported(text: str, name: str) -> str:
    """A kernel's function made visible to the other files of its library, and to nobody else."""
    return text.replace(f"static void k_{name}(", f'extern "C" __attribute__((visibility("hidden"))) void k_{name}(', 1)


def _spread(texts: Sequence[str], files: int) -> list[list[str]]:
    """Longest first onto the emptiest file: compile time follows the number of lines."""
    groups: list[list[str]] = [[] for _ in range(max(1, min(files, len(texts))))]
    for text in sorted(texts, key=len, reverse=True):
        min(groups, key=lambda g: sum(map(len, g))).append(text)
    return [g for g in groups if g]


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
