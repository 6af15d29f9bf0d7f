"""What schedules of the C++ backend decide: the renderer follows each option and decides nothing itself."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.backends.render_help import compiled, runnable
from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.plan import render_step
from tilewright.backends.cpp.render import render_kernel
from tilewright.capture import capture_directory
from tilewright.ir.plan.core import Program
from tilewright.ir.text.tile_parser import parse_kernels
from tilewright.ir.text.tile_printer import print_kernels
from tilewright.ir.tile.core import Kernel
from tilewright.pipeline import run_pipeline
from tilewright.recipe import resolve_recipe
from tilewright.tools.ir_text import kernel_arrays

TINY_LLAMA = Path(__file__).parents[2] / "examples" / "models" / "tiny-llama"
#: a level whose dots of bytes add to 32 bits at once; others have no accumulators to split
LEVEL = "avx512_vnni"


@cache
def program() -> Program:
    return run_pipeline(capture_directory(TINY_LLAMA), resolve_recipe("w8a8")).program


def linear() -> Kernel:
    return next(k for k in program().kernels if k.name.startswith("linear"))


def with_option(k: Kernel, name: str, value: int | None) -> Kernel:
    def changed(options: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
        rest = tuple(o for o in options if o[0] != name)
        return rest if value is None else (*rest, (name, value))

    return replace(k, schedules=tuple(replace(s, options=changed(s.options)) for s in k.schedules))


def joined_sums(k: Kernel) -> int:
    """How many registers of integers are added to each other: each joins one sum more to an accumulator."""
    return len(re.findall(r"const i32x16 v\d+ = v\d+ \+ v\d+;", render_kernel(k, TARGETS[LEVEL])))


def test_sums_side_by_side_are_the_schedules_choice() -> None:
    assert {dict(s.options)["sums"] for s in linear().schedules} == {8}
    none, two, four, eight = (joined_sums(with_option(linear(), "sums", n)) for n in (None, 2, 4, 8))
    assert none == two < four < eight


@pytest.mark.skipif(LEVEL not in runnable(), reason=f"this machine does not run {LEVEL}")
def test_sums_change_no_bit() -> None:
    found = []
    for sums in (None, 4, 8):
        kernel = with_option(linear(), "sums", sums)
        arrays = kernel_arrays(kernel, {"M": 1}, {}, 0)
        compiled(kernel, LEVEL)(arrays, {"M": 1}, 1)
        found.append({n: arrays[n].tobytes() for n in kernel.written()})
    assert found[0] == found[1] == found[2]
    assert any(np.frombuffer(x, np.uint8).any() for x in found[0].values())


def parts_of(p: Program) -> dict[str, set[int]]:
    """The parts of each kernel's calls in the generated tables."""
    found: dict[str, set[int]] = {}
    for name, parts in re.findall(
        r"^  \{k_(\w+),.* (?:true|false), (\d+), \d+\},", render_step(p, LEVEL), re.M
    ):
        found.setdefault(name, set()).add(int(parts))
    return found


def test_parts_are_the_schedules_choice() -> None:
    parts = parts_of(program())
    stated = {k.name: max(dict(s.options).get("parts", 1) for s in k.schedules) for k in program().kernels}
    assert parts == {name: {n} for name, n in stated.items()}
    assert parts["attend"] == {8} and max(n for x in parts.values() for n in x) > 8
    changed = replace(program(), kernels=tuple(with_option(k, "parts", 3) for k in program().kernels))
    assert set().union(*parts_of(changed).values()) == {3}


def test_the_options_print_and_parse() -> None:
    text = print_kernels([linear()])
    assert re.search(r"options (foreseen=1, )?(epilogue=1, )?sums=8", text)
    assert print_kernels(parse_kernels(text)) == text
