"""Two thousand seeded mutations of IR text: a clean error, or a program that prints and parses back equal.

Never another exception, a hang or a wild allocation: the mutants are read in a process with limits on time
and memory.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import tilewright as tw
from tests.compiler import families
from tests.ir import mutate_text
from tilewright.ir.text.plan_parser import split_kernels

QUICK, BATCH = 80, 500
STAGES = ("captured", "recognise", "select-rows", "fuse", "lower", "plan-memory")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of stages of a tiny compiled model: graphs, programs, and kernels alone."""
    compiled = tw.compile(families.write_model(tmp_path_factory.mktemp("llama"), "llama"), recipe="w8a8")
    stages = {s.name: s.text for s in compiled.stages}
    folder = tmp_path_factory.mktemp("texts")
    for name in STAGES:
        (folder / f"{name}.ir").write_text(stages[name])
    (folder / "kernels.ir").write_text(split_kernels(stages["plan-memory"])[1].strip() + "\n")
    return folder


def run_batch(texts: Path, first: int, count: int) -> Counter[str]:
    """Outcomes and how often they came; a failure names its seed."""
    command = [sys.executable, str(Path(mutate_text.__file__)), str(texts), str(first), str(count)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120 + count * 0.5)
    except subprocess.TimeoutExpired as e:
        pytest.fail(f"hangs: {bytes(e.stdout or b'')[-200:]!r}")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (
        f"exit {done.returncode} after: {lines[-1] if lines else ''}\n{done.stderr[-3000:]}"
    )
    assert len(lines) == count
    return Counter(line.rpartition("|")[2].strip() for line in lines)


def check(found: Counter[str]) -> None:
    """All three outcomes occur, and damage is mostly noticed."""
    assert set(found) <= {
        "ok",
        "error parse error",
        "error verify error",
        "error unsupported",
        "error refused",
    }
    assert found["error parse error"] > 0 and found["error verify error"] > 0 and found["ok"] > 0
    assert found["ok"] < found.total() / 3, found


def test_some_mutations(texts: Path) -> None:
    check(run_batch(texts, 0, QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(4))
def test_mutations(texts: Path, batch: int) -> None:
    check(run_batch(texts, batch * BATCH, BATCH))
