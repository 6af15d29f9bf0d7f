"""Hazards of a plan: which calls must wait, since their accesses conflict with those of unfinished calls.

In: a plan with placed buffers. Out: one flag per call. Arena bytes are reused, so ranges are compared, not
names.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.backends.step import PlanError
from tilewright.ir.plan.core import Call, Plan, Program


@dataclass(frozen=True)
class Region:
    """Bytes lo..hi of one memory: `arena`, or the name of an output or state stream."""

    memory: str
    lo: int
    hi: int

    def meets(self, other: Region) -> bool:
        return self.memory == other.memory and self.lo < other.hi and other.lo < self.hi


def waits(program: Program, plan: Plan) -> list[bool]:
    """By call, whether a barrier must precede it. Every thread runs all calls in order."""
    streams = {f"{s.name}.{c.name}" for s in program.states for c in s.streams}
    out: list[bool] = []
    reads: list[Region] = []
    writes: list[Region] = []
    for call in plan.calls:
        r, w = _touches(program, plan, call, streams)
        clash = any(a.meets(b) for a in r for b in writes) or any(
            a.meets(b) for a in w for b in (*reads, *writes)
        )
        if clash:
            reads, writes = [], []
        reads, writes = [*reads, *r], [*writes, *w]
        out.append(clash)
    return out


def _touches(
    program: Program, plan: Plan, call: Call, streams: set[str]
) -> tuple[list[Region], list[Region]]:
    kernel = program.kernel(call.kernel)
    written = set(kernel.written())
    reads: list[Region] = []
    writes: list[Region] = []
    for arg, param in zip(call.args, kernel.params, strict=False):
        region = _region(plan, arg, streams)
        if param.name in written and (region is None or region.memory == "input"):
            raise PlanError(f"plan @{plan.name}: call @{call.kernel} writes {arg}, which is read-only")
        if region is not None:
            reads.append(region)  # a written buffer may be read too: updates in place
            if param.name in written:
                writes.append(region)
    return reads, writes


def _region(plan: Plan, arg: str, streams: set[str]) -> Region | None:
    """None for weights: nothing writes them."""
    name = arg[1:]
    if arg[0] == "@":
        return Region("state " + name, 0, 1) if name in streams else None
    if any(v.name == name for v in plan.inputs):
        return Region("input", 0, 0)
    if any(ref.lstrip("%") == name for _, ref in plan.outputs):
        return Region("output " + name, 0, 1)
    b = next((b for b in plan.buffers if b.name == name), None)
    return Region("arena", b.offset, b.offset + b.nbytes) if b else None
