"""Places a plan's temporaries in one arena by liveness: first fit, largest first, 64-byte aligned.

In: a program from lowering. Out: the same with every buffer's offset and the arena's size. Two buffers share
bytes only if no call needs both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from tilewright.ir.plan.core import Plan, Program
from tilewright.passes.base import PassContext, ProgramPass

ALIGN = 64


def plan_memory(program: Program) -> Program:
    """Offsets for all plans of a program."""
    return replace(program, plans=tuple(place(p) for p in program.plans))


def place(plan: Plan) -> Plan:
    """The plan with buffers placed; outputs live to the end, though the runtime may hand them to the caller
    directly."""
    lives = _lives(plan)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first call, last call
    offsets: dict[str, int] = {}
    for b in sorted(plan.buffers, key=lambda b: (-b.nbytes, b.name)):
        first, last = lives.get(b.name, (0, len(plan.calls)))
        size = -(-max(b.nbytes, 1) // ALIGN) * ALIGN
        busy = sorted((o, e) for o, e, f, z in placed if f <= last and first <= z)
        at = 0
        for lo, hi in busy:
            if at + size <= lo:
                break
            at = max(at, hi)
        offsets[b.name] = at
        placed.append((at, at + size, first, last))
    total = max((e for _, e, _, _ in placed), default=0)
    buffers = tuple(replace(b, offset=offsets[b.name]) for b in plan.buffers)
    return replace(plan, buffers=buffers, arena_bytes=total)


def _lives(plan: Plan) -> dict[str, tuple[int, int]]:
    """First and last call that touches each buffer."""
    out: dict[str, tuple[int, int]] = {}
    for n, call in enumerate(plan.calls):
        for a in call.args:
            if a[0] == "%":
                first, _ = out.get(a[1:], (n, n))
                out[a[1:]] = (first, n)
    for _, ref in plan.outputs:
        if ref[1:] in out:
            out[ref[1:]] = (out[ref[1:]][0], len(plan.calls))
    return out


@dataclass(frozen=True)
class PlanMemory(ProgramPass):
    """Give every temporary its place in the arena."""

    name = "plan-memory"
    gives: ClassVar[frozenset[str]] = frozenset({"placed"})

    def run(self, program: Program, ctx: PassContext) -> Program:
        return plan_memory(program)
