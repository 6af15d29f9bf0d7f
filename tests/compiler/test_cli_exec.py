"""`opt` and `exec` on the command line: output, and errors for wrong texts, symbols and levels."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.compiler.calls import COPY, here
from tilewright.ir.errors import RefusedError
from tilewright.runtime.cpu import LEVEL_FEATURES
from tilewright.tools.ir_inputs import check_room
from tilewright.tools.ir_text import execute


def test_opt_prints_what_it_parsed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, out = tmp_path / "k.ir", tmp_path / "out.ir"
    file.write_text(COPY)
    assert here(capsys, "opt", file) == (0, COPY, "")
    assert here(capsys, "opt", file, "-o", out) == (0, "", "") and out.read_text() == COPY
    file.write_text(COPY.replace("load", "laod"))
    code, _, err = here(capsys, "opt", file)
    assert code == 1 and "laod" in err and "^" in err and f"where: {file}:4:" in err


def test_exec_compares_interpreted_and_compiled(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, given = tmp_path / "k.ir", tmp_path / "x.npy"
    file.write_text(COPY)
    x = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)
    np.save(given, x)
    arguments = (
        "exec",
        file,
        "--set",
        "M=3",
        "--set",
        "N=20",
        "--input",
        f"x={given}",
        "--target",
        "baseline",
        "-o",
        tmp_path / "out",
    )
    code, out, err = here(capsys, *arguments)
    assert code == 0 and "baseline agrees" in out, err
    assert np.array_equal(np.load(tmp_path / "out" / "y.npy"), x)
    assert isinstance(json.loads(here(capsys, *arguments, "--json")[1]), dict)
    code, _, err = here(capsys, "exec", file, "--input", f"x={tmp_path / 'none.npy'}")
    assert code == 1 and "none.npy" in err


def block(message: str, where: object, hint: str = "") -> str:
    return f"error: {message}\n  where: {where}\n" + (f"  help: {hint}\n" if hint else "")


EXPECTED = "pass IR as `tilewright dump` prints it"


@pytest.mark.parametrize("command", ["opt", "exec"])
def test_files_that_hold_no_program(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    binary, empty = tmp_path / "binary", tmp_path / "empty"
    binary.write_bytes(b"abc\xd0\xff")
    empty.write_text("")
    assert here(capsys, command, binary) == (
        1,
        "",
        block("it is not UTF-8 text: byte 0xd0 at 3", binary, EXPECTED),
    )
    assert here(capsys, command, empty) == (
        1,
        "",
        block("it contains no graph, plan or kernel", empty, EXPECTED),
    )
    for device in ("/dev/null", "/dev/zero"):
        assert here(capsys, command, device) == (
            1,
            "",
            block("it is a device, not a regular file", device, EXPECTED),
        )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    file = tmp_path / "k.ir"
    file.write_text(COPY)
    return file


KNOWN = ", ".join((*LEVEL_FEATURES, "triton"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "Q=5"), block("no symbol 'Q'", "--set", "symbols: M, N")),
        (("--target", "cuda"), block("unknown target 'cuda'; expected native, all, or some of "
                                     f"{KNOWN}", "--target",
                                       "`none`, by itself, interprets only")),
        (("--target", "none", "--target", "avx2"), block(
            f"unknown target 'none'; expected native, all, or some of {KNOWN}", "--target",
            "`none`, by itself, interprets only")),
        (("--target", ""), block(f"unknown target ''; expected native, all, or some of {KNOWN}", "--target",
                                 "`none`, by itself, interprets only")),
    ],
)  # fmt: skip
def test_what_exec_cannot_do_is_named(
    capsys: pytest.CaptureFixture[str], copy: Path, options: tuple[str, ...], message: str
) -> None:
    assert here(capsys, "exec", copy, *options) == (1, "", message)


@pytest.mark.parametrize(
    "option", [("--set", "M=²"), ("--set", "M=-1"), ("--set", f"M={10**30}"), ("--seed", "-1")]
)
def test_values_that_are_none(
    capsys: pytest.CaptureFixture[str], copy: Path, option: tuple[str, str]
) -> None:
    code, _, err = here(capsys, "exec", copy, *option)
    assert code == 2 and option[0] in err


def test_sizes_beyond_the_memory(
    capsys: pytest.CaptureFixture[str], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tilewright.tools.ir_inputs.available_bytes", lambda: 48 * 1000)
    check_room({"x": (10, 100)})
    with pytest.raises(RefusedError) as e:
        check_room({"x": (10, 100), "y": (1,)})
    hint = "choose smaller sizes: at most 1,000 values fit here"
    assert (e.value.message, e.value.hint) == (
        "arrays of 1,001 values (%x: [10, 100]) do not fit into memory",
        hint,
    )
    message = "arrays of 128,000,000,000,000 values (%x: [1000000000000, 64]) do not fit into memory"
    assert here(capsys, "exec", copy, "--set", "M=1000000000000") == (1, "", block(message, "exec", hint))


def test_a_level_that_this_machine_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code would end the process."""
    have = {f for features in LEVEL_FEATURES.values() for f in features} - {"fma"}
    monkeypatch.setattr("tilewright.runtime.cpu.cpu_features", lambda: frozenset(have))
    with pytest.raises(
        RefusedError, match=r"this CPU lacks fma for avx2\n  help: this machine runs baseline$"
    ):
        execute(COPY, symbols={"M": 2, "N": 16}, targets=["avx2"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is not an .npy file"),
        (b"\x7fELF", "it is not an .npy file"),
        (b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4'", "it is a damaged .npy file: "),
    ],
)
def test_inputs_that_are_no_arrays(
    capsys: pytest.CaptureFixture[str], copy: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "x.npy"
    file.write_bytes(content)
    code, _, err = here(capsys, "exec", copy, "--input", f"x={file}")
    assert code == 1 and err.startswith(f"error: {message}")
    assert err.endswith(f"\n  where: {file}\n  help: pass an .npy file of numbers\n")


def test_inputs_of_other_kinds(capsys: pytest.CaptureFixture[str], copy: Path, tmp_path: Path) -> None:
    hint = "pass an .npy file of numbers"
    assert here(capsys, "exec", copy, "--input", f"x={tmp_path}")[2] == block(
        "it is a folder, not a regular file", tmp_path, hint
    )
    np.save(tmp_path / "text.npy", np.array(["a"]))
    where = tmp_path / "text.npy"
    assert here(capsys, "exec", copy, "--input", f"x={where}")[2] == block(
        "it contains <U1, not numbers", where, hint
    )
    np.save(tmp_path / "object.npy", np.array([{}]))
    assert (
        "it is a damaged .npy file: Object arrays"
        in here(capsys, "exec", copy, "--input", f"x={tmp_path / 'object.npy'}")[2]
    )
    if os.geteuid():
        where.chmod(0)
        assert here(capsys, "exec", copy, "--input", f"x={where}")[2] == block(
            "cannot be read: Permission denied", where, hint
        )


def test_a_pass_to_print_after_must_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    graph = tmp_path / "g.ir"
    graph.write_text("graph @f(%x: f32[4]) -> (y: f32[4]) {\n  %0 = silu %x : f32[4]\n  return %0\n}\n")
    code, _, err = here(capsys, "opt", graph, "--passes", "canonicalize", "--print-ir-after", "fuse")
    assert (code, err) == (
        1,
        block("no pass 'fuse' in the pipeline", "--print-ir-after", "the pipeline runs canonicalize"),
    )


def test_sizes_of_zero(capsys: pytest.CaptureFixture[str], copy: Path) -> None:
    code, out, err = here(capsys, "exec", copy, "--set", "M=0", "--target", "baseline")
    assert (code, err) == (
        0,
        "",
    ) and out == "kernel @copy (M=0, N=64)\n  y: float32[0, 64]  baseline agrees (0)\nall agree\n"
