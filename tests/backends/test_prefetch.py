"""What is fetched ahead, read from the rendered text: every line of what is put to a tall tile's result, and nothing where few
rows are near by. That no prefetch changes a result is `test_schedule_freedom`'s."""

from __future__ import annotations

import re

from tilewright.backends.cpp.levels import TARGETS
from tilewright.backends.cpp.render import render_kernel
from tilewright.ir.tile import Condition, Kernel, Schedule
from tilewright.ir.tilebuild import KernelBuilder

K, N = 64, 96


def residual(*schedules: Schedule) -> Kernel:
    """x w^T + r"""
    b = KernelBuilder("linear")
    x, w, y, r = (b.param(n, "f32", s) for n, s in (("x", ("M", K)), ("w", (N, K)), ("y", ("M", N)), ("r", ("M", N))))
    i, j = b.grid("i", "M", "BM", rows=True), b.grid("j", N, "BN")
    with b.loop("k", 0, K, 8, [b.const(0, "f32", ("BM", "BN"))]) as loop:
        at = slice(loop.var, 8)
        part = b.dot(loop.carried[0], b.load(x, slice(i, "BM"), at), b.load(w, slice(j, "BN"), at))
        loop.yield_(part)
    b.store(y, (slice(i, "BM"), slice(j, "BN")), loop.results[0] + b.load(r, slice(i, "BM"), slice(j, "BN")))
    b.schedules += schedules
    return b.build()


def fetched(schedule: Schedule, height: int) -> list[str]:
    """Addresses fetched in the tile of so many rows, in the order they are written."""
    text = render_kernel(residual(schedule), TARGETS["avx512"])
    inside = re.split(r"if \(h_i == \d+\)", text)[1:]
    heights = [int(h) for h in re.findall(r"if \(h_i == (\d+)\)", text)]
    return re.findall(r"__builtin_prefetch\((.*?)\);", inside[heights.index(height)])


def test_every_line_of_a_residual_is_fetched_before_the_dots() -> None:
    tall = Schedule("*", (("BM", 3), ("BN", 32)), order=("j", "i"))
    for height in (3, 1):
        found = fetched(tall, height)
        assert len(found) == len(set(found)) == 2 * height and all(f.startswith("p_r + ") for f in found)
        assert {int(m.group(1)) if (m := re.search(r"r_i \+ (\d+)$", f)) else 0 for f in found} == {
            4 * N * row + 64 * line for row in range(height) for line in range(2)
        }
    text = render_kernel(residual(tall), TARGETS["avx512"])
    assert text.index("__builtin_prefetch(p_r") < text.index("for (int64_t i_k")


def test_nothing_is_fetched_where_the_schedule_is_for_few_rows() -> None:
    few = Schedule("*", (("BM", 3), ("BN", 32)), when=(Condition("M", "<=", 8),), order=("j", "i"))
    rest = Schedule("*", (("BM", 1), ("BN", 16)), order=("j", "i"))
    text = render_kernel(residual(few, rest), TARGETS["avx512"])
    first, second = text.index("_s0("), text.index("_s1(")
    assert "__builtin_prefetch" not in text[first:second] and "__builtin_prefetch" in text[second:]
