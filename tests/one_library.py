"""All kernels of a program in one library: the C++ compiler then starts once for hundreds of small ones.

In: a placed or lowered program, a level. Out: what `PlanRunner` calls for each kernel, as `optexec.compiled`
does one by one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from tilewright.backends.cpp.build import build_library
from tilewright.backends.cpp.isa import TARGETS, prelude
from tilewright.backends.cpp.render import render_kernel
from tilewright.ir.interp.plan import Runner
from tilewright.ir.plan.core import Program
from tilewright.ir.tile.core import Kernel
from tilewright.ir.tile.expand import expand_encodings

_ENTRY = 'extern "C" void call_{name}(void* const* P, const int64_t* D) {{ k_{name}(P, D, 0, 1); }}\n'


def one_library(program: Program, target_name: str) -> Runner:
    """A runner over one library of the program's kernels."""
    target = TARGETS[target_name]
    plain = {k.name: expand_encodings(k) for k in program.kernels}
    text = "\n".join(render_kernel(k, target) for k in plain.values())
    source = prelude(target, text) + text + "".join(_ENTRY.format(name=n) for n in plain)
    library = ctypes.CDLL(str(build_library(source, target, name="batch")))

    def run(
        kernel: Kernel, arrays: Mapping[str, NDArray[Any]], symbols: Mapping[str, int], *_: object
    ) -> None:
        pointers = [arrays[b.name].ctypes.data for b in kernel.params]
        sizes = [symbols[s] for s in kernel.symbols]
        entry = getattr(library, f"call_{kernel.name}")
        entry(
            (ctypes.c_void_p * max(len(pointers), 1))(*pointers),
            (ctypes.c_int64 * max(len(sizes), 1))(*sizes),
        )

    return run
