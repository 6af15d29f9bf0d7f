"""Weights of extreme magnitude: every encoding and solver, from the smallest to the largest float32.

Values decode to numbers, relative errors stay within twice those at magnitude 1 (or a scale's rounding to 8
bits), or the weight is refused by name; kernels decode the same bits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

import tilewright.ir.encodings
import tilewright.passes.solvers  # noqa: F401
from tests.ir.test_encodings import CASES, LEVELS, ROWS
from tilewright.backends.cpp.jit import compile_kernel
from tilewright.ir.encoding import Encoding, RangeError
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.encodings.gguf import GgufBlocks
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Apply, Stored, Weight, WeightExpr
from tilewright.ir.interp.tile import run_kernel
from tilewright.ir.numbers import finite_bits, to_bits, unit_rows
from tilewright.ir.reach import ALLOWED, FLOOR, misfits, reach
from tilewright.ir.solver import Statistics, parse_stored, solve_rows
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.core import Span
from tilewright.ir.types import tensor
from tilewright.ir.weights.solved import SOLVED
from tilewright.ir.weights.sources import OutOfRange, WeightStore, encoded

F32 = NDArray[np.float32]
DENSE = ("f32", "bf16", "f16")
TEXTS = (*DENSE, *(c.text for c in CASES))
K = 512
MAGNITUDES = (1e-44, 1e-40, 1e-38, 1e-35, 1e-32, 1e-29, 1e-20, 1e-12, 1e-9, 1e-7, 1e-6, 1e-5, 1e-3, 1.0,
              1e3, 6e4, 5e5, 1e7, 1e12, 1e20, 1e30, 3e37)  # fmt: skip


def rows(size: float) -> F32:
    """Rows of a largest magnitude: normal, of one sign, quiet but for an outlier, a lone number, equal
    numbers, zeros."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((6, K))
    x[1] = np.abs(x[1])
    x[2] *= 1e-6
    x[2, 77] = -1
    x[3:] = 0
    x[3, 5], x[4] = 1, 0.5
    top = np.abs(x).max(-1, keepdims=True)
    with np.errstate(under="ignore"):
        return np.asarray(x / np.where(top > 0, top, 1) * size, np.float32)


def stored(text: str, x: F32, by: str = "") -> tuple[Encoding, F32]:
    """What compiling does with a weight: the encoding it ends up with, and the values it stands for. Raises
    what refuses it."""
    e = parse_encoding(text)
    source: WeightExpr = Stored("memory", "w")
    weight = Weight(
        "w",
        replace(tensor("f32", *x.shape), encoding=e),
        Apply(SOLVED, (source,), (("by", by),)) if by else source,
    )
    try:
        return e, e.decode(encoded(WeightStore(memory={"w": x}), weight, e, x))
    except OutOfRange as why:
        if why.wider is None:
            raise
        return stored(str(why.wider), x, by)


def errors(got: F32, x: F32) -> NDArray[np.float64]:
    """Relative error of every row, root mean square; 0 for rows of zeros."""
    gap, size = (np.sqrt(np.square(a, dtype=np.float64).mean(-1)) for a in (got.astype(np.float64) - x, x))
    return np.asarray(gap / np.where(size > 0, size, 1))


def allowed(e: Encoding, unit: NDArray[np.float64]) -> NDArray[np.float64]:
    """What errors may be beside those at magnitude 1; an offset's rounding counts once for every element of a
    group."""
    offset = e.contraction_form is not None and e.contraction_form.has_offset
    return 2 * unit + (4 if offset else 1) * ALLOWED


def saturates(e: Encoding) -> bool:
    """Formats whose bytes are fixed elsewhere: small rows lose precision, down to zero."""
    return isinstance(e.contraction_form, GgufBlocks) or str(e).startswith(("mxfp", "nvfp4"))


@pytest.mark.parametrize("text", TEXTS)
def test_every_magnitude_is_held_or_refused(text: str) -> None:
    unit = errors(stored(text, rows(1.0))[1], rows(1.0))
    refused = 0
    for size in MAGNITUDES:
        x = rows(size)
        try:
            e, got = stored(text, x)
        except RefusedError as why:
            refused += 1
            assert size > 6e4 and why.where == "weight @w" and "beyond its range" in why.message, size
            continue
        assert np.isfinite(got).all(), size
        assert np.abs(got).max() <= 2.6 * np.abs(x).max() + FLOOR, size
        if not saturates(e) and size > FLOOR:
            assert (errors(got, x) <= allowed(e, unit)).all(), (size, str(e))
    assert not refused or saturates(parse_encoding(text)), refused


