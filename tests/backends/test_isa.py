"""Every instruction table entry against its scalar meaning, on random lanes and corners, at every level."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from tilewright.backends.cpp.build import build_library
from tilewright.backends.cpp.isa import TARGETS, prelude
from tilewright.backends.cpp.isa.make import lanes_of
from tilewright.backends.cpp.levels import runnable
from tilewright.backends.cpp.target import CTYPE, Array, Fn, Target, element
from tilewright.ir.numbers import HELD, STORED, from_bits, int_range, round_bf16, to_bits

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

LEVELS = [t.name for t in runnable()]
APPROXIMATE = ("t_exp", "t_log", "t_sin", "t_cos", "t_erf")
WHOLE = ("t_permute", "t_pick", "t_lo", "t_hi", "t_join", "t_shl", "t_shr", "t_bits", "t_dot", "t_reduce")
COUNT = 24

_FLOATS = np.array(
    [0.0, -0.0, 1, -1, 0.5, 1.5, 2.5, -0.5, -2.5, 127.5, 128, -128.5, 254.5, 255.5, 65504, 65520, 65535.5,
    -32768.5, 6e-8, 3e-8,
     1e-40, -1e-40, 3.4e38, -3.4e38, 2147483520, 2147483648, -2147483648, 4294967296, 8388607.5, 1e10, np.inf,
     -np.inf, np.nan],
    np.float32,
)  # fmt: skip


def _ctype(spelled: str) -> str:
    return spelled if lanes_of(spelled) > 1 else CTYPE[element(spelled)]


def wrapper(fn: Fn, name: str) -> str:
    """`name(n, result, operands...)`: n calls on consecutive vectors."""
    params = [f"const char* {x}" for x in "abc"[: len(fn.args)]]
    args = ", ".join(
        f"tw_load<{_ctype(t)}>({x} + i * sizeof({_ctype(t)}))" for t, x in zip(fn.args, "abc", strict=False)
    )
    body = f"tw_store<{_ctype(fn.result)}>(r + i * sizeof({_ctype(fn.result)}), {fn.symbol}({args}))"
    return (
        f'extern "C" void {name}(int64_t n, char* r, {", ".join(params)}) {{ for (int64_t i = 0; i < n; '
        f"i++) {body}; }}"
    )


class LaneLibrary:
    """Some functions of one target, compiled."""

    def __init__(self, target: Target, fns: Sequence[Fn], parts: int = 2) -> None:
        self._names = {(f.name, f.args): f"w{k}" for k, f in enumerate(fns)}
        sources = []
        for part in range(parts):
            body = "\n".join(wrapper(f, f"w{k}") for k, f in enumerate(fns) if k % parts == part)
            sources.append(prelude(target, body) + body)
        self._library = ctypes.CDLL(str(build_library(sources, target, name=f"lanes-{target.name}")))

    def call(self, fn: Fn, *operands: Array) -> Array:
        """The compiled function on held lanes; whole vectors, one after the other."""
        raw = [np.ascontiguousarray(to_bits(x, element(t))) for x, t in zip(operands, fn.args, strict=True)]
        count = len(raw[-1]) // lanes_of(fn.args[-1])
        dtype = element(fn.result)
        out = np.zeros(count * lanes_of(fn.result), STORED[dtype])
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (out, *raw)]
        getattr(self._library, self._names[fn.name, fn.args])(ctypes.c_int64(count), *pointers)
        return from_bits(out, dtype)


def own(target: Target) -> list[Fn]:
    """Functions that the level below does not have in the same words, and every dot."""
    names = list(TARGETS)
    below = names.index(target.name) - 1
    seen = {(f.name, f.args, f.text) for f in TARGETS[names[below]].fns} if below >= 0 else set()
    return [
        f
        for f in target.fns
        if f.meaning is not None and "*" not in "".join(f.args) and (f.name, f.args, f.text) not in seen
    ]


@cache
def library(level: str) -> LaneLibrary:
    return LaneLibrary(TARGETS[level], own(TARGETS[level]))


def lanes(spelled: str, rng: np.random.Generator, fn: Fn, position: int) -> Array:
    """Held lanes of a type: bytes of every value, floats of every size and the corners."""
    dtype, n = element(spelled), COUNT * lanes_of(spelled)
    if fn.name in ("t_shl", "t_shr") and position == 1:
        return (
            rng.integers(0, 70, n).astype(HELD[dtype])
            if dtype != "i8"
            else rng.integers(0, 10, n).astype(np.int8)
        )
    if fn.name == "t_pick" and position == 0:
        return rng.integers(-3, 70, n)
    if fn.name == "t_select" and position == 0:
        return rng.integers(0, 2, n).astype(HELD[dtype]) * (1 if dtype == "bool" else -1)
    if fn.name == "t_ldexp" and position == 1:
        return rng.integers(-252, 254, n).astype(np.float32)
    if dtype == "bool":
        return rng.integers(0, 2, n).astype(np.bool_)
    if fn.name.endswith("_small") and dtype == "u8":
        return rng.choice(np.array([0, 1, 126, 127, 127], np.uint8), n)
    if dtype in ("f32", "f64", "bf16", "f16"):
        return _floats(dtype, n, rng)
    lo, hi = int_range(dtype)
    x = rng.integers(lo, hi, n, dtype=HELD[dtype], endpoint=True)  # type: ignore[arg-type]
    lo += dtype == "i64" and fn.name in ("t_div", "t_rem")  # the meaning takes the absolute value in 64 bits
    corners = np.array([lo, hi, 0, 1, hi - 1, lo + 1, max(lo, -1)]).astype(HELD[dtype])
    return np.where(
        rng.random(n) < 0.4,
        rng.choice(corners, n),
        np.where(rng.random(n) < 0.5, x, x >> (x.dtype.itemsize * 4)),
    )


def _floats(dtype: str, n: int, rng: np.random.Generator) -> Array:
    spread = rng.choice([1.0, 100.0, 1e5, 1e10, 1e-20, 1e-38], n)
    x = np.where(rng.random(n) < 0.3, rng.choice(_FLOATS, n), rng.standard_normal(n) * spread)
    if dtype == "f64":
        return x
    with np.errstate(all="ignore"):
        x = x.astype(np.float32)
        return (
            round_bf16(x)
            if dtype == "bf16"
            else x.astype(np.float16).astype(np.float32)
            if dtype == "f16"
            else x
        )


def expected(fn: Fn, operands: list[Array]) -> Array:
    """The meaning, vector by vector where lanes see each other."""
    assert fn.meaning is not None
    if not fn.name.startswith(WHOLE):
        return fn.meaning(*operands)
    parts = [np.split(x, COUNT) for x in operands]
    wide = max(lanes_of(t) for t in fn.args) > 1
    alone = [wide and lanes_of(t) == 1 for t in fn.args]  # counts beside vectors
    rows = [fn.meaning(*(p[k][0] if one else p[k] for p, one in zip(parts, alone))) for k in range(COUNT)]
    return np.concatenate([np.atleast_1d(r) for r in rows])


def differences(fn: Fn, operands: list[Array], got: Array, want: Array) -> Array:
    """Where lanes differ: bits for numbers (zeros are equal, NaNs are), the stated bounds for
    approximations."""
    if element(fn.result) not in ("f32", "f64", "bf16", "f16"):
        return np.flatnonzero(got != want)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    if element(fn.result) == "f64" and fn.name in (
        "t_fma",
        "t_dot_f64_f64",
    ):  # the meaning rounds the product
        x, y, z = operands if fn.name == "t_fma" else (*operands[1:], operands[0])
        with np.errstate(all="ignore"):
            same |= np.abs(got - want) <= 2.0**-51 * (np.abs(x * y) + np.abs(z))
    return np.flatnonzero(~same)


@pytest.mark.parametrize("level", LEVELS)
def test_entries_equal_their_meanings(level: str) -> None:
    """All bits, but for the approximations (their bounds are tested below)."""
    rng, bad = np.random.default_rng(7), []
    for fn in own(TARGETS[level]):
        if fn.name in APPROXIMATE:
            continue
        operands = [lanes(t, rng, fn, k) for k, t in enumerate(fn.args)]
        got, want = library(level).call(fn, *operands), expected(fn, operands)
        for i in differences(fn, operands, got, want)[:1]:
            same = [x[i] for x in operands if len(x) == len(got)]
            bad.append(
                f"{fn.name}({', '.join(fn.args)}) lane {i} of {same}: expected {want[i]!r}, got {got[i]!r}"
            )
    assert not bad, f"{len(bad)} entries differ\n" + "\n".join(bad[:40])


def test_baseline_needs_nothing_of_x86() -> None:
    """Without SSE2 the portable branches compile and mean the same."""
    plain = replace(TARGETS["baseline"], flags=("-U__SSE2__",))
    fns = [
        f for f in own(plain) if f.name.startswith("t_dot") or f.name in ("t_sqrt", "t_cvt_bf16", "t_pick")
    ]
    compiled, rng = LaneLibrary(plain, fns), np.random.default_rng(5)
    for fn in fns:
        operands = [lanes(t, rng, fn, k) for k, t in enumerate(fn.args)]
        assert not len(differences(fn, operands, compiled.call(fn, *operands), expected(fn, operands))), (
            fn.name
        )


# ------------------------------------------------------------------ approximations
def _widest(level: str, name: str) -> Fn:
    return max(
        (f for f in TARGETS[level].fns if f.name == name and element(f.args[0]) == "f32"),
        key=lambda f: lanes_of(f.result),
    )


def _scalar(level: str, name: str) -> Fn:
    return next(f for f in TARGETS[level].fns if f.name == name and f.args == ("f32",))


@cache
def approximations(level: str) -> LaneLibrary:
    target = TARGETS[level]
    return LaneLibrary(target, [f for n in APPROXIMATE for f in (_widest(level, n), _scalar(level, n))])


def _evaluate(level: str, name: str, x: Array) -> Array:
    """The widest vector form; the scalar form must agree bit for bit."""
    fn = _widest(level, name)
    got = approximations(level).call(fn, x)
    scalar = _scalar(level, name)
    assert np.array_equal(got.view(np.uint32), approximations(level).call(scalar, x).view(np.uint32)), (
        f"{level} {name}: scalar and vector differ"
    )
    return got


def _ulps(got: Array, exact: Array) -> Array:
    """Distance in units of the last place of the exact value's float32 (denormals included)."""
    with np.errstate(all="ignore"):
        unit = np.spacing(np.maximum(np.abs(exact), 2.0**-126).astype(np.float32)).astype(np.float64)
        return np.where(
            np.isfinite(exact) & np.isfinite(got), np.abs(got.astype(np.float64) - exact) / unit, 0
        )


