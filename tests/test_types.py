"""Strict mypy holds over every folder, and notices an error: it reports the one planted in a copy alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDERS = ("compiler", "ir", "passes", "backends", "runtime")
PLANTED = "\n\ndef planted() -> int:\n    return 'seven'\n"


def test_only_the_planted_error_is_reported(repo: Path, tmp_path: Path) -> None:
    """One run shows both: all other lines of the copy, which are the project's, have no errors."""
    copy = tmp_path / "copy"
    for name in FOLDERS:
        shutil.copytree(repo / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repo / "pyproject.toml", copy)
    with (copy / "ir" / "affine.py").open("a") as f:
        f.write(PLANTED)
    last = (copy / "ir" / "affine.py").read_text().count("\n")
    places = ["--root", copy, "--out", tmp_path / "tree", "--cache", repo / "build" / "mypy-tests"]
    done = subprocess.run(
        [sys.executable, repo / "tests" / "typetree.py", *places], capture_output=True, text=True
    )
    said = 'error: Incompatible return value type (got "str", expected "int")  [return-value]'
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert errors == [f"ir/affine.py:{last}: {said}"], done.stdout + done.stderr
    assert done.returncode == 1, done.stdout + done.stderr
