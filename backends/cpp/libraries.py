"""A placed program to built libraries: kernels rendered per level, compiled in parallel, cached by content.

In: a program, levels. Out: one library per level with its source; rendered text is cached by content, as are
the libraries built from it. Independent of graphs or weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from tilewright.backends.base import Binary, PendingBinaries, Progress
from tilewright.backends.cache import code_digest, content_key, open_cache
from tilewright.backends.cpp.build import LibraryBuild, find_compiler, prepare
from tilewright.backends.cpp.isa import prelude
from tilewright.backends.cpp.limits import limits_source
from tilewright.backends.cpp.literals import c_function
from tilewright.backends.cpp.plan import render_step
from tilewright.backends.cpp.render import render_kernel
from tilewright.backends.cpp.sizes import Sizes, sizes_of_calls
from tilewright.backends.cpp.target import Target
from tilewright.ir.plan.core import Program
from tilewright.ir.text.tile_printer import print_kernel, print_record
from tilewright.ir.tile.core import Buffer, Kernel
from tilewright.ir.tile.expand import expand_encodings

#: the step only calls kernels and waits for them: -O3 would not make it faster, but takes the compiler twice
#: as long
STEP_FLAGS = ("-O2",)
#: the modules on which a kernel's text depends
CODE = ("tilewright.ir", "tilewright.backends")


def build_levels(
    program: Program, targets: Sequence[Target], progress: Progress | None = None
) -> Sequence[Binary]:
    """The libraries of a program, from the lowest to the highest level, built in the background: reading the
    sequence waits for them and raises BuildError or CacheError. If no compiler is found, BuildError is raised
    at once.
    """
    find_compiler()
    pool, stop = ThreadPoolExecutor(1, "tilewright-build"), Event()
    made = pool.submit(_build_all, program, targets, progress, stop)
    pool.shutdown(wait=False)
    return PendingBinaries(made, stop)


def prepare_levels(targets: Sequence[Target]) -> None:
    """Begin, in the background, what every build of these levels needs, while capture uses only one
    processor."""
    pool = ThreadPoolExecutor(1, "tilewright-prepare")
    for target in targets:
        pool.submit(prepare, target)
    pool.shutdown(wait=False)


def _build_all(
    program: Program, targets: Sequence[Target], progress: Progress | None, stop: Event
) -> tuple[Binary, ...]:
    return tuple(build_level(program, target, progress, stop) for target in targets)


def build_level(
    program: Program, target: Target, progress: Progress | None = None, stop: Event | None = None
) -> Binary:
    """One level: a file per kernel, and one for the plan. Files are compiled while the next kernels are being
    rendered. Raises CancelledError soon after `stop` is set."""
    texts: dict[str, str] = {}
    sizes = sizes_of_calls(program)
    step = '#include "tw_tables.h"\n' + render_step(program, target, linkage="extern")
    with LibraryBuild(target, target.name, stop=stop) as build:
        for n, k in enumerate(sorted(program.kernels, key=_weight, reverse=True)):
            build.check()
            if progress:
                progress(f"build kernels for {target.name}", n, len(program.kernels))
            texts[k.name] = exported(rendered(k, target, sizes.get(k.name, {})), k.name)
            build.add(prelude(target, texts[k.name]) + texts[k.name])
            if n == 0:
                build.add(step, *STEP_FLAGS)
        if not program.kernels:  # all that it computes is empty
            build.add(step, *STEP_FLAGS)
        build.add(limits_source())
        library: Path = build.finish()
    whole = "\n".join(texts[k.name] for k in program.kernels)
    return Binary(
        target.name, target.features, library, f"{prelude(target, whole)}{whole}\n// ---- the plan\n{step}"
    )


def _weight(kernel: Kernel) -> tuple[int, int]:
    """Sort key: what takes the compiler longest comes first, bodies unrolled around dots, with several
    schedules."""
    text = print_kernel(kernel)
    return text.count(" = dot ") * len(kernel.schedules), len(text)


def rendered(kernel: Kernel, target: Target, called: Sizes) -> str:
    """The kernel as C++, from the cache if it was rendered before. The cache key covers its text after
    encodings are expanded, the layouts of their buffers, the sizes it is called with, and the renderer's
    code. The code of an encoding, which may be a user's, affects only the expanded text."""
    expanded = expand_encodings(kernel)
    records = [print_record(b.encoding.record(_static(b))) for b in expanded.params if b.encoding is not None]
    sizes = [f"{s}: {sorted(called[s])}" for s in sorted(called)]
    key = content_key(code_digest(*CODE), target.name, print_kernel(expanded), *records, *sizes)
    return open_cache().text("rendered", key, ".cpp", lambda: render_kernel(expanded, target, called))


def _static(b: Buffer) -> list[int | None]:
    return [int(d.const) if d.is_const else None for d in b.dims]


def exported(text: str, name: str) -> str:
    """A kernel's function made visible to the other files of its library, and to no other file."""
    function = c_function(name)
    return text.replace(
        f"static void {function}(", f'extern "C" __attribute__((visibility("hidden"))) void {function}(', 1
    )