@pytest.mark.parametrize("level", LEVELS)
def test_exp_and_log_are_within_two_units(level: str) -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate(
        [rng.uniform(-104, 88.72, 60000), rng.uniform(-1, 1, 20000), rng.uniform(-88, -86, 2048)]
    ).astype(np.float32)
    assert _ulps(_evaluate(level, "t_exp", x), np.exp(x.astype(np.float64))).max() <= 2
    positive = np.concatenate([np.exp(rng.uniform(-103, 88, 60000)), rng.uniform(0.5, 2, 22048)]).astype(
        np.float32
    )
    assert _ulps(_evaluate(level, "t_log", positive), np.log(positive.astype(np.float64))).max() <= 2


@pytest.mark.parametrize("level", LEVELS)
def test_exp_and_log_at_the_ends(level: str) -> None:
    inf, nan = np.inf, np.nan
    x = np.array(
        [-inf, inf, nan, 0.0, -0.0, -104.5, 89, 1e30, -1e30, 88.8, -103, 1e-40, -1e-40, 1, -1, 3e38],
        np.float32,
    )
    with np.errstate(all="ignore"):
        exp, log = (
            np.exp(x.astype(np.float64)).astype(np.float32),
            np.log(x.astype(np.float64)).astype(np.float32),
        )
    got = _evaluate(level, "t_exp", x)
    assert np.array_equal(got[[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]], exp[:10], equal_nan=True), got
    assert _ulps(got, exp.astype(np.float64)).max() <= 2
    got = _evaluate(level, "t_log", x)
    assert np.array_equal(np.isfinite(got), np.isfinite(log)) and np.array_equal(
        got[~np.isfinite(log)], log[~np.isfinite(log)], equal_nan=True
    ), got
    assert _ulps(got, log.astype(np.float64)).max() <= 2


