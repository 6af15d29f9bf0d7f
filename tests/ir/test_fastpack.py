"""Packing by whole-array moves gives the bytes that packing element by element gives, or declines."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import tilewright.ir.encodings  # noqa: F401  registers the built-in encodings
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.layout import pack, record, row_major, unpack
from tilewright.ir.weights.packing import fast_pack

STORED = {1: np.uint8, 2: np.uint8, 4: np.uint8, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def numbers(shape: tuple[int, ...], bits: int, seed: int) -> NDArray[np.generic]:
    high = np.iinfo(STORED[bits]).max if bits >= 8 else (1 << bits) - 1
    return np.random.default_rng(seed).integers(0, high, shape, STORED[bits], endpoint=True)


@st.composite
def records(draw: st.DrawFn) -> tuple[tuple[int, int], str, dict[str, tuple[int, str]]]:
    """A shape, prefix and streams: codes in panels whose inner digits come in any order, and a scale per row
    or a group.
    """
    rows, deep, fine = (
        draw(st.sampled_from([1, 2, 8, 16])),
        draw(st.sampled_from([8, 16, 32])),
        draw(st.sampled_from([1, 2, 4, 8])),
    )
    inner = draw(st.permutations([f"1.{deep // fine}:{fine}", f"0.{rows}", f"1.{fine}"]))
    shape = (draw(st.integers(1, 3 * rows)), draw(st.integers(1, 3 * deep)))
    prefix = " ".join(draw(st.permutations([f"0/{rows}", f"1/{deep}"])))
    streams = {"codes": (draw(st.sampled_from([1, 2, 4, 8, 16, 32])), " ".join(inner))}
    if draw(st.booleans()):
        streams["scale"] = (draw(st.sampled_from([16, 32])), f"0.{rows}")
    return shape, prefix, streams


@settings(max_examples=300, deadline=None, derandomize=True)
@given(records(), st.integers(0, 99))
def test_records(case: tuple[tuple[int, int], str, dict[str, tuple[int, str]]], seed: int) -> None:
    shape, prefix, streams = case
    layouts, bits = record(shape, prefix, streams), {name: width for name, (width, _) in streams.items()}
    arrays = {"codes": numbers(shape, bits["codes"], seed)}
    if "scale" in streams:  # one number for the whole depth of a panel: as many as the record has places
        deep = next(int(p[2:]) for p in prefix.split() if p.startswith("1/"))
        groups = numbers((shape[0], -(-shape[1] // deep)), bits["scale"], seed)
        arrays["scale"] = np.repeat(groups, deep, axis=1)[:, : shape[1]]
    want = pack(arrays, layouts, bits)
    got = fast_pack(arrays, layouts, bits)
    if got is not None:
        np.testing.assert_array_equal(got, want)
    index = np.ogrid[: shape[0], : shape[1]]
    for name, a in arrays.items():
        np.testing.assert_array_equal(unpack(want, layouts[name], bits[name], index, STORED[bits[name]]), a)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (1, 1), (4, 1, 6)])
def test_rows_are_always_packed_fast(shape: tuple[int, ...], bits: int) -> None:
    a, layout = numbers(shape, bits, 0), row_major(shape, bits)
    got = fast_pack({"values": a}, {"values": layout}, {"values": bits})
    assert got is not None
    np.testing.assert_array_equal(got, a.reshape(-1).view(np.uint8))
    np.testing.assert_array_equal(got, pack({"values": a}, {"values": layout}, {"values": bits}))


@pytest.mark.parametrize(
    ("shape", "prefix", "text", "bits"),
    [
        ((40, 96), "0/16 1/32", "1.8:4 0.16 1.4", 8),  # panels of bytes, as integer dots read them
        ((40, 96), "0/16 1/32", "1.4:8 0.16 1.4 1.2:4", 4),  # nibbles of two k's in one byte
        ((33, 70), "0/16", "0.16", 16),
        ((33, 70), "0/16 1/2", "0.16 1.2", 16),
    ],
)  # fmt: skip
def test_panels(shape: tuple[int, int], prefix: str, text: str, bits: int) -> None:
    layouts, widths = record(shape, prefix, {"codes": (bits, text)}), {"codes": bits}
    whole = text != "0.16"
    a = numbers(shape if whole else (shape[0], 1), bits, 3)
    got = fast_pack({"codes": a}, layouts, widths)
    if got is not None:
        np.testing.assert_array_equal(got, pack({"codes": a}, layouts, widths))
    if bits == 8:
        assert got is not None


@pytest.mark.parametrize(
    "text", ["int4(group=32)", "int4(group=8)", "int8(channel)", "int2(group=32)", "bf16", "f32"]
)
@pytest.mark.parametrize("shape", [(16, 64), (40, 96), (33, 160), (1, 32)])
def test_encodings(text: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes, scales and zeros of weights, as they are stored."""
    encoding = parse_encoding(text)
    streams = encoding.encode(np.random.default_rng(1).standard_normal(shape).astype(np.float32))
    fast = encoding.pack(streams, shape)
    monkeypatch.setattr("tilewright.ir.encoding.fast_pack", lambda *_: None)
    np.testing.assert_array_equal(fast, encoding.pack(streams, shape))
    for name, a in encoding.unpack(fast, shape).items():
        np.testing.assert_array_equal(a, streams[name])


def test_what_overlaps_is_declined() -> None:
    layout = record((16, 64), "0/16 1/32", {"codes": (3, "1.32 0.16")})
    assert fast_pack({"codes": numbers((16, 64), 2, 0)}, layout, {"codes": 3}) is None
