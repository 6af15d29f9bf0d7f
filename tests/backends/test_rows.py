"""Heights of balanced row blocks: those that occur are rendered, and no others."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch

import tilewright as tw
from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.jit import compile_kernel
from tilewright.backends.cpp.render import render_kernel
from tilewright.backends.cpp.rows import heights, row_counts
from tilewright.backends.cpp.sizes import sizes_of_calls
from tilewright.ir.affine import Affine
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.ir.tile.core import Condition, Schedule

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

KERNEL = """kernel @twice(%x: f32[M, 16], %y: f32[M, 16]) {
  grid rows i in M by BM
  grid j in 16 by 16
  %0 = load %x[i:BM, j:16] : f32[BM, 16]
  %1 = add %0, %0 : f32[BM, 16]
  store %y[i:BM, j:16], %1
  schedule * when M <= 8 { BM=8; order j i; threads j }
  schedule * when M <= 14 { BM=6; order j i; threads j }
  schedule * { BM=5; order j i; threads j }
}
"""


def _blocks(rows: int, most: int) -> set[int]:
    count = -(-rows // most)
    return {(b + 1) * rows // count - b * rows // count for b in range(count)}


@pytest.mark.parametrize("most", range(1, 9))
def test_heights_are_those_of_the_blocks(most: int) -> None:
    for fewest, largest in itertools.product((1, 2, 7, 9, 40, 257), (8, 12, 256, 700)):
        expected = set().union(*(_blocks(m, most) for m in range(fewest, largest + 1)), set())
        assert heights(fewest, largest, most) == expected, (fewest, largest)
    assert heights(9, None, most) == set().union(*(_blocks(m, most) for m in range(9, 2000)))


def _when(*conditions: tuple[str, int]) -> Schedule:
    return Schedule("*", (), when=tuple(Condition("M", op, n) for op, n in conditions))


def test_bounds_come_from_the_schedules_that_did_not_match() -> None:
    m = Affine.of("M")
    few, many, pair = _when(("<=", 8)), _when(("<", 257)), _when(("<=", 4), (">", 2))
    assert row_counts(m, m, few, ()) == (1, 8)
    assert row_counts(m, m, many, (few,)) == (9, 256)
    assert row_counts(m, m, _when(), (few, many)) == (257, None)
    assert row_counts(m, m, _when(), (pair,)) == (1, None)  # either condition may have failed
    assert row_counts(m, m, _when(), (_when((">=", 100)),)) == (1, None)
    assert row_counts(Affine.of(12), m, _when(), ()) == (12, 12)
    assert row_counts(m * 2, m * 2, _when(), (few,)) == (1, None)


def test_every_number_of_rows_is_computed_and_no_other_height_is_rendered() -> None:
    kernel = parse_kernel(KERNEL)
    text = render_kernel(kernel, TARGETS["baseline"])
    rendered = [sorted(int(n) for n in _heights(part)) for part in text.split("static void k_twice_s")[1:]]
    assert rendered == [[1, 2, 3, 4, 5, 6, 7, 8], [4, 5, 6], [4, 5]]
    compiled = compile_kernel(kernel, "baseline")
    for m in range(1, 40):
        x, y = np.arange(16.0 * m, dtype=np.float32).reshape(m, 16), np.full((m, 16), np.nan, np.float32)
        compiled({"x": x, "y": y}, {"M": m})
        assert np.array_equal(y, 2 * x), m


def _heights(text: str) -> list[str]:
    return [part.split(")")[0] for part in text.split("if (h_i == ")[1:]]


def _texts(called: dict[str, frozenset[int]]) -> tuple[str, set[tuple[int, int]]]:
    """The kernel for these sizes, and the pairs of schedule and height that it has code for."""
    text = render_kernel(parse_kernel(KERNEL), TARGETS["baseline"], called)
    found: set[tuple[int, int]] = set()
    for part in text.split("static void k_twice_s")[1:]:
        found |= {(int(part[0]), int(h)) for h in re.findall(r"if \(h_i == (\d+)\)", part)}
    return text, found


@pytest.mark.parametrize("rows", [{1}, {12}, {13, 128}, {3, 9, 20}, set(range(1, 60))])
def test_code_is_rendered_for_the_sizes_of_calls(rows: set[int]) -> None:
    """Each size has the schedule that it has anyway, its blocks their heights, and nothing else is there."""
    most = {0: 8, 1: 6, 2: 5}
    chosen = {n: 0 if n <= 8 else 1 if n <= 14 else 2 for n in rows}
    text, found = _texts({"M": frozenset(rows)})
    numbers = {old: new for new, old in enumerate(sorted(set(chosen.values())))}
    assert found == {(numbers[s], h) for n, s in chosen.items() for h in _blocks(n, most[s])}
    assert text.count("static void k_twice_s") == len(numbers)
    x = {n: np.arange(n * 16, dtype=np.float32).reshape(n, 16) for n in rows}
    kernel = compile_kernel(parse_kernel(KERNEL), "baseline", {"M": frozenset(rows)})
    for n in rows:
        y = np.full((n, 16), np.nan, np.float32)
        kernel({"x": x[n], "y": y}, {"M": n}, 2)
        np.testing.assert_array_equal(y, 2 * x[n])


def test_calls_of_a_program_state_their_sizes() -> None:
    """A symbol that one call derives from the step's inputs may take any value."""
    net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.GELU(), torch.nn.Linear(32, 32))
    x = torch.randn(5, 32)
    fixed = tw.compile(net, example_inputs=(x,), recipe="f32").program
    sizes = sizes_of_calls(fixed)
    assert any(s for s in sizes.values()) and all(v == {5} for s in sizes.values() for v in s.values())
    free = tw.compile(
        net, example_inputs=(x,), dynamic_shapes=({0: torch.export.Dim("B", max=64)},), recipe="f32"
    )
    assert not any(sizes_of_calls(free.program).values())
