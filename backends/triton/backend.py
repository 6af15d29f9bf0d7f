"""The Triton backend: tile programs as Triton kernels, run in Triton's interpreter where there is no GPU.

In: kernels and programs. Out: what `backends.base.Backend` promises, but binaries: artifacts hold libraries
for CPUs. Importing this loads neither Triton nor PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilewright.backends.base import Backend, Binary, KernelFunction, Progress, Support, Work
from tilewright.backends.triton.interpret import run_kernel
from tilewright.backends.triton.render import TARGET, render_kernel
from tilewright.backends.walk import PlanExecutable
from tilewright.ir.errors import RefusedError, TilewrightError
from tilewright.ir.plan.core import Program
from tilewright.ir.tile.core import Kernel, Schedule
from tilewright.ir.weights.sources import WeightStore


@dataclass(frozen=True)
class TritonBackend:
    """One target of the same name."""

    name: str = "triton"
    compilers: tuple[str, ...] = ()

    @property
    def targets(self) -> Mapping[str, tuple[str, ...]]:
        return {TARGET: ()}

    def choose(self, words: str) -> tuple[str, ...]:
        return (TARGET,) if words.strip() == TARGET else ()

    def schedules(self, kernel: Kernel, work: Work | None) -> tuple[Schedule, ...]:
        return ()

    def supports(self, kernel: Kernel, target: str) -> Support:
        try:
            self.render(kernel, target)
        except TilewrightError as why:
            return Support(str(why))
        return Support()

    def render(self, kernel: Kernel, target: str) -> str:
        return render_kernel(kernel)

    def source(self, program: Program, target: str) -> str:
        return "\n\n".join(self.render(k, target) for k in program.kernels)

    def function(self, kernel: Kernel, target: str) -> KernelFunction:
        self.render(kernel, target)
        return lambda arrays, symbols, threads: run_kernel(kernel, arrays, symbols)

    def prepare(self, targets: Sequence[str]) -> None:
        pass

    def build(
        self, program: Program, targets: Sequence[str], progress: Progress | None = None
    ) -> Sequence[Binary]:
        hint = "compile for a CPU level, or call the compiled model, which runs Triton's interpreter"
        raise RefusedError("artifacts hold no Triton kernels", "target triton", hint)

    def load(
        self, program: Program, weights: WeightStore, target: str, threads: int | None = None
    ) -> PlanExecutable:
        return PlanExecutable(self, program, weights, target)


BACKEND: Backend = TritonBackend()