@pytest.mark.parametrize("text", TEXTS)
def test_rows_of_every_magnitude_beside_each_other(text: str) -> None:
    x = np.concatenate([rows(size)[:1] for size in MAGNITUDES if size < 2e4])
    e, got = stored(text, x)
    alone = errors(stored(text, rows(1.0))[1], rows(1.0))[0]
    assert np.isfinite(got).all()
    if not saturates(e):
        sizes = np.array([size for size in MAGNITUDES if size < 2e4])
        assert (errors(got, x)[sizes > FLOOR] <= allowed(e, alone)).all()


@pytest.mark.parametrize("text", [c.text for c in CASES])
def test_the_largest_floats(text: str) -> None:
    """Either numbers, or an error that names the row: never infinity in silence."""
    e, x = parse_encoding(text), np.full((3, K), 0.25, np.float32)
    x[1, ::2], x[1, 1::2] = np.finfo(np.float32).max, -np.finfo(np.float32).max
    try:
        assert np.isfinite(e.decode(e.encode(x))).all()
    except RangeError as why:
        assert str(why) == f"{text}: row [1] holds 3.403e+38, beyond its range"


SOLVERS = ("clip", "hqq", "lsq", "wlsq", "flsq", "gptq", "spqr", "awq", "smoothquant")
SOLVED_TEXTS = ("int4(group=32)", "int2(group=64, min)", "int3(group=64, asym)", "int8(channel)",
"int4(group=32, scale=int8)",
                "fp4(group=32)", "mxfp4", "nf4(group=64)",
                "planes2(group=64)", "codebook3", "q4_0", "q4_k",
                "int3(group=64) + sparse(0.5%)")  # fmt: skip


def statistics() -> Statistics:
    x = np.random.default_rng(2).standard_normal((2 * K, K)).astype(np.float32)
    h = np.asarray(2 / len(x) * x.T @ x, np.float32)
    fisher = np.random.default_rng(3).random((6, K)).astype(np.float32)
    return Statistics(h, np.abs(x).mean(0), np.abs(x).max(0), len(x), fisher)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("text", SOLVED_TEXTS)
def test_solvers_at_every_magnitude(name: str, text: str) -> None:
    solver, seen = parse_stored(f"{name}({text})")[0], statistics()
    assert solver is not None
    if name == "spqr" and "sparse" not in text or name in ("hqq", "lsq", "wlsq", "flsq") and text == "mxfp4":
        return  # refused by name: test_solvers
    if name == "hqq" and text not in SOLVED_TEXTS[:4] and text != "fp4(group=32)":
        return  # so are these
    nearest = errors(parse_encoding(text).decode(parse_encoding(text).encode(rows(1.0))), rows(1.0))
    for size in (1e-40, 1e-20, 5e5, 3e37):
        x = rows(size)
        try:
            e = stored(text, x)[0]  # as calibration does: the encoding that holds these rows comes first
            got = e.decode(solve_rows(solver, x, seen, e))
        except (RefusedError, RangeError) as why:
            assert size > 6e4 and "beyond its range" in str(why)
            continue
        assert np.isfinite(got).all(), size
        if not saturates(e) and size > FLOOR:
            unit = errors(e.decode(solve_rows(solver, rows(1.0), seen, e)), rows(1.0))
            assert (errors(got, x) <= allowed(e, np.maximum(unit, nearest))).all(), (size, str(e))


@pytest.mark.parametrize("by", ["hqq", "lsq", "clip"])
def test_solvers_without_samples_store_them_too(by: str) -> None:
    for size in (1e-30, 1e-7, 5e5, 1e30):
        e, got = stored("int4(group=32)", rows(size), f"{by}(int4(group=32))")
        assert str(e) == "int4(group=32, scale=bf16)" and (errors(got, rows(size)) < 0.2).all()


