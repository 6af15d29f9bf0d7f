"""Every option and argument of every command with invalid values: each is reported as a user error.

The commands are made from click's own tables, so that a new option is tried without being listed here.
"""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from tests.compiler.calls import COPY, here
from tilewright.cli.app import COMMANDS, cli

#: a call of each command that works or ends at once; `{…}` are files
CALLS = {
    "compile": "{folder} -o {new}/m.tw", "run": "{stub} --prompt x -n 1 --raw", "inspect": "{stub}",
    "dump": "{stub} --list",
    "opt": "{kernel}", "exec": "{kernel} --target none --set M=2 --set N=16",
    "eval": "{stub} --text {text} --window 32 --windows 1", "tune": "{folder} -o {new}/t.json",
    "bench": "{stub} --prefill 8 --decode 1 --repeats 1 --threads 1", "doctor": "",
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path, stub_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Things that exist, by name; the working folder is one where anything may be written."""
    made = {n: tmp_path / n for n in ("kernel", "text", "binary", "empty", "folder", "new")}
    made["kernel"].write_text(COPY)
    made["text"].write_text("some words to read " * 20)
    made["binary"].write_bytes(bytes(range(256)) * 20)
    made["empty"].write_bytes(b"")
    made["folder"].mkdir()
    made["new"].mkdir()
    monkeypatch.chdir(made["new"])
    return {"stub": str(stub_path), **{n: str(p) for n, p in made.items()}}


def senseless(files: dict[str, str]) -> list[str]:
    wrong = [
        "",
        " ",
        "x",
        "-1",
        "0",
        "1.5",
        "1e30",
        "nan",
        "²",
        "9" * 30,
        "x=y",
        "x=9",
        "(",
        "a\\b",
        "é",
        "../..",
        "/proc/x",
    ]
    return [
        *wrong,
        "/dev/null",
        *(files[n] for n in ("binary", "empty", "folder", "text")),
        files["text"] + ".none",
        f"x={files['binary']}",
    ]


def parameters(command: str) -> list[click.Parameter]:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    return [
        p for p in found.params if not (isinstance(p, click.Option) and (p.is_flag or "--help" in p.opts))
    ]


def test_every_command_has_a_call() -> None:
    assert set(CALLS) == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_senseless_values_are_told(
    capsys: pytest.CaptureFixture[str], files: dict[str, str], command: str
) -> None:
    words = CALLS[command].format(**files).split()
    bad = []
    for p in parameters(command):
        for value in senseless(files):
            asked = [*words, p.opts[-1], value] if isinstance(p, click.Option) else [value, *words[1:]]
            code, _, err = here(capsys, command, *asked)
            if (
                code not in (0, 1, 2)
                or "internal:" in err
                or "Traceback" in err
                or (code and not err.strip())
            ):
                bad.append(f"{p.opts[-1]} {value!r}: {code} {err[:300]}")
    assert not bad, "\n".join(bad)
