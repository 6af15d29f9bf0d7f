"""Every weight encoding, one line each: text, packing, error bound, size, decoded bits, and a contraction.

NumPy, the tile interpreter and C++ at every level decode to the same bits; the contraction is checked in both
numeric forms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import tilewright.ir.encodings  # noqa: F401  registers the built-in encodings
from tests.backends.render_help import runnable
from tests.one_library import library_of
from tilewright.backends.base import Contraction
from tilewright.backends.cpp.schedules import schedules_of
from tilewright.ir.contraction_form import OperandForm
from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.encoding_registry import known_encodings, parse_encoding
from tilewright.ir.encodings.fielded import Composed, Fielded
from tilewright.ir.encodings.gguf import KINDS, GgufBlocks
from tilewright.ir.encodings.gguf_bytes import block_bytes
from tilewright.ir.encodings.token import IntToken
from tilewright.ir.interp.tile import run_kernel
from tilewright.ir.numbers import to_bits
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.core import Kernel, Span
from tilewright.ir.tile.verify import verify_kernel
from tilewright.passes.lower import linear
from tilewright.passes.lower.dims import CannotEmit

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """An encoding, its bits per weight for a [64, 512] matrix, and the largest error (root mean square,
    normal weights).
    """

    text: str
    bits: float
    error: float


CASES = [
    Case("int1(group=64)", 1.25, 0.62), Case("int1(channel)", 1 + 1 / 16, 0.62),
    Case("int2(group=32)", 2.5, 0.75), Case("int2(group=64, asym)", 2 + 24 / 64, 0.5),
    Case("int2(group=32, bipolar)", 2.5, 0.5),
    Case("int3(group=32)", 3.5, 0.27), Case("int3(group=32, min, scale=bf16)", 4, 0.2),
    Case("int3(channel)", 3 + 1 / 16, 0.5),
    Case("int4(group=32)", 4.5, 0.12), Case("int4(group=64, asym)", 4.375, 0.12),
    Case("int4(group=16, bipolar)", 5, 0.1),
    Case("int4(group=32, scale=int8)", 4.25 + 1 / 16, 0.12), Case("int4(channel, asym)", 4 + 40 / 512, 0.2),
    Case("int5(group=32, scale=f32)", 6, 0.06), Case("int6(group=32)", 6.5, 0.03),
    Case("int6(group=32, asym)", 6.75, 0.03),
    Case("int7(group=64)", 7.25, 0.02), Case("int7(channel)", 7 + 1 / 16, 0.03),
    Case("int8(group=64)", 8.25, 0.01), Case("int8(channel)", 8 + 1 / 16, 0.01),
    Case("int8(channel, asym)", 8 + 40 / 512, 0.01),
    Case("fp8(e4m3, channel)", 8 + 1 / 16, 0.03), Case("fp8(e5m2, group=32)", 8.5, 0.06),
    Case("fp8(e4m3, group=64, scale=bf16)", 8.25, 0.03), Case("fp6(e2m3, group=32)", 6.5, 0.04),
    Case("fp6(e3m2, channel)", 6 + 1 / 16, 0.06), Case("fp4(group=32)", 4.5, 0.13),
    Case("fp4(channel)", 4 + 1 / 16, 0.16),
    Case("mxfp4", 4.25, 0.16), Case("mxfp6(e2m3)", 6.25, 0.05), Case("mxfp6(e3m2)", 6.25, 0.06),
    Case("mxfp8(e4m3)", 8.25, 0.04),
    Case("mxfp8(e5m2)", 8.25, 0.06), Case("nvfp4", 4.5 + 2 / 512, 0.12),
    Case("nf4(group=64)", 4.5, 0.11), Case("nf4(group=32, scale=f16)", 4.5, 0.11),
    Case("q4_0", 4.5, 0.1), Case("q4_1", 5, 0.09), Case("q5_0", 5.5, 0.05), Case("q5_1", 6, 0.05),
    Case("q8_0", 8.5, 0.01),
    Case("q2_k", 2.625, 0.4), Case("q3_k", 3.4375, 0.2), Case("q4_k", 4.5, 0.09), Case("q5_k", 5.5, 0.05),
    Case("q6_k", 6.5625, 0.03),
    Case("planes1(group=32)", 2, 1.6), Case("planes2(group=64)", 2.75, 0.5),
    Case("planes3(group=32)", 5, 0.2),
    Case("planes4(group=64)", 5.25, 0.1),
    Case("codebook2", 2 + 64 / 512, 0.5), Case("codebook3", 3 + 128 / 512, 0.3), Case("codebook4", 4.5, 0.2),
    Case("int3(group=64) + sparse(0.5%)", 3.25 + 3 * 32 / 512, 0.27),
    Case("q4_k + sparse(1%)", 4.5 + 6 * 32 / 512, 0.1),
    Case("int4(channel) + sparse(2%)", 4 + 1 / 16 + 11 * 32 / 512, 0.2),
    Case("mxfp4 + sparse(0.5%)", 4.25 + 3 * 32 / 512, 0.2),
    Case("nf4(group=64, double)", 4.125 + 64 / 512, 0.11),
    Case("bf16 + sparse(1%)", 16 + 6 * 32 / 512, 0.003), Case("f32 + sparse(0.5%)", 32 + 3 * 32 / 512, 1e-3),
]  # fmt: skip
N, K = 48, 512
LEVELS = [name for name in runnable() if name in ("baseline", "avx2", "avx512", "avx512_vnni", "avx512_bf16")]
LEVELS = [LEVELS[0], *(x for x in ("avx2",) if x in LEVELS), LEVELS[-1]]


def cases(function: Any) -> Any:
    return pytest.mark.parametrize("case", CASES, ids=lambda c: c.text)(function)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ------------------------------------------------------------------ text, bytes, values
@cases
def test_text_bytes_and_error(case: Case) -> None:
    e = parse_encoding(case.text)
    assert str(e) == case.text and parse_encoding(str(e)) == e
    assert e.bits_per_element((64, K)) == case.bits
    x = normal(N, K)
    streams = e.encode(x)
    back = e.unpack(e.pack(streams, x.shape), x.shape)
    assert set(back) == set(streams)
    for name, a in streams.items():
        np.testing.assert_array_equal(back[name], a, err_msg=name)
    gap = e.decode(streams) - x
    assert np.sqrt(np.square(gap).mean()) <= case.error


@cases
def test_zeros_and_stacks(case: Case) -> None:
    e = parse_encoding(case.text)
    x = normal(2, 20, K)
    x[0, 3] = 0
    streams = e.encode(x)
    assert (
        not e.decode(streams)[0, 3].any() or "1(" in case.text and np.abs(e.decode(streams)[0, 3]).max() == 0
    )
    back = e.unpack(e.pack(streams, x.shape), x.shape)
    np.testing.assert_array_equal(e.decode(back), e.decode(streams))
    assert len(e.pack(streams, x.shape)) == e.nbytes(x.shape)


@cases
def test_values_that_are_no_numbers(case: Case) -> None:
    x = normal(4, K)
    x[1, 2], x[3, 0] = np.nan, np.inf
    with pytest.raises(EncodingError) as caught:
        parse_encoding(case.text).encode(x)
    assert str(caught.value) == f"{case.text}: 2 of {4 * K} values are NaN or infinite, the first at [1, 2]"


# ------------------------------------------------------------------ kernels
@dataclass(frozen=True)
class Held:
    """A kernel that goes through an encoding, its arrays, and what it must write to %y."""

    encoding: Encoding
    kernel: Kernel
    arrays: dict[str, Array]
    want: Array
    symbols: dict[str, int] = field(default_factory=dict)


def check_all(held: Sequence[Held], level: str, same: Callable[[Array, Array], None]) -> None:
    """Runs all kernels, at a level from one library or at "tile" by the interpreter; the failure lists every
    encoding whose result is off."""
    run = by_interpreter if level == "tile" else library_of([h.kernel for h in held], level)
    wrong = []
    for h in held:
        arrays = {**h.arrays, "y": np.full(h.want.shape, np.nan, np.float32)}
        run(h.kernel, arrays, h.symbols)
        try:
            same(arrays["y"], h.want)
        except AssertionError as e:
            wrong.append(f"{h.encoding}:{e}")
    assert not wrong, "\n".join(wrong)


def by_interpreter(kernel: Kernel, arrays: dict[str, Array], symbols: Mapping[str, int]) -> None:
    sizes = dict(kernel.schedules[-1].sizes) if kernel.schedules else {}
    run_kernel(kernel, arrays, {**symbols, **sizes})


#: at these, every encoding is compiled in `make test`; at the others on some days
QUICK_LEVELS = ("tile", LEVELS[-1])


@pytest.mark.parametrize(
    "level", [x if x in QUICK_LEVELS else pytest.param(x, marks=pytest.mark.slow) for x in ("tile", *LEVELS)]
)
def test_decoded_values(level: str) -> None:
    """The very bits of the NumPy decoder."""
    held = [decoding(parse_encoding(c.text), n) for n, c in enumerate(CASES)]
    check_all(held, level, np.testing.assert_array_equal)


#: rows of the tile that is decoded: each is as much text as the others, and the compiler's time follows it
ROWS = 4


def decoding(e: Encoding, number: int) -> Held:
    n, k = 16, 256
    b = KernelBuilder(f"decode{number}")
    w, y = b.param("w", "f32", (n, k), e), b.param("y", "f32", (n, k))
    i, j = b.grid("i", n, ROWS), b.grid("j", k, 8)
    tile = e.tile_decode(b, w, (slice(i, ROWS), slice(j, 8)))
    b.store(y, (Span(i, ROWS), Span(j, 8)), tile)
    kernel, x = b.build(), normal(n, k, seed=1)
    verify_kernel(kernel)
    streams = e.encode(x)
    return Held(e, kernel, {"w": e.pack(streams, x.shape)}, e.decode(streams))


def contraction(
    e: Encoding, token: IntToken | None, dtype: str, n: int, k: int, staged: bool, name: str = "linear"
) -> Kernel:
    b = KernelBuilder(name)
    x = b.param("x", "f32" if token else dtype, ("M", k), token)
    w, y = b.param("w", "f32", (n, k), e), b.param("y", "f32", ("M", n))
    i, j = b.grid("i", "M", "BM", rows=True), b.grid("j", n, "BN")
    acc = linear.accumulate(b, x, w, linear.TilePosition((slice(i, "BM"),), j, k), [0])
    b.store(y, (Span(i, "BM"), Span(j, "BN")), acc[0])
    known = schedules_of(Contraction(x, w, 1, k, n), b.build())
    found = [s for s in known if s.target in ("avx512_bf16", "avx512", "avx2", "*")]
    if not staged:
        found = [replace(found[-1], sizes=tuple((n, 1 if n == "BM" else v) for n, v in found[-1].sizes))]
    b.schedules += [s for s in found if not s.when]
    kernel = b.build()
    verify_kernel(kernel)
    return kernel


def linear_case(e: Encoding, form: str, m: int, number: int) -> Held:
    """[m, 256] activations in a form times the encoded weights: the product of the decoded operands."""
    n, k = 32, 256
    x, w = normal(m, k, seed=2), normal(n, k, seed=3)
    streams, token = e.encode(w), None
    if form == "int8":
        token = activations_for(e)
        coded = token.encode(x)
        held, packed = token.decode(coded), token.pack(coded, x.shape)
    else:
        packed = to_bits(x, form)
        held = x if form == "f32" else (packed.astype(np.uint32) << 16).view(np.float32)
    kernel = contraction(e, token, form, n, k, m > 4, f"linear{number}")
    want = held.astype(np.float64) @ e.decode(streams).astype(np.float64).T
    arrays = {"x": np.ascontiguousarray(packed), "w": e.pack(streams, w.shape)}
    return Held(e, kernel, arrays, want.astype(np.float32), {"M": m})


def activations_for(e: Encoding) -> IntToken:
    assert e.contraction_form is not None
    needed = e.contraction_form.meeting(OperandForm())
    assert needed is not None
    return IntToken(needed.group, needed.zero)


def has_integer_dot(e: Encoding) -> bool:
    return e.contraction_form is not None and e.contraction_form.zero is not None


FORMS = ("int8", "bf16", "f32")
#: weights whose units are not integers: int8 activations cannot meet them
NO_INTEGER_DOT = {
    "fp8(e4m3, channel)", "fp8(e5m2, group=32)", "fp8(e4m3, group=64, scale=bf16)", "fp6(e3m2, channel)",
    "mxfp6(e3m2)",
    "mxfp8(e4m3)", "mxfp8(e5m2)", "nf4(group=64)", "nf4(group=32, scale=f16)", "nf4(group=64, double)",
    "bf16 + sparse(1%)", "f32 + sparse(0.5%)",
}  # fmt: skip


def contractions(form: str, m: int) -> list[Held]:
    encodings = [parse_encoding(c.text) for c in CASES if form != "int8" or c.text not in NO_INTEGER_DOT]
    return [linear_case(e, form, m, n) for n, e in enumerate(encodings)]


def near(got: Array, want: Array) -> None:
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_contraction(form: str) -> None:
    check_all(contractions(form, 2), LEVELS[-1], near)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("level", ["tile", *LEVELS])
def test_more_contractions(form: str, level: str) -> None:
    check_all(contractions(form, 9), level, near)


@cases
def test_where_int8_activations_are_refused(case: Case) -> None:
    """Exactly where the list says."""
    e = parse_encoding(case.text)
    assert has_integer_dot(e) == (case.text not in NO_INTEGER_DOT)
    if case.text in NO_INTEGER_DOT:
        with pytest.raises(CannotEmit, match="int8 activations need weights whose units are integers"):
            contraction(e, IntToken(), "int8", 32, 256, False)


# ------------------------------------------------------------------ public block forms
#: where the f16 numbers of a block lie
HALVES = {"q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,), "q4_0": (0,), "q5_0": (0,), "q8_0": (0,)}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_blocks_of_files(kind: str) -> None:
    """Any bytes come back as they were, through the packed form too."""
    e, rng = GgufBlocks(kind), np.random.default_rng(5)
    raw = rng.integers(
        0, 256, (16, K // max(e.spec.block, 256 if e.spec.scale else 0), block_bytes(kind)), np.uint8
    )
    for at in HALVES.get(kind, (0, 2)):
        raw[..., at : at + 2] = rng.standard_normal((*raw.shape[:2], 1)).astype(np.float16).view(np.uint8)
    raw = raw.reshape(16, -1)
    streams = e.from_blocks(raw)
    np.testing.assert_array_equal(e.to_blocks(e.unpack(e.pack(streams, (16, K)), (16, K))), raw)
    assert raw.size == e.nbytes((16, K))


def test_blocks_by_the_public_formulas() -> None:
    rng = np.random.default_rng(6)
    raw = rng.integers(0, 256, (1, 144), np.uint8)
    raw[0, :4] = np.array([0.5, 0.25], np.float16).view(np.uint8)
    value = GgufBlocks("q4_k").decode(GgufBlocks("q4_k").from_blocks(raw))[0]
    b = raw[0].astype(int)
    for n in (0, 33, 100, 255):
        j, low = n // 32, n // 32 % 2 == 0
        packed = b[16 + n // 64 * 32 + n % 32]
        scale = b[4 + j] & 63 if j < 4 else b[8 + j] & 15 | b[j] >> 6 << 4
        least = b[8 + j] & 63 if j < 4 else b[8 + j] >> 4 | b[4 + j] >> 6 << 4
        assert value[n] == 0.5 * scale * (packed & 15 if low else packed >> 4) - 0.25 * least
    raw = rng.integers(0, 256, (1, 18), np.uint8)
    raw[0, :2] = np.array([0.5], np.float16).view(np.uint8)
    value = GgufBlocks("q4_0").decode(GgufBlocks("q4_0").from_blocks(raw))[0]
    codes = raw[0, 2:].astype(int)
    np.testing.assert_array_equal(value, 0.5 * (np.concatenate([codes & 15, codes >> 4]) - 8))


# ------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "int4(group=32, rows)",
            (
                "int4: unknown option rows; known: channel, group=N, asym|min|bipolar, "
                "scale=f16|bf16|f32|int8, layout=keys|values"
            ),
        ),
        (
            "int4(grp=32)",
            (
                "int4: unknown option grp; known: channel, group=N, asym|min|bipolar, "
                "scale=f16|bf16|f32|int8, layout=keys|values"
            ),
        ),
        ("int4(channel, group=32)", "int4: channel and group=32 exclude each other"),
        (
            "int1(sym, group=32)",
            (
                "int1: unknown option sym; known: channel, group=N, asym|min|bipolar, "
                "scale=f16|bf16|f32|int8, layout=keys|values"
            ),
        ),
        ("int8(bipolar)", "int8: bipolar needs 7 bits or fewer"),
    ],
)
def test_unknown_options(text: str, message: str) -> None:
    with pytest.raises(EncodingError) as caught:
        parse_encoding(text)
    assert str(caught.value) == message


def test_shapes_that_do_not_fit() -> None:
    for text, k, message in [
        ("int4(group=32)", 48, "int4(group=32): group 32 does not divide K = 48 of shape (16, 48)"),
        ("int3(group=16)", 48, "int3(group=16): run of codes 32 does not divide K = 48 of shape (16, 48)"),
    ]:
        with pytest.raises(EncodingError) as caught:
            parse_encoding(text).encode(normal(16, k))
        assert str(caught.value) == message


@cases
def test_the_stated_scales_are_stored(case: Case) -> None:
    """`scales` names fields by scope and dtype, among them all that hold floats."""
    e = parse_encoding(case.text)
    base = e.base if isinstance(e, Composed) else e
    assert isinstance(base, Fielded)
    scopes = {"element": "", "block": "group", "outer": "group", "row": "channel", "tensor": "tensor"}
    stored = [
        (scopes[f.per], f.dtype, base.blocks.grain(f)[-1] if f.per in ("block", "outer") else 0)
        for f in base.fields()
        if f.per != "element"
    ]
    stated = [(s.scope, s.dtype, s.group) for s in e.scales]
    assert set(stated) <= set(stored)
    assert {s for s in stored if s[1][0] in "fb"} <= set(stated)


def test_all_are_here() -> None:
    """Every registered weight encoding has a case."""
    dense = {"f32", "f16", "bf16"}
    tested = {name for c in CASES for name in re.findall(r"[a-z]\w*(?=\()|^\w+", c.text)}
    assert tested >= {n for n in known_encodings() if n not in dense and n != "ternary"}
