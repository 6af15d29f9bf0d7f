"""Prefetches, recorded while kernels run: all lines of a tall tile's operands, none for few rows.

That no prefetch changes a result is tested in `test_schedule_freedom`.
"""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tilewright.backends.cpp.build import build_library
from tilewright.backends.cpp.jit import Compiled, compile_kernel, source_of
from tilewright.backends.cpp.levels import TARGETS
from tilewright.backends.cpp.render import render_kernel
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.core import Condition, Kernel, Schedule
from tilewright.tools.kernel_arrays import kernel_arrays

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

K, N = 64, 96
LEVEL = "baseline"
EPILOGUE = (("epilogue", 1),)


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


#: in front of a kernel's source: its fetches are written down instead
_NOTED = """
extern "C" { const char* fetched[4096]; long long fetches; }
#define __builtin_prefetch(address, ...) ((void)(fetched[fetches++] = (const char*)(address)))
"""


def fetched(kernel: Kernel, name: str, rows: int, ahead: bool | None = None) -> list[int]:
    """Bytes from the start of a parameter that the kernel fetches when it runs on so many rows, in order.
    `ahead`: what the library is told of the processor."""
    source = _NOTED + source_of(kernel, LEVEL)
    path = build_library(source, TARGETS[LEVEL], name="noted")
    noted = Compiled(kernel, source, ctypes.CDLL(str(path)))
    if ahead is not None:
        noted.library.set_ahead(int(ahead))
    count = ctypes.c_longlong.in_dll(noted.library, "fetches")
    count.value = 0
    arrays = kernel_arrays(kernel, {"M": rows}, {}, 0)
    noted(arrays, {"M": rows})
    places = (ctypes.c_void_p * 4096).in_dll(noted.library, "fetched")[: count.value]
    start, size = arrays[name].ctypes.data, arrays[name].nbytes
    return [p - start for p in places if p is not None and 0 <= p - start < size]


@pytest.mark.parametrize("rows", [1, 3, 4, 8])
def test_every_line_of_a_residual_is_fetched_once(rows: int) -> None:
    tall = Schedule("*", (("BM", 3), ("BN", 32)), order=("j", "i"), options=EPILOGUE)
    assert sorted(fetched(residual(tall), "r", rows)) == list(range(0, 4 * N * rows, 64))


def test_a_residual_is_fetched_before_the_dots() -> None:
    tall = Schedule("*", (("BM", 3), ("BN", 32)), order=("j", "i"), options=EPILOGUE)
    text = render_kernel(residual(tall), TARGETS["avx512"])
    assert text.index("__builtin_prefetch(p_r") < text.index("for (int64_t i_k")


def test_the_schedule_says_whether_it_is_fetched() -> None:
    """Not its condition: the renderer decides nothing."""
    few = Schedule("*", (("BM", 3), ("BN", 32)), when=(Condition("M", "<=", 8),), order=("j", "i"))
    rest = Schedule("*", (("BM", 1), ("BN", 16)), order=("j", "i"), options=EPILOGUE)
    kernel = residual(few, rest)
    assert fetched(kernel, "r", 8) == []
    assert sorted(fetched(kernel, "r", 9)) == list(range(0, 4 * N * 9, 64))
    assert fetched(residual(replace(few, when=())), "r", 9) == []


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
    always, asked = fetched(streaming(()), "w", 1), streaming((("foreseen", 1),))
    assert len(always) == len(set(always)) > 0
    assert fetched(asked, "w", 1, ahead=True) == always
    assert fetched(asked, "w", 1, ahead=False) == []


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_blocks_of_several_rows_always_fetch(rows: int) -> None:
    kernel = streaming((("foreseen", 1),), 3)
    assert fetched(kernel, "w", rows, ahead=False) == fetched(kernel, "w", rows, ahead=True) != []
    assert fetched(kernel, "w", 1, ahead=False) == []


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
    source = (
        '#include "tw_ahead.h"\nextern "C" int pays(const char* v, unsigned s) { return '
        "tw_ahead_pays(v, s); }\n"
    )
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
