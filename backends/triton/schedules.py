"""The schedules that Triton wants: sizes alone, since staging and the order of loops are Triton's own.

In: a kernel, and what it is. Out: one schedule, if every size it needs is known here.
"""

from __future__ import annotations

from tilewright.backends.base import Contraction, ExpertContraction, Work
from tilewright.ir.tile.core import Buffer, For, Kernel, Schedule, walk

TARGET = "triton"
#: rows and columns of a contraction's tile, and elements of K that one iteration takes, at most
ROWS, COLUMNS, STEP = 16, 64, 64


def schedule(kernel: Kernel, work: Work | None) -> Schedule | None:
    """None where a size of the kernel is known neither from what it is nor from its template's schedules."""
    wanted = {s for s in (*(a.step for a in kernel.grid), *_loop_steps(kernel)) if isinstance(s, str)}
    known = _sizes(work)
    for s in kernel.schedules:
        known = dict(s.sizes) | known
    if not wanted <= set(known):
        return None
    return Schedule(TARGET, tuple(sorted((n, known[n]) for n in wanted)))


def _loop_steps(kernel: Kernel) -> list[int | str]:
    return [s.step for s in walk(kernel.body) if isinstance(s, For)]


def _sizes(work: Work | None) -> dict[str, int]:
    if isinstance(work, ExpertContraction):
        return {"BN": 16, "BK": max(8, _unit(work.w))}
    return _contraction(work) if isinstance(work, Contraction) else {}


def _unit(w: Buffer) -> int:
    """Elements along K that are decoded together."""
    form = w.contraction_form
    return 4 if form is None else form.step


def _contraction(c: Contraction) -> dict[str, int]:
    """Powers of two: columns divide the padded width, steps along K hold whole units of codes."""
    least = _unit(c.w)
    panels = -(-c.width // 16)
    columns = max(n for n in (16, 32, COLUMNS) if panels % (n // 16) == 0)
    step = STEP
    while step > least and c.k % step:
        step //= 2
    return {"BM": ROWS, "BN": columns, "BK": max(step, least)}
