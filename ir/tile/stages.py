"""Rule 12 for staged values, which are computed at their axis, before the instances inside it run.

They may therefore not depend on anything that is computed there.

In: a kernel whose body is valid (see `tile.verify`) and one of its schedules, whose names exist. Out:
nothing, or a VerifyError. Values carried by a loop and loops without a known number of iterations are refused
later, when the schedule is applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tilewright.ir.affine import Affine
from tilewright.ir.errors import VerifyError
from tilewright.ir.tile.core import For, Kernel, Let, Load, Pick, Schedule, Stmt, index_scalars, walk


def check_stages(kernel: Kernel, schedule: Schedule) -> None:
    """Every stage of one schedule, in order: a later one may use an earlier one."""
    axes = list(dict.fromkeys([*schedule.order, *(a.var for a in kernel.grid)]))
    for n, (value, axis) in enumerate(schedule.stages):
        made = _Made(kernel)
        made.visit(value)
        where = f"schedule {schedule.target}: stage %{value} at {axis}"
        for why, hint in made.problems(axes, axis, schedule.stages[:n]):
            raise VerifyError(f"{where}: {why}", f"kernel @{kernel.name}", hint, 12)


@dataclass
class _Made:
    """What a value depends on: other values, buffers, loops, axes."""

    kernel: Kernel
    values: list[str] = field(default_factory=list)
    buffers: list[str] = field(default_factory=list)
    #: grid axes, symbols, sizes
    names: set[str] = field(default_factory=set)
    #: variables of loops whose bounds are not affine in these
    computed: list[str] = field(default_factory=list)

    def visit(self, value: str) -> None:
        makers = {s.name: s for s in walk(self.kernel.body) if isinstance(s, Let | Load)}
        if value in self.values or value not in makers:
            return
        self.values.append(value)
        made, loops = makers[value], _around(self.kernel.body, value)
        for other in (*made.args, *(index_scalars(made.index) if isinstance(made, Load) else ())):
            self.visit(other)
        if isinstance(made, Load):
            self.buffers.append(made.buffer.partition(".")[0])
        used = set(_names(made))
        for f in reversed(loops):
            if f.var in used:
                used |= {*f.lo.names, *f.hi.names}
                if any(n.startswith("%") for n in (*f.lo.names, *f.hi.names)):
                    self.computed.append(f.var)
        self.names |= used | {n for n in made.type.shape if isinstance(n, str)}

    def problems(
        self, axes: Sequence[str], axis: str, before: Iterable[tuple[str, str]]
    ) -> Iterable[tuple[str, str]]:
        """(why it cannot be staged, what to do)"""
        written = {*self.kernel.written(), *(b.name for b in self.kernel.locals)}
        inside = axes[axes.index(axis) + 1 :]
        sizes = {str(a.step): a.var for a in self.kernel.grid if a.var in inside and isinstance(a.step, str)}
        for name in self.buffers:
            if name in written:
                yield f"it depends on %{name}, which the kernel writes", "stage what the kernel only reads"
        for name in inside:
            if name in self.names:
                yield f"it depends on {name}, an axis inside {axis}", f"stage it at {name}"
        for size, name in sizes.items():
            if size in self.names:
                yield f"it depends on {size}, the size of axis {name} inside {axis}", f"stage it at {name}"
        for value, at in before:
            if value in self.values and at in inside:
                yield f"it depends on %{value}, which is staged at {at}, inside {axis}", f"stage it at {at}"
        for var in self.computed:
            yield f"the bounds of loop {var} around it are computed", "stage it from loops with known bounds"


def _around(body: tuple[Stmt, ...], value: str) -> list[For]:
    """The loops around the statement that makes a value, outer first."""
    for s in body:
        if isinstance(s, For) and any(isinstance(x, Let | Load) and x.name == value for x in walk(s.body)):
            return [s, *_around(s.body, value)]
    return []


def _names(s: Let | Load) -> Iterable[str]:
    """Variables and symbols that a statement names."""
    if isinstance(s, Load):
        return [n for i in s.index if not isinstance(i, Pick) for n in i.start.names]
    affine = [n for _, v in s.attrs if isinstance(v, Affine) for n in v.names]
    return [*affine, *(str(v) for k, v in s.attrs if k == "loop")]
