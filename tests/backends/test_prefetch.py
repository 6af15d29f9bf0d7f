"""What is fetched ahead, read from the rendered text: every line of what is put to a tall tile's result, and
nothing where few rows are near by. That no prefetch changes a result is `test_schedule_freedom`'s.
"""

from __future__ import annotations

import ctypes
import re
import shutil
from pathlib import Path

import pytest

from tilewright.backends.cpp.build import build_library
from tilewright.backends.cpp.jit import compile_kernel
from tilewright.backends.cpp.levels import TARGETS
from tilewright.backends.cpp.render import render_kernel
from tilewright.ir.encoding import parse_encoding
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.core import Condition, Kernel, Schedule
from tilewright.tools.ir_text import kernel_arrays

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

K, N = 64, 96


def residual(*schedules: Schedule) -> Kernel:
    """x w^T + r"""
    b = KernelBuilder("linear")
    x, w, y, r = (
        b.param(n, "f32", s) for n, s in (("x", ("M", K)), ("w", (N, K)), ("y", ("M", N)), ("r", ("M", N)))
    )
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


def streaming(options: tuple[tuple[str, int], ...], most: int = 1) -> Kernel:
    """y = x w^T whose weights are packed, fetched two steps ahead."""
    b = KernelBuilder("linear")
    w = b.param("w", "f32", (N, K), parse_encoding("bf16(layout=panel)"))
    x, y = b.param("x", "f32", ("M", K)), b.param("y", "f32", ("M", N))
    i, j = b.grid("i", "M", "BM", rows=True), b.grid("j", N, "BN")
    with b.loop("k", 0, K, 8, [b.const(0, "f32", ("BM", "BN"))]) as loop:
        at = slice(loop.var, 8)
        part = b.dot(loop.carried[0], b.load(x, slice(i, "BM"), at), b.load(w, slice(j, "BN"), at))
        loop.yield_(part)
    b.store(y, (slice(i, "BM"), slice(j, "BN")), loop.results[0])
    sizes = (("BM", most), ("BN", 32))
    b.schedules.append(Schedule("*", sizes, order=("j", "i"), prefetch=(("k", 2),), options=options))
    return b.build()


def test_a_processor_may_pass_by_what_it_foresees() -> None:
    always, asked = (render_kernel(streaming(o), TARGETS["baseline"]) for o in ((), (("foreseen", 1),)))
    assert "__builtin_prefetch" in always and "tw_ahead" not in always
    lines = [x for x in asked.splitlines() if "__builtin_prefetch" in x]
    assert lines and all(x.strip().startswith("if (tw_ahead) __builtin_prefetch(") for x in lines)
    assert asked.replace("if (tw_ahead) ", "").endswith(always)


def test_blocks_of_several_rows_always_fetch() -> None:
    text = render_kernel(streaming((("foreseen", 1),), 3), TARGETS["baseline"])
    tall, two, one = re.split(r"if \(h_i == \d\)", text)[1:]
    assert "__builtin_prefetch" in tall and "__builtin_prefetch" in two and "tw_ahead" not in tall + two
    assert one.count("if (tw_ahead) __builtin_prefetch") == one.count("__builtin_prefetch") > 0


def test_the_choice_changes_no_bit() -> None:
    kernel = streaming((("foreseen", 1),))
    built, arrays = compile_kernel(kernel, "baseline"), kernel_arrays(kernel, {"M": 3}, {}, 0)
    found = []
    for on in (0, 1):
        built.library.set_ahead(on)
        arrays["y"][...] = 0
        built(arrays, {"M": 3})
        found.append(arrays["y"].tobytes())
    assert found[0] == found[1] != bytes(len(found[0]))


def test_which_processors_pass_it_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zen 4 does: parts of the families that their vendor lists as such. The environment has the last
    word."""
    source = '#include "tw_ahead.h"\nextern "C" int pays(const char* v, unsigned s) { return tw_ahead_pays(v, s); }\n'
    source += 'extern "C" int ahead() { return tw_ahead; }\n'
    path = build_library(source, TARGETS["baseline"], name="ahead")
    library = ctypes.CDLL(str(path))
    zen3, zen4, zen5 = (0xA20F10, 0xA50F00), (0xA10F11, 0xA60F12, 0xA70F41, 0xAA0F02), (0xB00F21, 0xB40F40)
    amd = [library.pays(b"AuthenticAMD", s) for s in (*zen3, *zen4, *zen5)]
    assert amd == [1] * 2 + [0] * 4 + [1] * 2
    assert library.pays(b"GenuineIntel", 0xA10F11) == 1
    for told, want in (("0", 0), ("1", 1)):
        monkeypatch.setenv("TILEWRIGHT_PREFETCH", told)
        again = shutil.copy(path, tmp_path / f"ahead{told}.so")
        assert ctypes.CDLL(str(again)).ahead() == want
