"""Any legal schedule of the contraction template gives the same integers and bit-identical floats."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilewright.ir.encodings  # noqa: F401  registers the built-in encodings
from tests.backends.render_help import runnable
from tilewright.backends.cpp.jit import Compiled, compile_kernel
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.numbers import to_bits
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.core import Kernel, Schedule, Span
from tilewright.ir.tile.verify import verify_kernel
from tilewright.passes.lower import linear

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

N, K = 96, 128
#: weights, activations (an encoding, or a dtype)
FORMS = [
    ("int4(group=32)", "int8(token, sums=32, zero=8)"), ("int8(channel)", "int8(token, sums=0, zero=128)"),
    ("bf16(layout=panel)", "bf16"), ("f32(layout=panel)", "f32"), ("f32(layout=panel)", "bf16"),
    ("int8(group=64)", "f32"),
]  # fmt: skip


def kernel(weights: str, activations: str, schedule: Schedule) -> Kernel:
    b = KernelBuilder("linear")
    dense = "(" not in activations
    x = b.param(
        "x", activations if dense else "f32", ("M", K), None if dense else parse_encoding(activations)
    )
    w, y = b.param("w", "f32", (N, K), parse_encoding(weights)), b.param("y", "f32", ("M", N))
    i, j = b.grid("i", "M", "BM", rows=True), b.grid("j", N, "BN")
    acc = linear.accumulate(b, x, w, linear.TilePosition((slice(i, "BM"),), j, K), [0])
    b.store(y, (Span(i, "BM"), Span(j, "BN")), acc[0])
    names = {s.name for s in _values(b)}
    sizes = tuple((n, v) for n, v in schedule.sizes if n != "BK" or "BK" in str(b.build()))
    stages = tuple(s for s in schedule.stages if s[0] in names)
    loop = next(iter(set("gk") & {v for s in b.build().body for v in [getattr(s, "var", "")]}), "")
    prefetch = tuple((loop if n == "loop" else n, d) for n, d in schedule.prefetch if loop)
    b.schedules.append(replace(schedule, sizes=sizes, stages=stages, prefetch=prefetch))
    made = b.build()
    verify_kernel(made)
    return made


def _values(b: KernelBuilder) -> list[object]:
    from tilewright.ir.tile.core import Let, Load, walk

    return [s for s in walk(b.build().body) if isinstance(s, Let | Load)]


@cache
def built(weights: str, activations: str, schedule: Schedule) -> Compiled:
    return compile_kernel(kernel(weights, activations, schedule), runnable()[-1])


def run(form: tuple[str, str], schedule: Schedule, m: int, threads: int) -> np.ndarray:
    rng = np.random.default_rng(m)
    x = rng.standard_normal((m, K)).astype(np.float32)
    w = rng.standard_normal((N, K)).astype(np.float32)
    e = parse_encoding(form[0])
    if "(" in form[1]:
        a = parse_encoding(form[1])
        xs = a.pack(a.encode(x), x.shape)
    else:
        xs = to_bits(x, form[1])
    arrays = {
        "x": np.ascontiguousarray(xs),
        "w": e.pack(e.encode(w), w.shape),
        "y": np.full((m, N), np.nan, np.float32),
    }
    built(*form, schedule)(arrays, {"M": m}, threads)
    return arrays["y"]


PLAIN = Schedule("*", (("BK", 32), ("BM", 1), ("BN", 16)), order=("j", "i"), threads="j")
SCHEDULES = st.builds(
    lambda bm, bn, bk, order, threads, stages, ahead: Schedule(
        "*", (("BK", bk), ("BM", bm), ("BN", bn)), order=order, threads=threads, stages=stages, prefetch=ahead
    ),
    st.integers(1, 7), st.sampled_from([16, 32, 48]), st.sampled_from([4, 8, 16, 64]),
    st.sampled_from([("j", "i"), ("i", "j")]),
    st.sampled_from(["i", "j", "j i"]), st.sampled_from([(), (("w", "j"),), (("w", "j"), ("s", "j"))]),
    st.sampled_from([(), (("loop", 3),), (("loop", 2), ("copy", 2))]),
)  # fmt: skip


def staged_fits(s: Schedule) -> bool:
    """A value is staged at `j` only where `j` runs outside `i`."""
    return not s.stages or s.order == ("j", "i")


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f[0]} x {f[1]}")
@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SCHEDULES.filter(staged_fits), st.integers(1, 19), st.integers(1, 3))
def test_same_bits(form: tuple[str, str], schedule: Schedule, m: int, threads: int) -> None:
    np.testing.assert_array_equal(run(form, schedule, m, threads), run(form, PLAIN, m, 1))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f[0]} x {f[1]}")
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SCHEDULES.filter(staged_fits), st.integers(1, 40), st.integers(1, 5))
def test_same_bits_more(form: tuple[str, str], schedule: Schedule, m: int, threads: int) -> None:
    np.testing.assert_array_equal(run(form, schedule, m, threads), run(form, PLAIN, m, 1))
