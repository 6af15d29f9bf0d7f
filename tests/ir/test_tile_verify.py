"""Each numbered invariant of tile programs, broken once or more; the number is in the message."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.ir.tile_cases import CASES
from tilewright.ir.affine import Affine
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import VerifyError
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.core import Buffer, Carry, For, Kernel, Let, Store, TileType, bind
from tilewright.ir.tile.expand import expand_encodings
from tilewright.ir.tile.verify import verify_kernel

GOOD = """
kernel @f(%x: f32[M, N], %ids: i32[M],
          %w: f32[N, 64] as record "0/16 1/32" {codes: u4 "1.8:4 0.16 1.4 1.2:4", scale: f16 "0.16"},
          %y: f32[M, N]) {
  grid i in M by BM
  grid j in N by BN
  local %e: f32[BM, BN]
  %n = load %ids[i]
  %v = load %x[i:BM, j:BN]
  store %e[0:BM, 0:BN], %v
  %c = const 0 : f32[BM, BN]
  %acc = for k in 0..%n by BK carry (%a = %c : f32[BM, BN]) {
    %b = load %x[i:BM, k:BK]
    %t = within %b, k, 1 else 0
    %q = load %w.codes[j:BN, 0:32]
    %s = reduce max %t axis 1
    %z = add %a, %s : f32[BM, BN]
    yield %z
  }
  %l = load %e[0:BM, 0:BN]
  %o = add %acc, %l
  store %y[i:BM, j:BN], %o
  schedule * when M <= 4 { BM=4, BK=8, BN=16; order j i; threads j; stage %v at i; prefetch k 2 }
  schedule triton { BM=4, BK=8, BN=16 }
}
"""


def test_good_programs_pass() -> None:
    kernel = parse_kernel(GOOD)
    verify_kernel(kernel)
    for case in CASES.values():
        verify_kernel(case.kernel())
        for s in case.kernel().schedules:
            verify_kernel(bind(case.kernel(), dict(s.sizes)))


#: (number, old text, new text, part of the message)
BROKEN = [
    (1, "%ids: i32[M],", "%ids: i32[M], %y: i32[M],", "are not unique"),
    (1, "grid j", "grid i", "are not unique"),
    (1, "for k in", "for i in", "is used for two of"),
    (2, "%z = add %a, %s", "%v = add %a, %s", "%v is defined twice"),
    (2, "%o = add", "%b = add", "%b is defined twice"),
    (3, "add %acc, %l\n", "add %acc, %z : f32[BM, BN]\n", "%z is used outside the loop"),
    (3, "= add %acc, %l\n", "= add %acc, %late : f32[BM, BN]\n", "%late is not defined before this"),
    (5, "add %a, %s : f32[BM, BN]", "add %a, %s : f32[BM, BK]",
     "type f32['BM', 'BK'], but the operation gives"),
    (5, "load %x[i:BM, j:BN]\n", "load %x[i:BM, j:BN] : f32[BM, 8]\n",
     "but the operation gives f32['BM', 'BN']"),
    (5, "add %acc, %l\n", "and %acc, %l\n", "and does not compute on f32"),
    (5, "load %ids[i]\n", "load %ids[i] else nan\n", "else nan is not a value of i32"),
    (5, "%c = const 0", "%big = const 300 : u8 %c = const 0", "300 is not a value of u8"),
    (5, "%c = const 0", "%f = lt 0.5, 1.0 %g = expand %f 0 %h = reduce max %g %c = const 0",
     "reduce does not compute on bool"),
    (6, "store %y[i:BM, j:BN]", "store %y[i:BM]", "1 indices for the 2 dimensions of %y"),
    (6, "load %ids[i]\n", "load %x[i, 0]\n", "expected one integer"),
    (6, "%q = load %w.codes[j:BN, 0:32]", "%q = load %w[j:BN, 0:32]",
     "%w is packed: name one of its streams"),
    (7, "load %ids[i]\n", "load %ids[i + K]\n", "index: K is not in scope"),
    (7, "load %e[0:BM", "load %e[k:BM", "index: k is not in scope"),
    (8, "store %y[i:BM, j:BN], %o", "store %y[i, j:BN], %o",
    "%o is f32['BM', 'BN'], the destination f32['BN']"),
    (8, "store %y[i:BM, j:BN], %o", "store %y[i:BM, j:BN], cast i32 %o", "the destination f32['BM', 'BN']"),
    (9, "yield %z", "yield %s", "%a is carried as f32['BM', 'BN'], but %s is f32['BM', 1]"),
    (9, "%c = const 0 : f32[BM, BN]\n", "%c = const 0 : f32[BM, BK]\n",
     "as f32['BM', 'BN'], but starts as another type"),
    (10, "%n = load %ids[i]", "%early = load %e[0:BM, 0:BN] %n = load %ids[i]",
     "local %e is read before it is written"),
    (10, "%l = load %e", "store %e[0:BM, 0:BN], %acc %l = load %e", "is written by more than one statement"),
    (11, "triton { BM=4, BK=8, ", "triton { BM=4, ", "schedule triton does not bind BK"),
    (11, "triton { BM=4, BK=8, ", "triton { BM=4, BK=8, BZ=3, ",
     "schedule triton binds BZ, which the kernel does not use"),
    (11, "triton { BM=4, BK=8, ", "triton { BM=4, BK=0, ", "below 1"),
    (11, "grid i in M by BM", "grid rows i in M by 4", "steps by a size"),
    (12, "order j i", "order j", "order j is not a permutation of the axes i j"),
    (12, "threads j", "threads k", "threads k, expected one of the axes i j"),
    (12, "stage %v at i", "stage %w at i", "stage %w at i needs an existing value"),
    (12, "prefetch k 2", "prefetch g 2", "prefetch g 2 needs a loop"),
    (12, "when M <= 4", "when T <= 4", "condition on T"),
    (12, "stage %v at i", "stage %v at j", "stage %v at j: it depends on i, an axis inside j"),
    (13, "within %b, k, 1", "within %b, i, 1", "no enclosing loop i"),
    (13, "within %b, k, 1", "within %b, k, 0", "axis 0 of ['BM', 'BK'] is not as long as the step of k, BK"),
    (14, "store %y[i:BM, j:BN]", "store %y[i:BM, 0:BN]",
     "along grid axis j may write the same elements of %y"),
    (14, "grid i in M by BM", "grid i in M by 1", "along grid axis i may write"),
    (15, "grid j in N by BN", "grid j in N by 24",
     "leaves the padding of dimension 0: j steps by 24 to N, records hold 16"),
    (15, "%w.codes[j:BN, 0:32]", "%w.codes[j:BN, 40:32]", "coordinates 40 to 71 of 64"),
    (16, "load %x[i:BM, k:BK]", "load %x[i:BM, k/3:BK]", "index k/3 is not an integer for all values of k"),
    (16, "load %ids[i]\n", "load %ids[i + 1/2]\n", "index i + 1/2 is not an integer"),
    (16, "%ids: i32[M]", "%ids: i32[M/2]", "dimension M/2 of %ids is not an integer for all values of"),
    (16, "grid j in N by BN", "grid j in N/2 by BN", "extent N/2 of grid axis j is not an integer"),
    (16, "for k in 0..%n by BK", "for k in 0..N/2 by BK", "bound N/2 of loop k is not an integer"),
    (17, "triton { BM=4, BK=8, ", "triton { BM=4, BK=9999999, ", "expected 1 to 2^20 elements"),
    (17, "%ids: i32[M]", "%ids: i32[M], %huge: f32[1048576, 1048576, 256]", "beyond 2^48 bytes"),
    (18, '"0/16 1/32"', '"0/16 7/32"', "buffer %w: "),
    (18, "%ids: i32[M]", '%ids: i32[M] as record "0/4" {values: f32 "0.4"}',
     "stream `values` is read as the buffer itself"),
    (18, "%ids: i32[M]", "%ids: i32[M] in 9..3", "%ids: range 9..3 of i32"),
    (18, "%ids: i32[M]", "%ids: i32[M], %narrow: u4[M]", "buffer %narrow: u4"),
    (19, "reduce max %t axis 1", "reduce add %t axis 1",
     "along an axis of BK elements, which a schedule chooses"),
    (20, "store %e[0:BM, 0:BN], %v", "for p in 0..%n by 1 { store %e[0:BM, 0:BN], %v }",
     "loop p around it may have no iteration"),
]  # fmt: skip


@pytest.mark.parametrize(("number", "old", "new", "message"), BROKEN)
def test_broken_invariants_are_named(number: int, old: str, new: str, message: str) -> None:
    assert old in GOOD
    kernel = parse_kernel(GOOD.replace(old, new, 1))
    with pytest.raises(VerifyError) as e:
        verify_kernel(kernel)
    assert e.value.invariant == number and message in str(e.value), str(e.value)
    assert f"kernel @f: verify error: [{number}] " in str(e.value)


def _edit(change: Callable[[Let], Let]) -> Kernel:
    kernel = parse_kernel(GOOD)
    body = tuple(change(s) if isinstance(s, Let) and s.name == "o" else s for s in kernel.body)
    return replace(kernel, body=body)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: replace(s, op="frobnicate"),
        lambda s: replace(s, args=s.args[:1]),
        lambda s: replace(s, attrs=(("axis", 1),)),
    ],
)
def test_unknown_operations_operands_and_attributes(change: Callable[[Let], Let]) -> None:
    with pytest.raises(VerifyError, match=r"\[4\]"):
        verify_kernel(_edit(change))


def test_names_that_text_cannot_hold() -> None:
    kernel = parse_kernel(GOOD)
    for bad in (replace(kernel, name="a b"), _edit(lambda s: replace(s, name="o o"))):
        with pytest.raises(VerifyError, match=r"\[1\] '?%?[ao] [bo]'? is not a name"):
            verify_kernel(bad)
    with pytest.raises(VerifyError, match=r"\[1\] 'for' is not a name"):
        verify_kernel(replace(kernel, params=(Buffer("x", "f32", (Affine.of("for"),)), *kernel.params[1:])))


def test_whole_message() -> None:
    with pytest.raises(VerifyError) as e:
        verify_kernel(parse_kernel(GOOD.replace("store %y[i:BM, j:BN]", "store %y[i:BM, 0:BN]")))
    assert str(e.value) == (
        "kernel @f: verify error: [14] instances along grid axis j may write the same elements of %y\n"
        "    store %y[i:BM, 0:BN], %o\n"
        "    ^^^^^^^^^^^^^^^^^^^^^^^^\n"
        "  help: index the store with the axis, with an extent of at most its step, or declare the store "
        "disjoint"
    )


def test_disjoint_writes_that_are_proved() -> None:
    """Mixed radix in one dimension, loops inside an instance's share, and rows whose height varies."""
    ways = [
        "grid a in 3 by 1 grid b in N by 1 %v = const 0 : f32[4] store %y[12*b + 4*a:4], %v",
        "grid b in N by 1 %v = const 0 : f32[4] for k in 0..30 by 4 { store %y[32*b + k:4], %v }",
        "grid b in N by 32 %v = const 0 : f32[4] for k in b..b + 32 by 4 { store %y[k:4], %v }",
        "grid rows b in N by B %v = const 0 : f32[B] store %y[b:B], %v schedule * { B=8 }",
        "grid b in 1 by 1 %v = const 0 : f32[4] store %y[0:4], %v",
    ]
    for text in ways:
        verify_kernel(parse_kernel("kernel @f(%y: f32[N]) { " + text + " }"))
    clashes = [
        "grid a in 4 by 1 grid b in N by 1 %v = const 0 : f32[4] store %y[12*b + 4*a:4], %v",
        "grid b in N by 1 %v = const 0 : f32[4] for k in 0..33 by 4 { store %y[32*b + k:4], %v }",
        "grid rows b in N by B %v = const 0 : f32[8] store %y[b:8], %v schedule * { B=8 }",
        "grid b in N by 1 %v = const 0 : f32[4] for k in 0..N by 4 { store %y[32*b + k:4], %v }",
    ]
    for text in clashes:
        with pytest.raises(VerifyError, match=r"\[14\]"):
            verify_kernel(parse_kernel("kernel @f(%y: f32[N]) { " + text + " }"))


