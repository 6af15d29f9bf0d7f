"""Schedules never change results: any sizes, order, staging, thread count and level give the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tilewright.ir.encodings.dense
import tilewright.ir.encodings.integer  # noqa: F401
from tests.backends.render_help import compiled, run_both, runnable
from tilewright.backends.cpp.render import pick_schedules
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import RecordSpec, StreamSpec, pack, record
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.core import Condition, Kernel, Schedule

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

N, K = 80, 64
SPEC = RecordSpec(
    "0/16 1/32", (StreamSpec("codes", "u4", "1.4:8 0.16 1.4 1.2:4"), StreamSpec("scale", "f16", "0.16"))
)
BEST = runnable()[-1]


def linear(*schedules: Schedule) -> Kernel:
    """int8 activations times int4 weights, a scale per group of 32."""
    b = KernelBuilder("linear")
    x, _, y = (
        b.param("x", "i8", ("M", K)),
        b.param("w", "f32", (N, K), record=SPEC),
        b.param("y", "f32", ("M", N)),
    )
    i, j = b.grid("i", "M", "BM", rows=True), b.grid("j", N, "BN")
    with b.loop("g", 0, K, 32, [b.const(0, "f32", ("BM", "BN"))]) as loop:
        g = loop.var
        codes = b.load("w.codes", slice(j, "BN"), slice(g, 32)).named("w")
        part = b.dot(b.const(0, "i32"), b.load(x, slice(i, "BM"), slice(g, 32)), codes)
        scale = b.cast("f32", b.transpose(b.load("w.scale", slice(j, "BN"), slice(g, 1)))).named("s")
        loop.yield_(b.op("fma", b.cast("f32", part), scale, loop.carried[0]))
    b.store(y, (slice(i, "BM"), slice(j, "BN")), b.op("exp", loop.results[0] * 0.01))
    b.schedules += schedules
    return b.build()


def data(m: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(m)
    layouts = record(
        (N, K), SPEC.prefix, {"codes": (4, SPEC.streams[0].digits), "scale": (16, SPEC.streams[1].digits)}
    )
    codes, scale = (
        rng.integers(0, 16, (N, K)).astype(np.uint8),
        np.repeat(rng.random((N, K // 32)), 32, 1).astype(np.float16),
    )
    w = pack({"codes": codes, "scale": scale}, layouts, {"codes": 4, "scale": 16})
    return {
        "x": rng.integers(-127, 128, (m, K)).astype(np.int8),
        "w": w,
        "y": np.full((m, N), np.nan, np.float32),
    }


def run(schedule: Schedule, m: int, threads: int, level: str = BEST) -> np.ndarray:
    arrays = data(m)
    compiled(linear(schedule), level)(arrays, {"M": m}, threads)
    return arrays["y"]


PLAIN = Schedule("*", (("BM", 1), ("BN", 16)))
SCHEDULES = st.builds(
    Schedule,
    st.just("*"),
    st.tuples(
        st.tuples(st.just("BM"), st.integers(1, 5)), st.tuples(st.just("BN"), st.sampled_from([16, 32, 48]))
    ),
    order=st.just(("j", "i")),
    threads=st.sampled_from(["i", "j", "j i", ""]),
    stages=st.sampled_from([(), (("w", "j"),), (("w", "j"), ("s", "j"))]),
    prefetch=st.sampled_from([(), (("g", 2), ("copy", 2))]),
)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(SCHEDULES, st.integers(1, 11), st.integers(1, 4))
def test_same_bits(schedule: Schedule, m: int, threads: int) -> None:
    np.testing.assert_array_equal(run(schedule, m, threads), run(PLAIN, m, 1))


@pytest.mark.parametrize("level", runnable())
def test_levels_agree_with_the_interpreter(level: str) -> None:
    """N = 80 is not a multiple of 32: the last column tile is rendered at its own size."""
    run_both(
        linear(Schedule("*", (("BM", 3), ("BN", 32)), order=("j", "i"), threads="j", stages=(("w", "j"),))),
        data(7),
        level,
        {"M": 7},
    )


def test_conditions_choose() -> None:
    few, many = (
        Schedule("*", (("BM", 2), ("BN", 16)), (Condition("M", "<=", 4),)),
        Schedule("*", (("BM", 4), ("BN", 32))),
    )
    kernel = linear(few, many)
    for m in (3, 9):
        arrays = data(m)
        compiled(kernel, BEST)(arrays, {"M": m}, 2)
        np.testing.assert_array_equal(arrays["y"], run(PLAIN, m, 1))


def test_which_schedules_serve_a_level() -> None:
    def at(target: str, **when: int) -> Schedule:
        return Schedule(target, (), tuple(Condition(s, "<=", v) for s, v in when.items()))

    kernel = linear(at("*"), at("avx2"), at("avx512", M=4), at("triton"))
    assert [s.target for s in pick_schedules(kernel, "avx512_vnni")] == ["avx512", "avx2"]
    assert [s.target for s in pick_schedules(kernel, "baseline")] == ["*"]
    with pytest.raises(
        UnsupportedError,
        match="kernel linear: unsupported: no schedule for avx2; there are schedules for avx512",
    ):
        pick_schedules(linear(at("avx512")), "avx2")


def test_unbound_sizes_are_named() -> None:
    with pytest.raises(UnsupportedError, match="is not bound by any schedule"):
        compiled(linear(Schedule("*", (("BM", 2),))), BEST)


@pytest.mark.parametrize("encoding", ["int8(channel)", "int4(group=32)", "bf16(layout=panel)", "f16"])
@pytest.mark.parametrize("level", [runnable()[0], BEST])
def test_encoded_parameters_decode(encoding: str, level: str) -> None:
    e = parse_encoding(encoding)
    b = KernelBuilder("decode")
    w, y = b.param("w", "f32", (48, 64), encoding=e), b.param("y", "f32", (48, 64))
    i = b.grid("i", 48, 16)
    b.store(y, (slice(i, 16), slice(0, 64)), b.load(w, slice(i, 16), slice(0, 64)))
    values = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32)
    run_both(
        b.build(),
        {"w": e.pack(e.encode(values), (48, 64)), "y": np.full((48, 64), np.nan, np.float32)},
        level,
    )