@pytest.mark.parametrize("level", LEVELS)
def test_sin_cos_and_erf_are_within_two_tenths_of_a_millionth(level: str) -> None:
    rng = np.random.default_rng(2)
    angles = np.concatenate(
        [rng.uniform(-1e6, 1e6, 60000), rng.uniform(-7, 7, 20000), np.arange(2048) * (np.pi / 2)]
    ).astype(np.float32)
    for name, exact in (("t_sin", np.sin), ("t_cos", np.cos)):
        got = _evaluate(level, name, angles)
        assert np.abs(got - exact(angles.astype(np.float64))).max() <= 2e-7
        assert np.isnan(_evaluate(level, name, np.full(16, np.inf, np.float32))).all()
    x = np.concatenate(
        [
            rng.uniform(-5, 5, 40000),
            rng.uniform(-1e-3, 1e-3, 944),
            np.repeat([np.inf, -np.inf, 0, -0.0, 30, -30, 1e-40, 1], 2),
        ]
    ).astype(np.float32)
    assert np.abs(_evaluate(level, "t_erf", x) - np.vectorize(math.erf)(x.astype(np.float64))).max() <= 2e-7
    assert np.isnan(_evaluate(level, "t_erf", np.full(16, np.nan, np.float32))).all()


def test_levels_with_a_fused_multiply_add_give_the_same_bits() -> None:
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.uniform(-110, 90, 8192), rng.uniform(-1, 1, 8192)]).astype(np.float32)
    for name in APPROXIMATE:
        results = {
            level: _evaluate(level, name, x).view(np.uint32) for level in LEVELS if level != "baseline"
        }
        first = next(iter(results.values()), None)
        assert all(np.array_equal(r, first) for r in results.values()), name


