"""The Triton backend: tile programs as Triton kernels, run in Triton's interpreter where there is no GPU.

In: kernels and programs. Out: all that `backends.base.Backend` promises except binaries, since artifacts hold
libraries for CPUs. Importing this loads neither Triton nor PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.backends.base import Backend, KernelFunction, KernelUse
from tilewright.backends.triton.interpret import run_kernel
from tilewright.backends.triton.render import render_kernel
from tilewright.backends.triton.schedules import TARGET, schedule
from tilewright.backends.walk import KernelBackend
from tilewright.ir.tile.core import Kernel, Schedule


@dataclass(frozen=True)
class TritonBackend(KernelBackend):
    name: str = TARGET

    def schedules(self, kernel: Kernel, use: KernelUse) -> tuple[Schedule, ...]:
        """One schedule for every kernel whose sizes are known; whether Triton supports the kernel is found
        when it is rendered."""
        found = schedule(kernel, use.work)
        return () if found is None else (found,)

    def render(self, kernel: Kernel, target: str) -> str:
        return render_kernel(kernel)

    def function(self, kernel: Kernel, target: str) -> KernelFunction:
        return lambda arrays, symbols, threads: run_kernel(kernel, arrays, symbols)


BACKEND: Backend = TritonBackend()
