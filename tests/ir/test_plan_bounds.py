"""Rules 9 to 13 of plans (sizes, offsets, initialisation), each violated in an otherwise valid text."""

from __future__ import annotations

import pytest

from tilewright.ir.errors import VerifyError
from tilewright.ir.text.plan_parser import parse_program
from tilewright.passes.driver import verify_ir

TEXT = """\
symbol T in 1..16
weight @w : f32[8] = file("memory", "w")

kernel @scale(%x: f32[M, 8], %w: f32[8], %y: f32[M, 8]) {
  grid i in M by 4
  %0 = load %x[i:4, 0:8] : f32[4, 8]
  %1 = load %w[0:8] : f32[8]
  %2 = mul %0, %1 : f32[4, 8]
  store %y[i:4, 0:8], %2
}

kernel @half(%x: f32[M, 8], %y: f32[M, 8]) {
  grid i in M by 1
  %0 = load %x[i, 0:4] : f32[4]
  store %y[i, 0:4], %0
}

kernel @rest(%x: f32[M, 8], %y: f32[M, 8]) {
  grid i in M by 1
  %0 = load %x[i, 4:4] : f32[4]
  store %y[i, 4:4], %0
}

plan @forward(%x: f32[T, 8], %z: f32[T, 8]) arena 1536 {
  buffer %a : f32[T, 8] bytes 512 at 0
  buffer %b : f32[T, 8] bytes 512 at 512
  buffer %c : f32[T, 8] bytes 512 at 1024
  call @scale(%x, @w, %a) {M=T}
  call @half(%a, %b) {M=T}
  call @rest(%a, %b) {M=T}
  call @scale(%b, @w, %c) {M=T} when T <= 4
  call @scale(%b, @w, %c) {M=T} when T > 4
  return y = %c
}
"""
FIRST, HALF = "call @scale(%x, @w, %a) {M=T}", "call @half(%a, %b) {M=T}"
DECLARE = "let earlier calls store every element, under conditions that cover all cases"
BROKEN = [
    (9, "symbol T in 1..16", "symbol T in 1..99999999999", "program",
     "symbol T ranges from 1 to 99999999999, expected 0 <= least <= most < 2^31", "", ""),
    (9, FIRST, FIRST.replace("M=T", "M=T - 2"), "plan @forward",
     "M: T - 2 takes values from -1 to 14, expected 0 or more and less than 2^31",
     FIRST.replace("M=T", "M=T - 2"), ""),
    (9, FIRST, FIRST.replace("M=T", "M=T/2"), "plan @forward",
     "M: T/2 is not an integer for all values of its symbols; write floor(…) or ceiling(…)",
     FIRST.replace("M=T", "M=T/2"), ""),
    (9, FIRST, FIRST.replace("M=T", "M=floor(8/T)"), "plan @forward",
     "M: floor(8/T) divides by T, expected a positive integer", FIRST.replace("M=T", "M=floor(8/T)"), ""),
    (10, FIRST, FIRST.replace("M=T", "M=1000000*T"), "plan @forward",
     "parameter %x spans [1000000*T, 8] of it, which is [T, 8]: %x is not known to be that large",
     FIRST.replace("M=T", "M=1000000*T"), ""),
    (10, HALF, HALF.replace("M=T", "M=30*T"), "plan @forward",
     ("parameter %x spans [30*T, 8] of it, which is [T, 8]: %a is not known to be that "
     "large"), HALF.replace("M=T", "M=30*T"), ""),
    (10, "%w: f32[8], %y", "%w: f32[16], %y", "plan @forward",
     "parameter %w spans [16] of it, which is [8]: @w is not known to be that large", FIRST, ""),
    (11, "bytes 512 at 512", "bytes 480 at 512", "plan @forward",
     "%b has 480 bytes, its type takes 512 at the largest step",
     "buffer %b : f32[T, 8] bytes 480 at 512", ""),
    (11, "bytes 512 at 1024", "bytes 512 at 1008", "plan @forward",
     "%c starts at 1008, expected a multiple of 64",
     "buffer %c : f32[T, 8] bytes 512 at 1008", "run plan-memory"),
    (11, "bytes 512 at 1024", "bytes 512 at 960", "plan @forward",
     "%c overlaps %b in memory, and calls 3 to 4 need both",
     "buffer %c : f32[T, 8] bytes 512 at 960", "run plan-memory"),
    (12, f"  {HALF}\n", "", "plan @forward",
     "reads %b, which is not known to be completely written for T from 1 to 4",
     "call @scale(%b, @w, %c) {M=T} when T <= 4", DECLARE),
    (12, "store %y[i, 4:4], %0", "store %y[i, 5:4], %0", "plan @forward",
     "reads %b, which is not known to be completely written for T from 1 to 4",
     "call @scale(%b, @w, %c) {M=T} when T <= 4", DECLARE),
    (12, "grid i in M by 4", "grid i in M by 8", "plan @forward",
     "reads %a, which is not known to be completely written for T from 1 to 4", HALF, DECLARE),
    (12, "when T > 4", "when T > 5", "plan @forward",
     "result y: %c is not known to be completely written for T = 5",
     "buffer %c : f32[T, 8] bytes 512 at 1024", DECLARE),
    (12, FIRST, "call @scale(%x, @w, %a) {M=1}", "plan @forward",
     "reads %a, which is not known to be completely written for T from 1 to 4", HALF, DECLARE),
    (12, FIRST, "call @scale(%x, @w, %a) {M=1} when M <= 4", "plan @forward",
     "a condition on M, which is bound to 1: expected a symbol of the program",
     "call @scale(%x, @w, %a) {M=1} when M <= 4", ""),
    (13, "%w: f32[8], %y", "%w: i32[8] in 0..3, %y", "plan @forward",
     "parameter %w states a range of values, which is not guaranteed for its argument", FIRST, ""),
]  # fmt: skip


