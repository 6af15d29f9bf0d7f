"""The compiled rounding routine gives NumPy's bytes, or declines what NumPy refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import tilewright.ir.encodings  # noqa: F401  registers the built-in encodings
from tilewright.backends import packing
from tilewright.backends.cpp.round_rows import RoundRows, rounds
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.encodings.integer import IntWeight
from tilewright.ir.graph.core import Apply, Stored, Weight
from tilewright.ir.numbers import from_bits, to_bits
from tilewright.ir.types import TensorType
from tilewright.ir.weights.sources import WeightStore

F32 = NDArray[np.float32]
SUPPORTED = (
    "int2(group=64)", "int3(group=64)", "int4(group=32)", "int4(group=8)", "int4(group=64, scale=bf16)",
    "int4(group=32, scale=f32)", "int4(channel)", "int5(group=32)", "int6(group=32)", "int7(channel)",
    "int8(channel)",
    "int8(group=32)", "int8(channel, scale=f16)",
)  # fmt: skip
SHAPES = ((16, 64), (33, 320), (1, 128), (17, 20), (2, 16, 64), (2, 5, 64))


@pytest.fixture(scope="module")
def routine() -> RoundRows:
    return RoundRows()


def integer(text: str) -> IntWeight:
    encoding = parse_encoding(text)
    assert isinstance(encoding, IntWeight)
    return encoding


def values(shape: tuple[int, ...], kind: str) -> F32:
    """Ordinary weights; magnitudes that spread far within a row; ties, equal numbers and blocks of zeros."""
    drawn = np.random.default_rng(len(kind))
    normal = drawn.standard_normal(shape).astype(np.float32)
    if kind == "normal":
        return normal * np.float32(0.02)
    if kind == "spread":
        return normal * np.exp2(drawn.integers(-39, 8, shape)).astype(np.float32)
    steps = drawn.integers(-14, 15, shape).astype(np.float32) / 2
    steps[..., 0], steps[..., -8:] = 7, 0
    steps[..., 1::5] = -0.0
    return steps


@pytest.mark.parametrize("text", SUPPORTED)
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("kind", ["normal", "spread", "ties"])
def test_bytes_are_those_of_numpy(routine: RoundRows, text: str, dtype: str, kind: str) -> None:
    encoding, compared = integer(text), 0
    for shape in SHAPES:
        if encoding.group and shape[-1] % encoding.group:
            continue
        bits = to_bits(values(shape, kind), dtype)
        got = routine(encoding, bits, dtype)
        if got is None:  # a matrix of a stack ends within a panel, or numbers are too small for half floats
            assert shape == SHAPES[-1] or (kind == "spread" and dtype == "f16")
            continue
        held = from_bits(bits, dtype).astype(np.float32)
        np.testing.assert_array_equal(got, encoding.pack(encoding.encode(held), shape), str(shape))
        compared += 1
    assert compared >= 3


def test_where_the_numbers_lie_does_not_matter(routine: RoundRows) -> None:
    encoding = integer("int4(group=32)")
    bits = to_bits(values((16, 64), "normal"), "bf16")
    odd = np.frombuffer(b"x" + bits.tobytes(), np.uint8)[1:].view(np.uint16).reshape(bits.shape)
    wide = np.repeat(bits, 2, axis=1)[:, ::2]
    for other in (odd, wide):
        np.testing.assert_array_equal(routine(encoding, other, "bf16"), routine(encoding, bits, "bf16"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20, 1e-20, 3e38, 1e-40])
@pytest.mark.parametrize("text", ["int4(group=32)", "int8(channel)"])
def test_rows_of_odd_magnitude_are_left_to_numpy(routine: RoundRows, text: str, value: float) -> None:
    x = values((20, 64), "normal")
    x[7] = 0
    x[7, 3] = value
    assert routine(integer(text), x, "f32") is None


@pytest.mark.parametrize("text", ["int4(group=32, asym)", "int4(group=32, min)", "int1(group=32)",
"int4(group=32, scale=int8)"])  # fmt: skip
def test_other_roundings_are_left_to_numpy(routine: RoundRows, text: str) -> None:
    assert not rounds(parse_encoding(text))
    assert routine(integer(text), values((16, 64), "normal"), "f32") is None


@pytest.mark.parametrize("text", ["int4(group=32)", "bf16(layout=panel)", "bf16"])
def test_weights_are_written_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor, and tensors under each other whose border lies within a panel and a piece."""
    monkeypatch.setattr(packing, "PIECE", 64 * 32)
    monkeypatch.setattr(packing, "_MANY", 1)
    tensors = {name: values((n, 64), "normal") for name, n in (("a", 40), ("b", 24), ("c", 50))}
    store = WeightStore(memory=tensors)
    under = Apply("concat", tuple(Stored("memory", n) for n in "abc"), (("axis", 0),))
    for source, rows in ((Stored("memory", "c"), 50), (under, 114)):
        weight = Weight("w", TensorType("f32", (rows, 64), parse_encoding(text)), source)
        made = packing.compiled_rounding([weight])
        assert (made is not None) == text.startswith("int")
        want = b"".join(packing.weight_bytes(store, weight))
        assert b"".join(packing.weight_bytes(store, weight, made)) == want


def test_a_cast_before_rounding_is_not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MANY", 1)
    store = WeightStore(memory={"a": values((16, 64), "normal")})
    weight = Weight("w", TensorType("bf16", (16, 64), integer("int8(channel)")), Stored("memory", "a"))
    want = b"".join(packing.weight_bytes(store, weight))
    made = packing.compiled_rounding([weight])
    assert b"".join(packing.weight_bytes(store, weight, made)) == want


def test_small_models_build_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path))
    weight = Weight("w", TensorType("f32", (16, 64), integer("int4(group=32)")), Stored("memory", "a"))
    assert packing.compiled_rounding([weight]) is None
    assert not list(tmp_path.iterdir())
