"""The linter and the formatter are clean, and every module docstring opens with one short sentence."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUFF = Path(sys.executable).parent / "ruff"
WIDTH = 110
FOLDERS = ("ir", "passes", "backends", "compiler", "runtime", "tests", "benchmarks", "docs", "examples")


@pytest.mark.parametrize("command", [["check", "--quiet"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff_is_clean(repo: Path, command: list[str]) -> None:
    done = subprocess.run([str(RUFF), *command, "."], cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def opening_problem(text: str) -> str:
    """Why a module's docstring does not open with one complete sentence on a line of its own; empty if it
    does.
    """
    doc = ast.get_docstring(ast.parse(text), clean=False)
    if doc is None:
        return "no docstring" if text.strip() else ""
    first, *rest = doc.split("\n")
    if not re.search(r"[.?!:`]$", first):
        return "the first line is not a sentence"
    if rest and rest[0].strip():
        return "no blank line after the first"
    return "" if len(first) <= WIDTH - len('"""') else f"longer than {WIDTH} columns"


def test_module_docstrings_open_with_a_sentence(repo: Path) -> None:
    paths = [p for folder in FOLDERS for p in sorted((repo / folder).rglob("*.py"))]
    assert len(paths) > 300
    wrong = [f"{p}: {why}" for p in paths if (why := opening_problem(p.read_text("utf-8")))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('"""One sentence."""\n', ""),
        ('"""One sentence.\n\nAnd more.\n"""\n', ""),
        ('"""A sentence that\ngoes on."""\n', "the first line is not a sentence"),
        ('"""One sentence.\nAnd more."""\n', "no blank line after the first"),
        (f'"""{"x" * 110}."""\n', "longer than 110 columns"),
        ("x = 1\n", "no docstring"),
    ],
)
def test_bad_openings_are_found(text: str, why: str) -> None:
    assert opening_problem(text) == why
