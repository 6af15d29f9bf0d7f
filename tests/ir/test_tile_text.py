"""The text of tile programs: printer and parser are inverses, and any text parses or fails cleanly."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings

from tests.ir.strategies import SYMBOLS, tile_kernels
from tests.ir.tile_cases import CASES
from tilewright.ir.affine import Affine
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import ParseError, TilewrightError, VerifyError
from tilewright.ir.interp.tile import run_kernel
from tilewright.ir.numbers import STORED
from tilewright.ir.text.tile_parser import parse_kernel, parse_kernels
from tilewright.ir.text.tile_printer import print_kernel, print_kernels
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.core import At, Kernel, Load, Pick, Span
from tilewright.ir.tile.memory import buffer_bytes
from tilewright.ir.tile.verify import verify_kernel

PROGRAMS = sorted({c.path for c in CASES.values()})


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.stem)
def test_hand_written_programs_round_trip(path: Path) -> None:
    kernel = parse_kernel(path.read_text(), path.name)
    text = print_kernel(kernel)
    assert parse_kernel(text) == kernel
    assert print_kernel(parse_kernel(text)) == text


@seed(20)
@settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(tile_kernels())
def test_random_programs_round_trip_verify_and_run(kernel: Kernel) -> None:
    text = print_kernel(kernel)
    again = parse_kernel(text)
    assert again == kernel
    verify_kernel(kernel)
    first, second = _run(kernel), _run(again)
    assert first.tobytes() == second.tobytes()


def _run(kernel: Kernel) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    rng = np.random.default_rng(1)
    arrays = {}
    for b in kernel.params:
        dims = tuple(d.bind(SYMBOLS).as_int() for d in b.dims)
        raw = rng.integers(0, 60, buffer_bytes(b, dims)).astype(np.uint8)
        arrays[b.name] = np.arange(dims[0]).astype(np.int32) if b.name == "rows" else raw
    arrays["y"] = np.zeros(arrays["y"].size // 4, STORED["f32"])
    run_kernel(kernel, arrays, SYMBOLS)
    return arrays["y"]


def test_canonical_text() -> None:
    text = CASES["softmax"].path.read_text()
    assert (
        print_kernel(parse_kernel(text))
        == """\
