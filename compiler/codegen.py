"""A placed program to built libraries: kernels rendered per level, spread over files, compiled in parallel, cached by content.

In: a program, levels. Out: one library per level with its source; rendered text is kept by content, like what is built from
it. Knows nothing of graphs or weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tilewright.artifact import Level, PendingLevels
from tilewright.backends.cpp.build import build_library, find_compiler
from tilewright.backends.cpp.cache import Cache, cache_root, code_digest, content_key
from tilewright.backends.cpp.isa import prelude
from tilewright.backends.cpp.limits import limits_source
from tilewright.backends.cpp.plan import render_step
from tilewright.backends.cpp.render import render_kernel
from tilewright.backends.cpp.target import Target
from tilewright.ir.plan import Program
from tilewright.ir.tile import Buffer, Kernel
from tilewright.ir.tile_expand import expand_encodings
from tilewright.ir.tiletext.printer import print_kernel, print_record

#: told what is under way: text, done, total
Progress = Callable[[str, int, int], None]
#: our own code that decides a kernel's text
CODE = ("tilewright.ir", "tilewright.passes", "tilewright.backends.cpp")


def build_levels(program: Program, targets: Sequence[Target], progress: Progress | None = None) -> Sequence[Level]:
    """The libraries of a program, from least to best level, built in the background: whoever looks into the sequence waits for
    them, and is told BuildError and CacheError. Raises BuildError if there is no compiler."""
    find_compiler()
    pool = ThreadPoolExecutor(1, "tilewright-build")
    made = pool.submit(_build_all, program, targets, progress)
    pool.shutdown(wait=False)
    return PendingLevels(made)


def _build_all(program: Program, targets: Sequence[Target], progress: Progress | None) -> tuple[Level, ...]:
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
    kernels = [exported(rendered(k, target), k.name) for k in program.kernels]
    step = '#include "tw_tables.h"\n' + render_step(program, target, linkage="extern")
    files = ["\n".join(group) for group in _spread(kernels, 2 * _cpus())]
    sources = [*[prelude(target, text) + text for text in files], step, limits_source()]
    library: Path = build_library(sources, target, name=target.name)
    whole = "\n".join(kernels)
    return Level(target.name, target.features, library, f"{prelude(target, whole)}{whole}\n// ---- the plan\n{step}")


def rendered(kernel: Kernel, target: Target) -> str:
    """The kernel as C++, from the cache if it was rendered before. What decides it is its text once its encodings are expanded,
    how their buffers are laid out, and our own code: an encoding's own code, wherever it stands, has then had its say."""
    plain = expand_encodings(kernel)
    records = [print_record(b.encoding.record(_static(b))) for b in plain.params if b.encoding is not None]
    key = content_key(code_digest(*CODE), target.name, print_kernel(plain), *records)
    return Cache(cache_root()).text("rendered", key, ".cpp", lambda: render_kernel(plain, target))


def _static(b: Buffer) -> list[int | None]:
    return [int(d.const) if d.is_const else None for d in b.dims]


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
