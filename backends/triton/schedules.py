"""Schedules for Triton: tile sizes only, since Triton itself decides on staging and the order of loops.

In: a kernel, and what is known of it. Out: one schedule, if all sizes that it needs are known here.
"""

from __future__ import annotations

from tilewright.backends.base import Contraction, ExpertContraction, Work
from tilewright.ir.tile.core import Buffer, For, Kernel, Schedule, walk

TARGET = "triton"
#: the most rows and columns of a contraction's tile, and the most elements of K per iteration
ROWS, COLUMNS, STEP = 16, 64, 64


def schedule(kernel: Kernel, work: Work | None) -> Schedule | None:
    """The schedule; None if some size of the kernel follows neither from `work` nor from its template's
    schedules."""
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
        return {"BM": ROWS, "BN": 16, "BK": max(8, _unit(work.w))}
    return _contraction(work) if isinstance(work, Contraction) else {}


def _unit(w: Buffer) -> int:
    """Elements along K that are decoded together."""
    form = w.contraction_form
    return 4 if form is None else form.step


def _contraction(c: Contraction) -> dict[str, int]:
    """Sizes that are powers of two: the columns divide the padded width, steps along K are whole units of
    codes."""
    least = _unit(c.w)
    panels = -(-c.width // 16)
    columns = max(n for n in (16, 32, COLUMNS) if panels % (n // 16) == 0)
    step = STEP
    while step > least and c.k % step:
        step //= 2
    return {"BM": ROWS, "BN": columns, "BK": max(step, least)}