def test_a_loop_from_a_loaded_number_keeps_no_step() -> None:
    """From 5 in steps of 16 the last read of 16 codes would begin at 53: beyond the 64 that the record pads
    to."""
    text = """kernel @f(
      %at: u8[1], %w: f32[N, 64] as record "0/16 1/64" {codes: u4 "0.16 1.64"}, %y: u8[N, 64]) {
      grid n in N by 16
      %lo = load %at[0]
      for k in %lo..64 by 16 { store %y[n:16, k:16], load %w.codes[n:16, k:16] }
    }"""
    with pytest.raises(
        VerifyError, match=r"\[15\] index k:16 of %w.codes leaves the padding .* coordinates 0 to 78 of 64"
    ):
        verify_kernel(parse_kernel(text))
    verify_kernel(parse_kernel(text.replace("%lo..64", "0..64")))


def test_expanded_encodings_verify() -> None:
    for encoding in ("int4(group=32)", "int8(channel)"):
        b = KernelBuilder("f")
        w = b.param("w", "bf16", ("N", 64), encoding=parse_encoding(encoding))
        y = b.param("y", "bf16", ("N", 64))
        j = b.grid("j", "N", "BN")
        with b.loop("k", 0, 64, 32) as loop:
            b.store(y, [slice(j, "BN"), slice(loop.var, 32)], b.load(w, slice(j, "BN"), slice(loop.var, 32)))
        b.schedule("*", BN=16)
        kernel = expand_encodings(b.build())
        verify_kernel(kernel)
        assert expand_encodings(kernel) == kernel
        b.schedules.clear()
        b.schedule("*", BN=24)
        with pytest.raises(VerifyError, match=r"\[15\]"):
            verify_kernel(expand_encodings(b.build()))


def test_carry_and_store_helpers_are_data() -> None:
    """Frozen statements compare by structure, which round trips rely on."""
    t = TileType("f32", (4,))
    assert Carry("a", "b", t, "c", "d") == Carry("a", "b", t, "c", "d")
    loop = For("k", Affine.of(0), Affine.of("N"), 4, (), (Store("y", (), "v"),))
    assert loop == For("k", Affine.of(0), Affine.of("N"), 4, (), (Store("y", (), "v"),))


def test_a_loop_that_starts_at_a_loaded_number_divides_nothing() -> None:
    """A range of the start is known (a u8), yet not that it is a multiple of the step."""
    text = """kernel @f(%at: u8[1], %x: f32[64], %y: f32[S, 4]) {
      grid s in S by 1
      %lo = load %at[0]
      %v = for k in %lo..64 by 16 carry (const 0 : f32[4]) { yield %v + %x[k/16:4] }
      store %y[s, 0:4], %v
    }"""
    with pytest.raises(
        VerifyError, match=r"\[16\] index k/16 is not an integer for all values of %start of k"
    ):
        verify_kernel(parse_kernel(text))
    verify_kernel(parse_kernel(text.replace("%lo..64", "32..64")))
