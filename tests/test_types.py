"""Strict mypy holds over every folder, and would notice an error: one planted in a copy makes it fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDERS = ("compiler", "ir", "passes", "backends", "runtime")
PLANTED = "\n\ndef planted() -> int:\n    return 'seven'\n"


def mypy(repo: Path, root: Path, tmp: Path) -> subprocess.CompletedProcess[str]:
    places = ["--root", str(root), "--out", str(tmp / "tree"), "--cache", str(repo / "build" / "mypy-tests")]
    return subprocess.run(
        [sys.executable, str(repo / "tests" / "typetree.py"), *places], capture_output=True, text=True
    )


def test_types_hold(repo: Path, tmp_path: Path) -> None:
    done = mypy(repo, repo, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_planted_error_fails(repo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in FOLDERS:
        shutil.copytree(repo / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repo / "pyproject.toml", copy)
    with (copy / "ir" / "affine.py").open("a") as f:
        f.write(PLANTED)
    done = mypy(repo, copy, tmp_path)
    assert done.returncode == 1
    assert 'error: Incompatible return value type (got "str", expected "int")  [return-value]' in done.stdout
    assert "ir/affine.py:" in done.stdout
