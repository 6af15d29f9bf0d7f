"""Programs run call by call from Python: for backends that make functions of kernels and build no library.

In: a backend, a program, weights. Out: an `Executable`, and the part of a backend that follows from it.
Memory is NumPy's, walked by `ir.interp.plan`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.backends.base import (
    Array,
    Backend,
    Binary,
    KernelFunction,
    KernelUse,
    Progress,
    Support,
    support_of,
)
from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.ir.interp.plan import PlanRunner
from tilewright.ir.numbers import bf16_bits, bits_to_bf16
from tilewright.ir.plan.core import Program
from tilewright.ir.tile.core import Kernel, Schedule
from tilewright.ir.weights.sources import WeightStore
from tilewright.runtime.checks import read_checks


@dataclass(frozen=True)
class KernelBackend(ABC):
    """A backend with one target of its own name. Subclasses define `schedules`, `render` and `function`."""

    name: str
    compilers: tuple[str, ...] = ()

    @property
    def targets(self) -> Mapping[str, tuple[str, ...]]:
        return {self.name: ()}

    def choose(self, words: str) -> tuple[str, ...]:
        return (self.name,) if words.strip() == self.name else ()

    @abstractmethod
    def schedules(self, kernel: Kernel, use: KernelUse) -> tuple[Schedule, ...]:
        """As `Backend` has it."""

    @abstractmethod
    def render(self, kernel: Kernel, target: str) -> str:
        """As `Backend` has it."""

    @abstractmethod
    def function(self, kernel: Kernel, target: str) -> KernelFunction:
        """As `Backend` has it."""

    def supports(self, kernel: Kernel, target: str) -> Support:
        return support_of(self.render, kernel, target)

    def source(self, program: Program, target: str) -> str:
        return "\n\n".join(self.render(k, target) for k in program.kernels)

    def prepare(self, targets: Sequence[str]) -> None:  # noqa: B027  doing nothing is its answer
        """There is nothing to prepare."""

    def build(
        self, program: Program, targets: Sequence[str], progress: Progress | None = None
    ) -> Sequence[Binary]:
        hint = "call the compiled model in this process, or compile for a CPU level"
        raise RefusedError("it builds no libraries, which an artifact holds", f"target {self.name}", hint)

    def load(
        self, program: Program, weights: WeightStore, target: str, threads: int | None = None
    ) -> PlanExecutable:
        return PlanExecutable(self, program, weights, target)


class PlanExecutable:
    """A program whose kernels are functions of one backend. UnsupportedError if the backend does not support
    some of them."""

    def __init__(self, backend: Backend, program: Program, weights: WeightStore, target: str) -> None:
        _check(backend, program, target)
        functions: dict[str, KernelFunction] = {k.name: backend.function(k, target) for k in program.kernels}

        def run(kernel: Kernel, arrays: Mapping[str, Array], symbols: Mapping[str, int]) -> None:
            functions[kernel.name](arrays, symbols, 1)

        self.program = program
        self._runner = PlanRunner(program, weights, run)

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As `Executable` has it."""
        plan = next(p for p in self.program.plans if p.name == graph)
        narrow = {v.name for v in plan.inputs if v.type.dtype == "bf16"}
        types = {b.name: b.type.dtype for b in plan.buffers}
        results = self._runner.run(graph, {n: _held(x) if n in narrow else x for n, x in inputs.items()})
        bits = {name for name, ref in plan.outputs if types.get(ref.lstrip("%")) == "bf16"}
        sizes = {
            str(d): n
            for v in plan.inputs
            for d, n in zip(v.type.shape, np.shape(inputs[v.name]), strict=True)
        }
        for check in read_checks(dict(self.program.meta), list(results), len(self.program.plans) == 1):
            check.look(results.pop(check.name), sizes)
        return {n: bf16_bits(np.asarray(x, np.float32)) if n in bits else x for n, x in results.items()}


def _held(x: Array) -> Array:
    return bits_to_bf16(x) if np.asarray(x).dtype == np.uint16 else x


def _check(backend: Backend, program: Program, target: str) -> None:
    answers = {k.name: backend.supports(k, target) for k in program.kernels}
    wrong = [f"  @{name}: {why.reason}" for name, why in answers.items() if not why]
    if wrong:
        message = f"{len(wrong)} of {len(answers)} kernels are not supported:\n" + "\n".join(wrong)
        raise UnsupportedError(message, f"target {target}", "compile for another target")
