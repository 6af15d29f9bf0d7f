"""The wheel holds every file of the packages, and its base install runs where PyTorch is not.

The wheel is built from a copy, so that no leftover of an earlier build can slip into it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FOLDERS = {"compiler": "tilewright", **{name: f"tilewright/{name}" for name in ("ir", "passes", "backends", "runtime")}}
ABSENT = ("torch", "transformers", "lark", "sympy", "networkx")


@pytest.fixture(scope="module")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(repo / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo / name, copy)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(copy))
    return next(out.glob("tilewright-*.whl"))


def run(*command: str, cwd: Path | None = None) -> str:
    """Standard output of a command; its standard error is shown when it fails."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_every_file(repo: Path, wheel: Path) -> None:
    expected = {
        f"{package}/{path.relative_to(repo / folder)}"
        for folder, package in FOLDERS.items()
        for path in (repo / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert held == expected, "list the folder in pyproject.toml, under packages and package-dir"


def test_the_base_install_runs_without_pytorch(repo: Path, wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", str(tmp_path / "venv"))
    python = str(tmp_path / "venv" / "bin" / "python")
    run(python, "-m", "pip", "install", "-q", "-c", str(repo / "constraints.txt"), str(wheel))
    for name in ABSENT:
        assert run(python, "-c", f"import importlib.util as u; print(u.find_spec({name!r}))").strip() == "None"
    where = run(python, "-c", "import tilewright.runtime as r; print(r.__file__)", cwd=tmp_path)
    assert str(tmp_path / "venv") in where
    told = run(str(tmp_path / "venv" / "bin" / "tilewright"), "--help", cwd=tmp_path)
    assert "compile" in told and "run" in told
    run(python, "-c", "import tilewright; tilewright.load", cwd=tmp_path)
