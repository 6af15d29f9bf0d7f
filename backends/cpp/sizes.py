"""Sizes that the calls of a program give a kernel's symbols, so that no code is rendered for others.

In: a program. Out: for each kernel, the integers that a symbol takes, where every call states one; a symbol
that depends on the inputs of a step has no entry and may take any value. In a model of fixed shapes this
leaves a linear layer one schedule of two or three, and of each body that is unrolled for a number of rows
only the one or two that occur.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tilewright.ir.plan.core import Program
from tilewright.ir.tile.core import Condition, Schedule

#: by symbol: all values that it takes
Sizes = Mapping[str, frozenset[int]]


def sizes_of_calls(program: Program) -> dict[str, Sizes]:
    """By kernel; only symbols that every call gives an integer."""
    found: dict[str, dict[str, set[object]]] = {}
    for plan in program.plans:
        for call in plan.calls:
            own = found.setdefault(call.kernel, {})
            for symbol, dim in call.symbols:
                own.setdefault(symbol, set()).add(dim)
    return {
        kernel: {s: numbers for s, dims in own.items() if (numbers := _integers(dims))}
        for kernel, own in found.items()
    }


def _integers(dims: set[object]) -> frozenset[int]:
    """Empty if one of them is not an integer."""
    numbers = frozenset(d for d in dims if isinstance(d, int))
    return numbers if len(numbers) == len(dims) else frozenset()


def used(schedules: Sequence[Schedule], sizes: Sizes) -> tuple[Schedule, ...]:
    """Of schedules in the order in which they are tried, those that some size reaches; the last of them
    without a condition."""
    found: list[Schedule] = []
    for s in schedules:
        if all(_possible(c, sizes) for c in s.when):
            found.append(s)
        if all(_certain(c, sizes) for c in s.when):
            break
    return tuple(found)


def _possible(c: Condition, sizes: Sizes) -> bool:
    return c.symbol not in sizes or any(c.holds({c.symbol: n}) for n in sizes[c.symbol])


def _certain(c: Condition, sizes: Sizes) -> bool:
    return c.symbol in sizes and all(c.holds({c.symbol: n}) for n in sizes[c.symbol])


def reaching(symbol: str, own: Schedule, before: Sequence[Schedule], sizes: Sizes) -> frozenset[int] | None:
    """The values of a symbol with which `own` is used, after the schedules before it; None if any value may
    be."""
    if symbol not in sizes:
        return None
    taken = [s.when[0] for s in before if len(s.when) == 1 and s.when[0].symbol == symbol]
    needed = [c for c in own.when if c.symbol == symbol]
    return frozenset(
        n
        for n in sizes[symbol]
        if all(c.holds({symbol: n}) for c in needed) and not any(c.holds({symbol: n}) for c in taken)
    )
