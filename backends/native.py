"""A program behind the C interface of the runtime, running in this process over weights in memory.

In: a program, a library built from it, the image of its weights. Out: an `Executable` that also has the
library itself, over which the runtime's `Model` opens sessions. Any backend whose libraries export
`tilewright.h` can load this way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tilewright.backends.base import Array
from tilewright.backends.storage import content_id
from tilewright.ir.plan.core import Plan, Program
from tilewright.runtime.library import Library
from tilewright.runtime.manifest import GraphEntry, TensorEntry
from tilewright.runtime.stateless import StatelessGraph


class NativeProgram:
    """`threads` None: as many as the process may use."""

    def __init__(
        self, program: Program, library: Path, weights: memoryview, threads: int | None = None
    ) -> None:
        self.program, self.threads = program, threads
        self.library = Library(library, weights, content_id(program))
        self._graphs: dict[str, StatelessGraph] = {}

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """As `Executable` has it."""
        if graph not in self._graphs:
            plan = next(p for p in self.program.plans if p.name == graph)
            meta, alone = dict(self.program.meta), len(self.program.plans) == 1
            self._graphs[graph] = StatelessGraph(self.library, graph_entry(plan), self.threads, meta, alone)
        return self._graphs[graph].run(inputs, bits=True)


def graph_entry(plan: Plan) -> GraphEntry:
    """The signature of a plan as the runtime reads it."""
    buffers = {b.name: b.type for b in plan.buffers} | {v.name: v.type for v in plan.inputs}
    inputs = tuple(
        TensorEntry(v.name, v.type.dtype, tuple(str(d) for d in v.type.shape)) for v in plan.inputs
    )
    outputs = tuple(
        TensorEntry(n, buffers[r.lstrip("%")].dtype, tuple(str(d) for d in buffers[r.lstrip("%")].shape))
        for n, r in plan.outputs
    )
    return GraphEntry(plan.name, inputs, outputs)
