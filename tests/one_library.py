"""Many kernels in one library: the C++ compiler then starts once for dozens of small ones.

In: kernels of different names, or a placed or lowered program; a level. Out: what `PlanRunner` calls for each
kernel, as `ir_text.compiled` does one by one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from tilewright.backends.cpp.build import LibraryBuild
from tilewright.backends.cpp.isa import TARGETS, prelude
from tilewright.backends.cpp.literals import c_function
from tilewright.backends.cpp.render import render_kernel
from tilewright.ir.interp.plan import Runner
from tilewright.ir.plan.core import Program
from tilewright.ir.tile.core import Kernel
from tilewright.ir.tile.expand import expand_encodings

#: kernels per source file: several files keep several processors busy
CHUNK = 16
_ENTRY = 'extern "C" void call_{0}(void* const* P, const int64_t* D) {{ {0}(P, D, 0, 1); }}\n'


def one_library(program: Program, target_name: str) -> Runner:
    """A runner over one library of the program's kernels."""
    return library_of([expand_encodings(k) for k in program.kernels], target_name)


def library_of(kernels: Sequence[Kernel], target_name: str) -> Runner:
    """A runner, by one thread, over one library of these kernels. Raises ValueError if two have one name."""
    if len({k.name for k in kernels}) < len(kernels):
        raise ValueError("kernels of one library need names of their own")
    with LibraryBuild(TARGETS[target_name], "batch") as build:
        for at in range(0, len(kernels), CHUNK):
            build.add(_source(kernels[at : at + CHUNK], target_name))
        library = ctypes.CDLL(str(build.finish()))

    def run(
        kernel: Kernel, arrays: Mapping[str, NDArray[Any]], symbols: Mapping[str, int], *_: object
    ) -> None:
        pointers = [arrays[b.name].ctypes.data for b in kernel.params]
        sizes = [symbols[s] for s in kernel.symbols]
        entry = getattr(library, f"call_{c_function(kernel.name)}")
        entry(
            (ctypes.c_void_p * max(len(pointers), 1))(*pointers),
            (ctypes.c_int64 * max(len(sizes), 1))(*sizes),
        )

    return run


def _source(kernels: Sequence[Kernel], target_name: str) -> str:
    target = TARGETS[target_name]
    text = "\n".join(render_kernel(k, target) for k in kernels)
    return prelude(target, text) + text + "".join(_ENTRY.format(c_function(k.name)) for k in kernels)
