"""Packed buffers are read without masks: proofs for static reads, masks for data-dependent ones."""

from __future__ import annotations

import pytest

from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.render import render_kernel
from tilewright.ir.errors import UnsupportedError, VerifyError
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.ir.tile.verify import verify_kernel

PANEL = """
kernel @dot(%x: f32[M, 48], %w: f32[16, 48] as f32(layout=panel), %y: f32[M, 16]) {
  grid i in M by 1
  %s = for k in 0..48 by 8 carry (const 0.0 : f32[1, 16]) {
    %p = dot %s, (load %x[i:1, k:8]), (load %w.values[0:16, k:8])
    yield %p
  }
  store %y[i:1, 0:16], %s
}
"""
LIMITED = """
kernel @sum(%n: i32[M], %k: f32[8, 32] as f32(layout=keys), %y: f32[M]) {
  grid i in M by 1
  %last = min (load %n[i]), (const 32 : i32)
  %s = for t in 0..%last by 16 carry (const 0.0 : f32[16]) { yield %s + load %k.values[0, t:16] }
  store %y[i], reshape [] (reduce add %s)
}
"""
PICKED = """
kernel @rows(%ids: i32[M], %w: f32[64, 32] as f32(layout=panel), %y: f32[M, 32]) {
  grid i in M by 4
  %at = load %ids[i:4]
  store %y[i:4, 0:32], load %w.values[%at, 0:32]
}
"""
OUTSIDE = [
    (
        PANEL,
        "%w.values[0:16, k:8]",
        "%w.values[0:16, k - 6:8]",
        "index k - 6:8 of %w.values leaves the padding of dimension 1",
    ),
    (
        PANEL,
        "%w.values[0:16, k:8]",
        "%w.values[0:16, k + 1:8]",
        "index k + 1:8 of %w.values leaves the padding of dimension 1",
    ),
    (
        PANEL,
        "%w.values[0:16, k:8]",
        "%w.values[1:16, k:8]",
        "index 1:16 of %w.values leaves the padding of dimension 0",
    ),
    (
        LIMITED,
        "const 32 : i32",
        "const 33 : i32",
        "index t:16 of %k.values leaves the padding of dimension 1",
    ),
    (LIMITED, "0..%last by", "0..%m by", "index t:16 of %k.values leaves the padding of dimension 1"),
]


@pytest.mark.parametrize("text", [PANEL, LIMITED, PICKED])
def test_what_stays_inside(text: str) -> None:
    verify_kernel(parse_kernel(text))


@pytest.mark.parametrize(("text", "old", "new", "message"), OUTSIDE)
def test_what_leaves_the_padding(text: str, old: str, new: str, message: str) -> None:
    assert old in text
    text = text.replace("  %s = for t", "  %m = load %n[i]\n  %s = for t") if "%m" in new else text
    with pytest.raises(VerifyError) as e:
        verify_kernel(parse_kernel(text.replace(old, new)))
    assert e.value.invariant == 15 and e.value.message.startswith(f"[15] {message}")


@pytest.mark.parametrize(
    ("old", "new", "index"),
    [
        ("%x[i:1, k:8]", "%x[4611686018427387904*i:1, k:8]", "4611686018427387904*i"),
        ("0..48 by 8", "0..9000000000000000000 by 8", "9000000000000000000"),
        ("grid i in M by 1", "grid i in 3000000000*M by 1", "3000000000*M"),
    ],
)
def test_numbers_beyond_64_bits(old: str, new: str, index: str) -> None:
    """They would wrap, and proofs would be of other numbers."""
    with pytest.raises(VerifyError) as e:
        verify_kernel(parse_kernel(PANEL.replace(old, new)))
    assert e.value.message == f"[17] {index} may be 2^62 or more, or -2^62 or less"


def test_rows_that_data_picks_are_masked() -> None:
    source = render_kernel(parse_kernel(PICKED), TARGETS["baseline"])
    assert "(uint64_t)" in source and "< (uint64_t)(64)" in source


def test_a_kernel_has_a_schedule_for_every_size() -> None:
    text = PANEL.rstrip().rstrip("}") + "  schedule * when M <= 4 { order i }\n}\n"
    with pytest.raises(UnsupportedError) as e:
        render_kernel(parse_kernel(text), TARGETS["baseline"])
    assert str(e.value) == (
        "kernel dot: unsupported: every schedule for baseline has a condition, so that possibly none "
        "applies\n"
        "  help: add one without `when`"
    )


def test_a_local_is_not_larger_than_what_is_set_aside() -> None:
    text = """
    kernel @big(%x: f32[M, 16], %y: f32[M, 16]) {
      grid i in M by 1
      local %l : f32[2000000, 16]
      store %l[0, 0:16], load %x[i, 0:16]
      store %y[i, 0:16], load %l[0, 0:16]
    }
    """
    with pytest.raises(UnsupportedError, match="local %l takes 128000064 bytes, the limit is 67108864"):
        render_kernel(parse_kernel(text), TARGETS["baseline"])
