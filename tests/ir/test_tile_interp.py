"""Hand-written tile programs: the interpreter against NumPy, under every schedule and seed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ir.tile_cases import CASES, check, poisoned
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import RefusedError, UnsupportedError
from tilewright.ir.interp.tile import instances, run_kernel
from tilewright.ir.layout import RecordSpec
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.ir.text.tile_printer import print_record
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.core import bind
from tilewright.ir.tile.expand import expand_encodings


@pytest.mark.parametrize("name", CASES)
def test_matches_numpy(name: str) -> None:
    case = CASES[name]
    kernel = case.kernel()
    for seed, schedule in enumerate(kernel.schedules):
        inputs, outputs = case.make_inputs(np.random.default_rng(seed)), poisoned(kernel, case.symbols)
        run_kernel(kernel, {**inputs, **outputs}, case.symbols, dict(schedule.sizes))
        check(case, inputs, outputs)


@pytest.mark.parametrize("encoding", ["int4(group=32)", "int8(channel)", "f16"])
def test_plain_loads_of_encoded_buffers_decode(encoding: str) -> None:
    """Odd rows, a partial tile: values are what the encoding's own NumPy decode gives."""
    how, rng = parse_encoding(encoding), np.random.default_rng(3)
    b = KernelBuilder("decode")
    w, y = b.param("w", "f32", (37, 64), encoding=how), b.param("y", "f32", (37, 64))
    j = b.grid("j", 37, "BN")
    with b.loop("k", 0, 64, 32) as loop:
        b.store(y, [slice(j, "BN"), slice(loop.var, 32)], b.load(w, slice(j, "BN"), slice(loop.var, 32)))
    b.schedule("*", BN=16)
    streams = how.encode(rng.standard_normal((37, 64)).astype(np.float32))
    out = np.full((37, 64), np.nan, np.float32)
    run_kernel(b.build(), {"w": how.pack(streams, (37, 64)), "y": out}, {})
    assert np.array_equal(out, how.decode(streams))


def test_an_encoded_load_reads_only_zero_outside() -> None:
    b = KernelBuilder("decode")
    w = b.param("w", "f32", (16, 32), encoding=parse_encoding("int8(channel)"))
    b.load(w, slice(0, 16), slice(0, 32), other=1.0)
    with pytest.raises(
        UnsupportedError,
        match=r"kernel @decode: unsupported: load of %w .* out-of-bounds elements can only read 0",
    ):
        expand_encodings(b.build())


def test_rows_are_cut_into_balanced_blocks() -> None:
    kernel = bind(CASES["dot_i8"].kernel(), {"M": 13, "N": 16})
    found = [(start["i"], height["BM"]) for start, height in instances(kernel, {"BM": 6, "BN": 16})]
    assert found == [(0, 4), (4, 4), (8, 5)]


@pytest.mark.parametrize(
    ("arrays", "symbols", "message"),
    [
        ({}, {"M": 4, "N": 4}, "no array for parameter %x"),
        ({"x": np.zeros((4, 3), np.float32)}, {"M": 4, "N": 4}, "64 bytes needed for f32[4, 4], got 48"),
        ({"x": np.zeros((4, 4), np.float32).T[:, :2]}, {"M": 4, "N": 4}, "array for %x is not C-contiguous"),
        ({}, {"M": 4}, "kernel @transpose needs a value for N"),
        ({}, {"M": 4, "N": -4}, "are not integers"),
        ({}, {"M": 1 << 40, "N": 1 << 40}, "is beyond 2^48 bytes"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]],
    symbols: dict[str, int],
    message: str,
) -> None:
    with pytest.raises(RefusedError) as e:
        run_kernel(CASES["transpose"].kernel(), arrays, symbols)
    assert message in str(e.value)


def test_packed_streams_are_written_in_place() -> None:
    """3-bit codes and their scale, stored by a kernel, decode to what the packer's bytes decode to."""
    case = CASES["decode_u3"]
    packed = case.make_inputs(np.random.default_rng(5))["w"]
    record = print_record(case.kernel().params[0].record or RecordSpec("", ()))
    kernel = parse_kernel(f"""kernel @copy(%w: f32[N, K] as {record}, %v: f32[N, K] as {record}) {{
      grid j in N by 8
      for k in 0..K by 32 {{
        store %v.codes[j:8, k:32], %w.codes[j:8, k:32] + 0
        store %v.scale[j:8, k:1], %w.scale[j:8, k:1] * 1
      }}
    }}""")
    copy = np.full_like(packed, 0xA5)
    run_kernel(kernel, {"w": packed, "v": copy}, case.symbols)
    assert np.array_equal(case.reference({"w": copy})["y"], case.reference({"w": packed})["y"])