kernel @softmax(%x: f32[T, D], %y: f32[T, D]) {
  grid t in T by 1
  %0 = const -inf : f32[1]
  %1 = const 0.0 : f32[1]
  %m, %l = for a in 0..D by 32 carry (%m0 = %0 : f32[1], %l0 = %1 : f32[1]) {
    %v = load %x[t, a:32] else -inf : f32[32]
    %2 = reduce max %v axis 0 : f32[1]
    %m1 = max %m0, %2 : f32[1]
    %3 = sub %m0, %m1 : f32[1]
    %4 = exp %3 : f32[1]
    %5 = mul %l0, %4 : f32[1]
    %6 = sub %v, %m1 : f32[32]
    %7 = exp %6 : f32[32]
    %8 = reduce add %7 axis 0 : f32[1]
    %9 = add %5, %8 : f32[1]
    yield %m1, %9
  }
  for b in 0..D by 32 {
    %10 = load %x[t, b:32] : f32[32]
    %11 = sub %10, %m : f32[32]
    %12 = exp %11 : f32[32]
    %13 = div %12, %l : f32[32]
    store %y[t, b:32], %13
  }
  schedule * { threads t }
  schedule triton { }
}
"""
    )


def test_index_forms() -> None:
    text = """kernel @f(%b: f32[M, N], %i: i32[M], %y: f32[M, N]) {
      grid m in M by 4
      %s = load %i[m]
      %r = load %i[m:4]
      %a = load %b[%s, 0:8]
      %c = load %b[%r, m/2 - 3*m + 1/2 : 8] else nan
    }"""
    loads = [s for s in parse_kernel(text).body if isinstance(s, Load)]
    assert loads[2].index == (At(Affine.of("%s")), Span(Affine.of(0), 8))
    assert loads[3].index == (Pick("r"), Span(Affine.of("m") * -5 / 2 + Affine.of(1) / 2, 8))
    assert math.isnan(loads[3].other)
    assert parse_kernel(print_kernel(parse_kernel(text))) == parse_kernel(text)


def test_encoded_parameters_and_ranges() -> None:
    b = KernelBuilder("f")
    w = b.param("w", "bf16", ("N", 64), encoding=parse_encoding("int4(group=32)"))
    y = b.param("y", "bf16", ("N", 64))
    b.param("c", "u8", (), lo=0, hi=15)
    j = b.grid("j", "N", "BN")
    b.store(y, [slice(j, "BN"), slice(0, 32)], b.load(w, slice(j, "BN"), slice(0, 32)))
    b.schedule("*", BN=16)
    kernel = b.build()
    text = print_kernel(kernel)
    assert "%w: bf16[N, 64] as int4(group=32)" in text and "%c: u8 in 0..15" in text
    assert parse_kernels(print_kernels([kernel, kernel])) == (kernel, kernel)


def test_a_long_program_parses_fast() -> None:
    lines = [f"  %v{n + 1} = add %v{n}, %v{n} : f32[B]" for n in range(5000)]
    text = (
        "kernel @b(%x: f32[N], %y: f32[N]) {\n  grid i in N by B\n  %v0 = load %x[i:B] : f32[B]\n"
        + "\n".join(lines)
        + "\n}\n"
    )
    parse_kernels("")
    start = time.process_time()
    assert len(parse_kernel(text).body) == 5001
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "kernel @f(%x: f32[N]) {\n  %a = exo %x[0:4]\n}",
            "<text>:2:8: parse error: no tile operation 'exo'; known: add, sub, mul, ",
        ),
        ("kernel @f(%x: f33[N]) {\n}", ("<text>:1:15: parse error: unknown element type 'f33'; known: bool, "
                                       "i8, ")),
        (
            "kernel @f() {\n  %a = iota 4 4\n}",
            ("<text>:2:15: parse error: unexpected '4'\n      %a = iota 4 4\n                  ^\n  help: "
            "expected "),
        ),
        ("kernel @f(", "<text>:1:1: parse error: unexpected the end of the text\n"),
        ("kernel @f() { %a = iota 99999999999999999999 }",
         "<text>:1:25: parse error: integer beyond 64 bits\n"),
        (
            "kernel @f() { %a = " + "(" * 200 + "1" + ")" * 200 + " }",
            "<text>:1:220: parse error: expression nested more than 64 deep",
        ),
        ("kernel @f() { %a = add %b, 1 }",
         "<text>:1:20: parse error: %b is not defined here, so its type is unknown\n"),
        ("kernel @f(%x: f32[N*N]) { }",
         "<text>:1:21: parse error: an index is a sum of names times numbers; N * N is not\n"),
        ("kernel @f(%x: f32[N/0]) { }",
         "<text>:1:21: parse error: an index can be divided only by integers other than 0, not by 0\n"),
        ("\x00\x01\x02", "<text>:1:1: parse error: unexpected character '\\x00'\n"),
    ],
)  # fmt: skip
def test_errors_say_what_and_where(text: str, message: str) -> None:
    with pytest.raises(ParseError) as e:
        parse_kernels(text)
    assert str(e.value).startswith(message)


def test_absurd_texts_fail_well() -> None:
    texts = [
        "kernel @f() { " + "for a in 0..4 by 1 { " * 5000 + "}" * 5000 + " }",
        "kernel @f() { %x = " + "-" * 100_000 + "%y }",
        "kernel @f() { %x = " + "%y + " * 5000 + "%y }",
        "kernel @f(%x: f32[" + "(" * 5000 + "N" + ")" * 5000 + "]) { %y = load %x[" + "9" * 5000 + "] }",
        "kernel @f(%x: f32[N] as int4(" + "(" * 1000 + ") { }",
        "kernel @f(%x: f32[" + "9223372036854775807*" * 50 + "N]) { }",
        "kernel " * 1000,
    ]  # fmt: skip
    for text in texts:
        with pytest.raises(ParseError):
            parse_kernels(text)


def test_a_tile_too_large_is_refused() -> None:
    kernel = parse_kernel(
        "kernel @f(%y: f32[N]) { grid i in N by B  store %y[i:B], const 0 : f32[B]  schedule * { "
        "B=99999999999 } }"
    )
    with pytest.raises(VerifyError, match=r"\[17\]"):
        verify_kernel(kernel)
    with pytest.raises(VerifyError, match=r"\[17\]"):
        run_kernel(kernel, {"y": np.full(8, np.nan, np.float32)}, {"N": 8})


def test_mutated_texts_parse_or_fail_well() -> None:
    """Seeded edits of real programs: an error of ours or a kernel that prints and parses, never another
    exception."""
    rng = random.Random(7)
    sources = [p.read_text() for p in PROGRAMS] + [
        print_kernel(parse_kernel(p.read_text())) for p in PROGRAMS
    ]
    good = 0
    for _ in range(600):
        text = _mutate(rng, rng.choice(sources), sources)
        try:
            kernels = parse_kernels(text)
            for k in kernels:
                verify_kernel(k)
        except TilewrightError as e:
            assert isinstance(e, ParseError | VerifyError) and str(e)
            continue
        assert parse_kernels(print_kernels(kernels)) == kernels, text
        good += 1
    assert good > 20


def _mutate(rng: random.Random, text: str, sources: list[str]) -> str:
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(text) + 1)
        words = text.split(" ")
        match rng.randrange(7):
            case 0:
                text = text[:at]
            case 1:
                text = text[:at] + text[at + rng.randint(1, 8) :]
            case 2:
                text = (
                    text[:at]
                    + chr(rng.choice([0, 37, 64, 91, 123, 125, 0x2028, 0x1F600, rng.randrange(32, 127)]))
                    + text[at:]
                )
            case 3:
                k, m = rng.randrange(len(words)), rng.randrange(len(words))
                words[k], words[m] = words[m], words[k]
                text = " ".join(words)
            case 4:
                words[rng.randrange(len(words))] = rng.choice(rng.choice(sources).split(" "))
                text = " ".join(words)
            case 5:
                number = rng.choice(
                    ["0", "-1", "1e999", "99999999999999999999999", "4", "2/3", "nan", "1048577"]
                )
                text = text[:at] + number + text[at:]
            case _:
                lines = text.split("\n")
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
                text = "\n".join(lines)
        text = text or " "
    return text