# ------------------------------------------------------------------ kernels
#: one of each kind of arithmetic: fields, planes, tables, nested scales, small floats, sparse entries
QUICK_KERNELS = (
    "int4(group=32)", "int3(group=32, min, scale=bf16)", "int8(channel)", "planes2(group=64)", "codebook3",
    "q4_k", "fp8(e4m3, channel)", "mxfp4", "nf4(group=64)", "int3(group=64) + sparse(0.5%)",
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [c.text if c.text in QUICK_KERNELS else pytest.param(c.text, marks=pytest.mark.slow) for c in CASES],
)
def test_kernels_decode_the_same_bits_at_the_edge(text: str) -> None:
    """With the encoding itself up to 1e3, and with its variant of wider range from the smallest numbers to
    the largest.
    """
    e = parse_encoding(text)
    for encoding, top in ((e, 1e3), (e.wider() or e, 1e37 if not saturates(e) else 1e3)):
        x = np.concatenate([rows(size)[:1, :256] for size in MAGNITUDES if size <= top])[-15:]
        x = np.concatenate([x, np.zeros((16 - len(x), 256), np.float32)])
        b = KernelBuilder("decode")
        w, y = b.param("w", "f32", x.shape, encoding), b.param("y", "f32", x.shape)
        i, j = b.grid("i", 16, ROWS), b.grid("j", 256, 8)
        b.store(y, (Span(i, ROWS), Span(j, 8)), encoding.tile_decode(b, w, (slice(i, ROWS), slice(j, 8))))
        kernel, streams = b.build(), encoding.encode(x)
        arrays = {"w": encoding.pack(streams, x.shape), "y": np.zeros(x.shape, np.float32)}
        run_kernel(kernel, arrays, {})
        np.testing.assert_array_equal(
            arrays["y"], encoding.decode(streams), err_msg=f"{encoding}, tile interpreter"
        )
        arrays["y"] = np.zeros(x.shape, np.float32)
        compile_kernel(kernel, LEVELS[-1])(arrays, {})
        np.testing.assert_array_equal(
            arrays["y"], encoding.decode(streams), err_msg=f"{encoding}, {LEVELS[-1]}"
        )


# ------------------------------------------------------------------ the pieces
def test_reach() -> None:
    low, high = reach(parse_encoding("int4(group=32)"))
    assert 1e-6 < low < 1e-3 and 1e5 < high < 4.6e5
    assert reach(parse_encoding("int8(channel)"))[0] == 0 and reach(parse_encoding("f32"))[1] > 1e37


def test_a_misfit_says_which_row() -> None:
    x = np.ones((4, 64), np.float32)
    x[2], x[3] = 1e-8, 1e9
    low, high = map(str, misfits(parse_encoding("int4(group=32)"), x))
    assert low == "row 2 holds magnitudes up to 1e-08, where its scales lose precision"
    assert high == "row 3 holds magnitudes up to 1e+09, beyond its range"


def test_unit_rows_are_exact() -> None:
    x = np.array([[3e38, 1], [1e-44, 0], [0, 0], [-0.75, 0.5]], np.float32)
    units, exponents = unit_rows(x)
    assert (
        np.abs(units).max(-1)
        == np.array([np.float32(3e38) / np.float32(2.0**127) / 2, 0.875, 0, 0.75], np.float32)
    ).all()
    np.testing.assert_array_equal(np.ldexp(units, exponents[:, None]), x)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_finite_bits(dtype: str) -> None:
    top = {"f32": 3e38, "bf16": 3e38, "f16": 65504.0}[dtype]
    x = np.array([0.0, -0.0, top, -top, 1e-30], np.float32)
    assert finite_bits(to_bits(x, dtype), dtype)
    for bad in (np.nan, -np.nan, np.inf, -np.inf):
        assert not finite_bits(to_bits(np.append(x, np.float32(bad)), dtype), dtype)
    assert finite_bits(np.array([-1], np.int32), "i32") and finite_bits(np.empty(0, np.float32), "f32")


def test_ordinary_rows_are_encoded_as_before() -> None:
    """Rows between 2^-40 and 2^40 see the same formulas, beside rows that do not."""
    for text in (c.text for c in CASES):
        e = parse_encoding(text)
        if e.contraction_form is None or text == "nvfp4":
            continue
        x = rows(1.0)
        both = e.encode(np.concatenate([x, rows(1e-20)]))
        for name, a in e.encode(x).items():
            np.testing.assert_array_equal(both[name][: len(x)], a, err_msg=f"{text} {name}")
