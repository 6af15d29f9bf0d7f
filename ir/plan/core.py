"""The execution plan, the last form before source text: kernel calls in order over buffers in one arena.

In: kernels (Tile IR) and a lowered graph. Out: what the step function does, call by call. It prints and
parses like the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.graph.core import State, Value, Weight
from tilewright.ir.plan.step import BLOCK, MOST_SEQUENCES
from tilewright.ir.tile.core import Condition, Kernel
from tilewright.ir.types import SymbolRange, TensorType

#: the largest value that lowering assumes for a symbol without an upper bound
UNBOUNDED = 4096


@dataclass(frozen=True)
class PlanBuffer:
    """A temporary: its type at run time, the bytes it takes at most, and its offset in the arena (-1 before
    placement)."""

    name: str
    type: TensorType
    nbytes: int
    offset: int = -1


@dataclass(frozen=True)
class Call:
    """`call kernel(args…)`: args are `%input`, `%buffer`, `@weight`, `@kv.0.k`, in the kernel's parameter
    order; `symbols` binds the kernel's run-time integers to dimensions of the step, in `kernel.symbols`
    order. `when`: the kernel runs only if all of these hold."""

    kernel: str
    args: tuple[str, ...]
    symbols: tuple[tuple[str, object], ...] = ()
    when: tuple[Condition, ...] = ()
    source: str = ""


@dataclass(frozen=True)
class Plan:
    """One graph as calls. `inputs` and `outputs` are the plan's tensors; outputs name buffers or inputs.
    `counted`: symbols that no input's shape gives, each with a buffer of one i32 that holds its value once
    the call that writes the buffer has run."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[tuple[str, str], ...]
    buffers: tuple[PlanBuffer, ...]
    calls: tuple[Call, ...]
    arena_bytes: int = 0
    counted: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Program:
    """Everything that codegen and the artifact need: kernels once each, plans, weights, states, symbols,
    metadata."""

    kernels: tuple[Kernel, ...]
    plans: tuple[Plan, ...]
    weights: tuple[Weight, ...]
    states: tuple[State, ...]
    symbols: tuple[tuple[str, SymbolRange], ...]
    meta: tuple[tuple[str, object], ...] = ()

    def kernel(self, name: str) -> Kernel:
        for k in self.kernels:
            if k.name == name:
                return k
        raise KeyError(f"program has no kernel @{name}")


def plan_symbols(program: Program) -> tuple[tuple[str, SymbolRange], ...]:
    """The program's symbols, and those that every step has: `Q` (maximum rows of a query block) and `slots`
    (sequences of the session). Those that a caller gives come first, those that plans count last."""
    names = {n for n, _ in program.symbols}
    own = (("Q", SymbolRange(1, BLOCK)), ("slots", SymbolRange(0, MOST_SEQUENCES))) if program.states else ()
    every = (*program.symbols, *((n, r) for n, r in own if n not in names))
    counted = counted_symbols(program)
    return (*(s for s in every if s[0] not in counted), *(s for s in every if s[0] in counted))


def counted_symbols(program: Program) -> frozenset[str]:
    """Symbols whose values plans count while they run, so that no caller gives them."""
    return frozenset(name for p in program.plans for name, _ in p.counted)


def counted_after(program: Program, plan: Plan) -> tuple[int, ...]:
    """For each counted symbol of a plan: the place of the last call that writes its buffer."""
    found = []
    for _, ref in plan.counted:
        writes = [
            n for n, c in enumerate(plan.calls)
            for p, a in zip(program.kernel(c.kernel).params, c.args, strict=True)
            if a == ref and p.name in program.kernel(c.kernel).written()
        ]  # fmt: skip
        found.append(max(writes, default=-1))
    return tuple(found)