def test_the_text_keeps_every_rule() -> None:
    verify_ir(parse_program(TEXT))


@pytest.mark.parametrize(("rule", "old", "new", "where", "message", "source", "hint"), BROKEN)
def test_broken(rule: int, old: str, new: str, where: str, message: str, source: str, hint: str) -> None:
    assert TEXT.count(old) == 1 or rule in (10, 13)
    text = TEXT.replace(old, new)
    if rule == 13:  # a weight of integers, multiplied as such
        text = text.replace("weight @w : f32[8]", "weight @w : i32[8]").replace(
            "%1 = load %w[0:8] : f32[8]", "%9 = load %w[0:8] : i32[8]\n  %1 = cast f32 %9 : f32[8]"
        )
    with pytest.raises(VerifyError) as e:
        verify_ir(parse_program(text))
    assert (e.value.invariant, e.value.where, e.value.message) == (rule, where, f"[{rule}] {message}")
    assert (e.value.source, e.value.hint) == (source, hint)


@pytest.mark.parametrize(
    "change",
    [
        (FIRST, FIRST + " when T <= 16"),  # a condition that always holds
        ("when T <= 4", "when M <= 4"),  # on the kernel's symbol, which is the program's
        (
            "store %y[i:4, 0:8], %2",
            "for d in 0..8 by 2 { %3 = load %x[i:4, d:2] : f32[4, 2] store %y[i:4, d:2], %3 }",
        ),
        ("bytes 512 at 512", "bytes 4096 at 4096"),
        ("call @scale(%b, @w, %c) {M=T} when T > 4", "call @scale(%b, @w, %c) {M=T} when T > 3"),
    ],
)
def test_what_still_verifies(change: tuple[str, str]) -> None:
    text = TEXT.replace(*change).replace("arena 1536", "arena 8192")
    verify_ir(parse_program(text))


SIZES = [
    ("plan @forward(%x: f32[T, 8]", "plan @forward(%u: f32[2000000000, 2000000000], %x: f32[T, 8]",
     "%u has 4000000000000000000 elements at the largest step, at most 2^43 are allowed"),
    (FIRST, FIRST.replace("M=T", "M=floor(900000000000000001*T/900000000000000000)"),
     ("M: floor(900000000000000001*T/900000000000000000) divides or compares numbers that may be negative "
     "or larger than 2^62")),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), SIZES)
def test_sizes_that_64_bits_do_not_hold(old: str, new: str, message: str) -> None:
    with pytest.raises(VerifyError) as e:
        verify_ir(parse_program(TEXT.replace(old, new)))
    assert e.value.message == f"[9] {message}"


def test_a_buffer_without_elements_is_written() -> None:
    text = TEXT.replace("buffer %a : f32[T, 8] bytes 512", "buffer %a : f32[0, 8] bytes 0").replace(
        FIRST + "\n", ""
    )
    verify_ir(
        parse_program(
            text.replace(
                "call @half(%a, %b) {M=T}", "call @scale(%a, @w, %a) {M=0}\n  call @half(%z, %b) {M=T}"
            )
            .replace("@scale(%a, @w, %a)", "@half(%a, %c)")
            .replace("call @rest(%a,", "call @rest(%z,")
        )
    )


def test_an_empty_packed_buffer_is_not_read() -> None:
    """Packed loads carry no masks: with no rows there must be no instance."""
    text = """\
symbol R in 0..4
symbol T in 1..4

kernel @sum(%x: f32[R, 16] as int8(token), %y: f32[M, 16]) {
  grid i in M by 1
  %0 = load %x[0, 0:16] : f32[16]
  store %y[i, 0:16], %0
}

kernel @narrow(%a: f32[R, 16], %y: f32[R, 16] as int8(token)) {
  grid i in R by 1
  %0 = load %a[i, 0:16] : f32[16]
  %1 = cast i8 %0 : i8[16]
  store %y.codes[i, 0:16], %1
  %2 = const 1.0 : f32[1]
  store %y.scale[i, 0:1], %2
}

plan @forward(%x: f32[R, 16]) arena 1024 {
  buffer %q : f32[R, 16] as int8(token) bytes 80 at 0
  buffer %b : f32[T, 16] bytes 256 at 128
  call @narrow(%x, %q) {R=R}
  call @sum(%q, %b) {R=R, M=T}
  return y = %b
}
"""
    with pytest.raises(
        VerifyError,
        match=r"\[10\] parameter %x may be empty \(dimension R is 0\) while the kernel runs for R = 0",
    ):
        verify_ir(parse_program(text))
    verify_ir(parse_program(text.replace("symbol R in 0..4", "symbol R in 1..4")))