# ------------------------------------------------------------------ partial access
_PARTIAL = """
#include <sys/mman.h>
template <class V, class T> static int check(V (*load)(const T*, int64_t, V), void (*store)(T*, int64_t, V)) {
    char* page = (char*)mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(page, 4096, PROT_NONE); mprotect(page + 2 * 4096, 4096, PROT_NONE);
    const int lanes = sizeof(V) / sizeof(T);
    int bad = 0;
    for (int n = -1; n <= lanes + 1; n++) {
        int count = n < 0 ? 0 : n > lanes ? lanes : n;
        T* p = (T*)(page + 2 * 4096) - count;
        V other, value;
        for (int i = 0; i < lanes; i++) { other[i] = (T)(i + 1); value[i] = (T)(i + 100); }
        for (int i = 0; i < count; i++) p[i] = (T)(50 + i);
        if (count) p[-1] = 7;
        V got = load(p, n, other);
        for (int i = 0; i < lanes; i++) bad += got[i] != (i < count ? (T)(50 + i) : other[i]);
        store(p, n, value);
        for (int i = 0; i < count; i++) bad += p[i] != value[i];
        bad += count ? p[-1] != (T)7 : 0;
    }
    munmap(page, 3 * 4096);
    return bad;
}
"""


@pytest.mark.parametrize("level", LEVELS)
def test_partial_access_touches_nothing_beyond_its_lanes(level: str) -> None:
    """Every t_load_n and t_store_n at the edge of a page, for n from -1 to one more than the lanes."""
    loads = [f for f in TARGETS[level].fns if f.name == "t_load_n"]
    lines = []
    for f in loads:
        v, t = f.result, CTYPE[element(f.result)]
        load, store = f.symbol, f.symbol.replace("load", "store")
        lines.append(
            f"bad += !!check<{v}, {t}>([](const {t}* p, int64_t n, {v} o) {{ return {load}(p, n, o); }}, "
            f"[]({t}* p, int64_t n, {v} x) {{ {store}(p, n, x); }}) ? (1000 * {len(lines) + 1}) : 0;"
        )
    body = _PARTIAL + 'extern "C" int check_all() { int bad = 0;\n' + "\n".join(lines) + "\nreturn bad; }"
    library = ctypes.CDLL(
        str(build_library(prelude(TARGETS[level], body) + body, TARGETS[level], name=f"partial-{level}"))
    )
    assert library.check_all() == 0, [f.args for f in loads]


@pytest.mark.parametrize("level", [n for n in TARGETS if n != "baseline"])
def test_products_of_floats_are_fused_at_every_width(level: str) -> None:
    """A row computed beside another has the bits that it has alone: the two share a vector of two lanes."""
    rounded = {f.text for f in TARGETS["baseline"].fns if f.name == "t_fma" and element(f.result) == "f32"}
    wide = {
        lanes_of(f.result): f.text
        for f in TARGETS[level].fns
        if f.name == "t_fma" and f.args[0][:3] in ("f32", "flo")
    }
    assert {1, 2, 4, 8} <= set(wide) and not rounded & set(wide.values())
