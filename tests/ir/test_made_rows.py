"""Encodings made inside kernels: an `encode` kernel writes the very bytes of the NumPy encoder.

One kernel for each form, in the tile interpreter and compiled, over rows of ordinary magnitude, a row of
zeros, and rows of the smallest and the largest magnitude that formulas serve as they are. Encodings whose
rounding needs more than the extremes of a block refuse by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tilewright.ir.encodings  # noqa: F401  registers the built-in encodings
from tests.backends.render_help import runnable
from tests.one_library import library_of
from tests.passes.test_four_values import lowered
from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.render import render_kernel
from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.encoding_registry import known_encodings, parse_encoding
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.interp.tile import run_kernel
from tilewright.ir.numbers import TAME
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.ir.tile.core import Kernel
from tilewright.ir.tile.expand import expand_encodings
from tilewright.ir.tile.verify import verify_kernel
from tilewright.ir.types import tensor

MADE = [
    "int8(channel)", "int8(channel, asym)", "int8(group=32)", "int8(channel, min)",
    "int4(group=32)", "int4(group=32, asym)", "int4(group=64, min)", "int4(channel)",
    "int4(group=16, bipolar)",
    "int7(group=32, scale=bf16)", "int6(group=32, scale=f32)", "int5(group=64)", "int3(group=32)",
    "int3(group=32, asym, scale=bf16)", "int2(group=32, bipolar)", "int2(channel)",
    "fp8(e4m3, channel)", "fp8(e5m2, group=32)", "fp6(e2m3, group=32)", "fp6(e3m2, channel)", "fp4(group=32)",
    "mxfp4", "mxfp6(e3m2)", "mxfp8(e4m3)", "nf4(group=64)", "nf4(group=32, scale=f16)",
    "int8(token)", "int8(token, group=32)",
    "int8(token, layout=keys)", "int8(group=32, layout=values)", "int4(token, asym, layout=values)",
    "int4(group=32, layout=values)", "int3(group=64, layout=keys)",
]  # fmt: skip
AHEAD = {
    "int1(group=32)": "its scale is a mean of magnitudes",
    "int4(group=32, scale=int8)": "its scales are multiples of one for the whole row",
    "int3(group=16)": "codes of a group of 16 do not fill whole bytes; use a multiple of 32",
    "nf4(group=64, double)": "its scales are coded relative to the range of all scales of the row",
    "nvfp4": "its scales are multiples of one for the whole tensor",
    "q4_k": "its blocks are rounded as those of GGUF files are",
    "q4_0": "its blocks are rounded as those of GGUF files are",
    "codebook3": "a row's table is computed from all its values",
    "planes2(group=64)": "its coefficients are fitted to the values",
    "int4(group=32) + sparse(1%)": "sparse(1%) is chosen from all values of a row",
}
ROWS, K = 20, 96 * 2
LEVELS = [runnable()[0], runnable()[-1]]


def matrix() -> NDArray[np.float32]:
    x = np.random.default_rng(3).standard_normal((ROWS, K)).astype(np.float32)
    x[3], x[7, :64] = 0, 0
    x[4] *= TAME[0] / np.abs(x[4]).max() * np.float32(1.5)
    x[5] *= np.float32(1000)
    x[6] = np.abs(x[6]) + 5
    x[8, :8] = [-0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1e-30, -1e-30]
    return x


def encoding_kernel(e: Encoding, number: int) -> Kernel:
    """The kernel of an `encode` op: row-major values in, the encoding's streams out."""
    b = GraphBuilder("forward")
    x = b.add_input("x", tensor("f32", ROWS, K))
    b.output(b.op("decode", b.op("encode", x, encoding=str(e))), "y")
    _, program = lowered(b.module(), "canonicalize, fuse")
    (kernel,) = (k for k in program.kernels if k.params[0].encoding == e)
    return replace(expand_encodings(kernel), name=f"encode{number}")


def check(run: Callable[..., None], kernels: list[Kernel], encodings: list[Encoding]) -> None:
    x, wrong = matrix(), []
    for kernel, e in zip(kernels, encodings, strict=True):
        verify_kernel(kernel)
        out, source = (p.name for p in kernel.params)
        streams = e.encode(x)
        want = e.pack(streams, x.shape)
        made = np.zeros(want.shape, np.uint8)
        run(kernel, {out: made, source: x.copy()}, {})
        back = e.unpack(made, x.shape)
        wrong += [f"{e}: stream {n} differs" for n, a in streams.items() if not same(back[n], a)]
        if not wrong and not np.array_equal(made, want):
            wrong.append(f"{e}: writes beyond its streams")
    assert not wrong, "\n".join(wrong)


def same(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return a.shape == b.shape and a.tobytes() == np.asarray(b, a.dtype).tobytes()


@pytest.fixture(scope="module")
def encodings() -> list[Encoding]:
    return [parse_encoding(text) for text in MADE]


@pytest.fixture(scope="module")
def kernels(encodings: list[Encoding]) -> list[Kernel]:
    return [encoding_kernel(e, n) for n, e in enumerate(encodings)]


def test_bytes_in_the_interpreter(kernels: list[Kernel], encodings: list[Encoding]) -> None:
    check(lambda k, arrays, symbols: run_kernel(k, arrays, symbols), kernels, encodings)


@pytest.mark.parametrize("level", dict.fromkeys(LEVELS))
def test_bytes_compiled(level: str, kernels: list[Kernel], encodings: list[Encoding]) -> None:
    check(library_of(kernels, level), kernels, encodings)


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize("text", AHEAD)
def test_what_is_only_made_ahead_of_time(text: str) -> None:
    e = parse_encoding(text)
    assert e.ahead_of_time == AHEAD[text]
    with pytest.raises(EncodingError) as caught:
        e.tile_encode(object())  # type: ignore[arg-type]
    assert str(caught.value) == f"{e} cannot be encoded inside kernels: {AHEAD[text]}"


def test_every_encoding_is_made_or_says_why() -> None:
    """Casts are made with the value that they cast, in any kernel (`tests/passes/test_four_values.py`)."""
    made = {text.partition("(")[0] for text in MADE} | {"f32", "bf16", "f16"}
    examples = {"ternary", "pow2", "e5m2"}  # which another test may have registered
    for name in set(known_encodings()) - examples:
        assert (name in made) != bool(parse_encoding(name).ahead_of_time), name


PARTLY = """
kernel @k(%x: u8[16, 64], %y: f32[16, 64] as int4(group=32)) {
  grid i in 16 by 1
  %v = load %x[i, 0:4] : u8[4]
  store %y.codes[i, 0:4], %v
  schedule * { order i }
}
"""


def test_a_byte_that_is_filled_partly_is_refused() -> None:
    kernel = parse_kernel(PARTLY)
    verify_kernel(kernel)
    with pytest.raises(UnsupportedError) as caught:
        render_kernel(kernel, TARGETS["baseline"])
    assert "store to %y.codes: a byte holds 2 codes, of which 1 are stored" in str(caught.value)
