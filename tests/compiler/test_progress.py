"""Progress where stderr is not a terminal: lines, the first one at once, and not one per weight."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tilewright.cli.common import ProgressLines, progress_bar


def test_a_line_when_the_work_changes(capsys: pytest.CaptureFixture[str]) -> None:
    told = ProgressLines()
    told("capture the model", 0, 1)
    for n in range(1000):
        told(f"layers.{n}.weight", n, 1000)
    told("build kernels for avx2", 3, 17)
    assert (
        capsys.readouterr().err
        == "capture the model …\nlayers.0.weight … 0 of 1000\nbuild kernels for avx2 … 3 of 17\n"
    )


def test_a_line_now_and_then_while_it_stays_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    told = ProgressLines(every=0.0)
    told("read the text", 1, 9)
    told("read the text", 2, 9)
    assert capsys.readouterr().err == "read the text … 1 of 9\nread the text … 2 of 9\n"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(quiet=True) as told:
        told("read the text", 1, 9)
    assert capsys.readouterr().err == ""


def test_compile_speaks_before_it_works(tmp_path: Path, tiny_llama: Path) -> None:
    """The first line comes from a process that has not loaded PyTorch yet."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "TILEWRIGHT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-X", "importtime", "-c", "from tilewright.cli.app import main; main()"]
    process = subprocess.Popen(
        [*command, "compile", str(tiny_llama), "-o", str(tmp_path / "m.tw")],
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith("capture the model"):
            break
    process.terminate()
    process.wait(timeout=60)
    assert seen[-1] == "capture the model …\n"
    assert not any(line.split("|")[-1].strip() == "torch" for line in seen)
