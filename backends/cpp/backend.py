"""The C++ backend: every CPU level, from tile programs to libraries that run.

In: kernels and programs. Out: what `backends.base.Backend` promises. It only combines the modules of this
folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tilewright.backends.base import Backend, Binary, KernelFunction, KernelUse, Progress, Support, support_of
from tilewright.backends.cpp import cost, schedules
from tilewright.backends.cpp.build import CANDIDATES
from tilewright.backends.cpp.isa import TARGETS, prelude
from tilewright.backends.cpp.jit import Compiled, compile_kernel
from tilewright.backends.cpp.levels import UnknownLevelError, resolve_levels
from tilewright.backends.cpp.libraries import build_levels, prepare_levels
from tilewright.backends.cpp.plan import library_source
from tilewright.backends.cpp.render import pick_schedules, render_kernel
from tilewright.backends.cpp.sizes import sizes_of_calls
from tilewright.backends.image import in_memory, packed
from tilewright.backends.native import NativeProgram
from tilewright.ir.plan.core import Program
from tilewright.ir.tile.core import Kernel, Schedule
from tilewright.ir.weights.sources import WeightStore


@dataclass(frozen=True)
class CppBackend:
    """Targets are CPU levels; `native` stands for the best level of this machine, `all` for every level."""

    name: str = "cpp"
    compilers: tuple[str, ...] = CANDIDATES

    @property
    def targets(self) -> Mapping[str, tuple[str, ...]]:
        return {name: t.features for name, t in TARGETS.items()}

    def choose(self, words: str) -> tuple[str, ...]:
        try:
            return tuple(t.name for t in resolve_levels(words))
        except UnknownLevelError:
            return ()

    def schedules(self, kernel: Kernel, use: KernelUse) -> tuple[Schedule, ...]:
        return schedules.schedules(kernel, use)

    def supports(self, kernel: Kernel, target: str) -> Support:
        return support_of(self.render, kernel, target)

    def render(self, kernel: Kernel, target: str) -> str:
        return render_kernel(kernel, TARGETS[target])

    def source(self, program: Program, target: str) -> str:
        level = TARGETS[target]
        sizes = sizes_of_calls(program)
        kernels = "\n".join(render_kernel(k, level, sizes.get(k.name)) for k in program.kernels)
        return library_source(prelude(level) + kernels, program, level)

    def function(self, kernel: Kernel, target: str) -> KernelFunction:
        return compile_kernel(kernel, target)

    def prepare(self, targets: Sequence[str]) -> None:
        prepare_levels([TARGETS[t] for t in targets])

    def build(
        self, program: Program, targets: Sequence[str], progress: Progress | None = None
    ) -> Sequence[Binary]:
        return build_levels(program, [TARGETS[t] for t in targets], progress)

    def load(
        self, program: Program, weights: WeightStore, target: str, threads: int | None = None
    ) -> NativeProgram:
        stored = packed(program, weights)
        built = self.build(program, [target])  # while the weights are being packed
        memory = in_memory(program, stored)
        return NativeProgram(program, built[0].library, memory, threads)

    # -------------------------------------------------------------- tuning
    def matching(self, kernel: Kernel, target: str) -> tuple[Schedule, ...]:
        return pick_schedules(kernel, target)

    def predicted(self, kernel: Kernel, schedule: Schedule, target: str, rows: int) -> float:
        return cost.predicted(kernel, schedule, TARGETS[target], rows)

    def timed(self, kernel: Kernel, target: str) -> Compiled:
        return compile_kernel(kernel, target)


BACKEND: Backend = CppBackend()
