"""Builds and calls a single kernel, for tests and measurements.

In: a kernel, a level, NumPy arrays. Out: the arrays written in place. Independent of plans or artifacts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.backends.cpp.build import build_library
from tilewright.backends.cpp.isa import TARGETS, prelude
from tilewright.backends.cpp.literals import c_function
from tilewright.backends.cpp.render import render_kernel
from tilewright.backends.cpp.sizes import Sizes
from tilewright.ir.tile.core import Kernel

Arrays = Mapping[str, NDArray[np.generic]]

_ENTRY = """
#include <omp.h>
extern "C" void call(void* const* P, const int64_t* D, int64_t nt) {{
  #pragma omp parallel num_threads(nt)
  {name}(P, D, omp_get_thread_num(), nt);
}}
extern "C" double bench(void* const* const* S, int64_t sets, const int64_t* D, int64_t nt) {{
  double t = omp_get_wtime();
  #pragma omp parallel num_threads(nt)
  for (int64_t s = 0; s < sets; ++s) {{
    {name}(S[s], D, omp_get_thread_num(), nt);
    #pragma omp barrier
  }}
  return omp_get_wtime() - t;
}}
"""
#: for a kernel that tests `tw_ahead`: reads the library's choice whether to prefetch, and changes it
_AHEAD = """
#include "tw_ahead.h"
extern "C" int ahead() { return tw_ahead; }
extern "C" void set_ahead(int on) { tw_ahead = on; }
"""


@dataclass(frozen=True)
class Compiled:
    """A kernel in a library of its own."""

    kernel: Kernel
    source: str
    library: ctypes.CDLL

    def __call__(self, arrays: Arrays, symbols: Mapping[str, int] | None = None, threads: int = 1) -> None:
        """Run on arrays by parameter name (packed buffers: their bytes)."""
        self.library.call(self._pointers(arrays), self._symbols(symbols or {}), ctypes.c_int64(threads))

    def bench(
        self,
        sets: Sequence[Arrays],
        symbols: Mapping[str, int] | None = None,
        threads: int = 1,
        best_of: int = 7,
    ) -> float:
        """Seconds per call, the best of several rounds. Each round runs through several sets of buffers, so
        that they are not in the caches."""
        each = [self._pointers(s) for s in sets]
        table = (ctypes.c_void_p * len(each))(*[ctypes.addressof(e) for e in each])
        dims = self._symbols(symbols or {})
        self.library.bench.restype = ctypes.c_double

        def once() -> float:
            return float(self.library.bench(table, ctypes.c_int64(len(each)), dims, ctypes.c_int64(threads)))

        once()
        return min(once() for _ in range(best_of)) / len(each)

    def _pointers(self, arrays: Arrays) -> ctypes.Array[ctypes.c_void_p]:
        missing = [b.name for b in self.kernel.params if b.name not in arrays]
        if missing:
            raise ValueError(
                f"kernel {self.kernel.name} needs arrays for {', '.join(missing)}; got {', '.join(arrays)}"
            )
        for name, a in arrays.items():
            if not a.flags["C_CONTIGUOUS"]:
                raise ValueError(f"array {name} is not contiguous")
        return (ctypes.c_void_p * max(len(self.kernel.params), 1))(
            *[arrays[b.name].ctypes.data for b in self.kernel.params]
        )

    def _symbols(self, symbols: Mapping[str, int]) -> ctypes.Array[ctypes.c_int64]:
        return (ctypes.c_int64 * max(len(self.kernel.symbols), 1))(*[symbols[s] for s in self.kernel.symbols])


def source_of(kernel: Kernel, target_name: str, called: Sizes | None = None) -> str:
    """The whole translation unit. `called`: as in `render_kernel`."""
    target = TARGETS[target_name]
    text = render_kernel(kernel, target, called)
    return (
        prelude(target, text)
        + text
        + (_AHEAD if "tw_ahead" in text else "")
        + _ENTRY.format(name=c_function(kernel.name))
    )


def compile_kernel(kernel: Kernel, target_name: str, called: Sizes | None = None) -> Compiled:
    """Rendered, built and loaded. Raises what rendering raises, and the compiler's message if it fails.
    `called`: as in `render_kernel`."""
    source = source_of(kernel, target_name, called)
    path = build_library(source, TARGETS[target_name], name=c_function(kernel.name))
    return Compiled(kernel, source, ctypes.CDLL(str(path)))
