"""The hand-written tile programs rendered to Triton and run in its interpreter; some also compiled."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.ir import tile_cases
from tilewright.backends.triton import interpret
from tilewright.backends.triton.render import render_kernel, schedule_for
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.text.tile_parser import parse_kernel


@pytest.mark.parametrize("name", sorted(tile_cases.CASES))
def test_hand_written_programs(name: str) -> None:
    case = tile_cases.CASES[name]
    kernel = case.kernel()
    inputs = case.make_inputs(np.random.default_rng(7))
    outputs = tile_cases.poisoned(kernel, case.symbols)
    interpret.run_kernel(kernel, {**inputs, **outputs}, case.symbols)
    tile_cases.check(case, inputs, outputs)


@pytest.mark.parametrize("name", ["softmax", "transpose", "dot_i8", "decode_u3"])
def test_ahead_of_time_cubin(name: str) -> None:
    case = tile_cases.CASES[name]
    cubin = interpret.compile_cubin(case.kernel(), 90, case.symbols)
    assert cubin[:4] == b"\x7fELF"


def test_source_is_readable() -> None:
    text = render_kernel(tile_cases.CASES["transpose"].kernel())
    assert "def k_transpose(p_x, p_y, M, N):" in text and "tl.trans(" in text


def test_kernel_without_a_triton_schedule() -> None:
    kernel = parse_kernel(
        "kernel @k(%x: f32[N]) { grid i in N by 16 store %x[i:16], const 1 : f32[16] schedule * { } }"
    )
    with pytest.raises(UnsupportedError, match=r"kernel @k: unsupported: no schedule for triton; it has \*"):
        schedule_for(kernel)


def _temporary() -> set[str]:
    return {n for n in os.listdir(tempfile.gettempdir()) if n.startswith("tilewright-triton-")}


def test_nothing_is_left_in_the_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(interpret, "_POOL", [])  # a fresh worker, whose temporary folder is ours
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    case = tile_cases.CASES["softmax"]
    kernel = case.kernel()
    inputs, outputs = case.make_inputs(np.random.default_rng(7)), tile_cases.poisoned(kernel, case.symbols)
    interpret.run_kernel(kernel, {**inputs, **outputs}, case.symbols)
    tile_cases.check(case, inputs, outputs)
    with pytest.raises(UnsupportedError, match="Triton does not compile this for sm_1"):
        interpret.compile_cubin(kernel, 1, case.symbols)
    assert not _temporary()
    interpret._POOL[0].shutdown()


def test_buffers_without_elements() -> None:
    """No instances; and instances that read nothing but what lies outside."""
    text = "grid i in M by 16 store %y[i:16], load %x[i:16] else 7 schedule triton { }"
    kernel = parse_kernel(f"kernel @k(%x: f32[N], %y: f32[M]) {{ {text} }}")
    for m in (0, 5):
        y = np.full(m, np.nan, np.float32)
        interpret.run_kernel(kernel, {"x": np.zeros(0, np.float32), "y": y}, {"N": 0, "M": m})
        np.testing.assert_array_equal(y, np.full(m, 7, np.float32))


def test_casts_pass_only_the_ends_that_they_can() -> None:
    text = """kernel @k(%x: u8[N], %y: i32[N], %z: i8[N]) {
      grid i in N by 16
      %v = load %x[i:16]
      store %y[i:16], cast i32 %v
      store %z[i:16], cast i8 %v
      schedule triton { }
    }"""
    source = render_kernel(parse_kernel(text))
    assert "v_0 = v_v.to(tl.int32)\n" in source
    assert "v_1 = tl.minimum(v_v.to(tl.int32), 127).to(tl.int8)\n" in source


def test_names_of_masks_leave_loop_variables_alone() -> None:
    text = """kernel @k(%x: f32[N, 8], %y: f32[N, 8]) {
      grid i in N by 1
      for m1 in 0..8 by 1 {
        for x2 in 0..8 by 8 { store %y[i, m1], load %x[i, m1] }
      }
      schedule triton { }
    }"""
    x = np.arange(24, dtype=np.float32).reshape(3, 8)
    y = np.zeros_like(x)
    interpret.run_kernel(parse_kernel(text), {"x": x, "y": y}, {"N": 3})
    np.testing.assert_array_equal(y, x)
