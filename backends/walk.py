"""Programs run call by call from Python: for backends that run kernels and build no library.

In: a backend, a program, weights. Out: an `Executable`. Memory is NumPy's, walked by `ir.interp.plan`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tilewright.backends.base import Array, Backend, KernelFunction
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.interp.plan import PlanRunner
from tilewright.ir.numbers import bf16_bits, bits_to_bf16
from tilewright.ir.plan.core import Program
from tilewright.ir.tile.core import Kernel
from tilewright.ir.weights.sources import WeightStore
from tilewright.runtime.checks import read_checks


class PlanExecutable:
    """A program whose kernels are functions of one backend. UnsupportedError if it has no form for some of
    them."""

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
        for check in read_checks(dict(self.program.meta), list(results)):
            check.look(results.pop(check.name), sizes)
        return {n: bf16_bits(np.asarray(x, np.float32)) if n in bits else x for n, x in results.items()}


def _held(x: Array) -> Array:
    return bits_to_bf16(x) if np.asarray(x).dtype == np.uint16 else x


def _check(backend: Backend, program: Program, target: str) -> None:
    answers = {k.name: backend.supports(k, target) for k in program.kernels}
    wrong = [f"  @{name}: {why.reason}" for name, why in answers.items() if not why]
    if wrong:
        message = f"{len(wrong)} of {len(answers)} kernels have no form:\n" + "\n".join(wrong)
        raise UnsupportedError(message, f"target {target}", "compile for another target")
