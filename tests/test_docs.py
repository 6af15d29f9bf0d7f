"""The documentation is true: reference pages are up to date, commands and options exist, links resolve."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tilewright.cli.app import COMMANDS, cli
from tilewright.recipe import PRESETS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
IDS = [p.name for p in PAGES]


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, text) of fenced and of indented code."""
    rest = text
    for m in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.S | re.M):
        yield m[1], m[2]
        rest = rest.replace(m[0], "")
    yield "", "\n".join(line[4:] for line in rest.splitlines() if line.startswith("    "))


def commands(text: str) -> Iterator[list[str]]:
    """Calls of the program in code that is not its output, as words; comments and shell operators end a
    call."""
    for language, code in blocks(text):
        if language in ("", "sh", "bash", "console"):
            for line in code.replace("\\\n", " ").splitlines():
                line = line.removeprefix("$ ").strip()
                if line.startswith("tilewright "):
                    yield shlex.split(re.split(r"\s[|>&]\s", line)[0], comments=True)


def problem(words: list[str]) -> str:
    """Why a call is wrong; empty if every option is known and every required one given."""
    if words[1].startswith("-"):
        return "" if words[1] in ("--help", "-h", "--version") else f"no option {words[1]}"
    if words[1] not in COMMANDS:
        return f"no command {words[1]}"
    command = cli.get_command(click.Context(cli), words[1])
    assert command is not None
    known = {o for p in command.params for o in p.opts} | {"--help", "--debug"}
    flags = [w.partition("=")[0] for w in words[2:] if re.match(r"--?[a-z]", w)]
    unknown = [f for f in flags if f not in known]
    lacking = [
        p.opts
        for p in command.params
        if isinstance(p, click.Option) and p.required and not set(p.opts) & set(flags)
    ]
    return f"no option {unknown[0]}" if unknown else f"lacks {lacking[0]}" if lacking else ""


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_exist(page: Path) -> None:
    wrong = [f"{' '.join(words)}: {why}" for words in commands(page.read_text()) if (why := problem(words))]
    assert not wrong


@pytest.mark.parametrize(
    "words", ["tilewright compil x", "tilewright compile x", "tilewright run m.tw --promt x"]
)
def test_wrong_commands_are_noticed(words: str) -> None:
    assert problem(words.split())


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_resolve(page: Path) -> None:
    text = page.read_text()
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if not t.startswith(("http", "#"))]
    named = re.findall(r"`((?:docs|examples|benchmarks|tests|runtime)/[\w./-]+\w)`", text)
    lost = [t for t in targets if not (page.parent / t.partition("#")[0]).exists()]
    assert not lost + [n for n in named if not (ROOT / n).exists()]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_blocks_parse(page: Path) -> None:
    for language, code in blocks(page.read_text()):
        if language == "python":
            ast.parse(code)


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    assert [
        p.name
        for p in PAGES
        if p.parent.name == "docs" and p.name != "README.md" and f"({p.name})" not in index
    ] == []


def test_every_recipe_is_documented() -> None:
    text = (ROOT / "docs" / "recipes.md").read_text()
    assert [name for name in PRESETS if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("script", ["make_reference.py", "make_operators.py"])
def test_generated_pages_are_up_to_date(script: str) -> None:
    command = [sys.executable, str(ROOT / "docs" / script), "--check"]  # its own process: no test's ops in it
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
