"""The README shows what its commands print, numbers included: its blocks are run and compared.

A line `…` stands for any lines, and a command without output below it is only run. Times and speeds vary and
may be any number; sizes of libraries follow the compiler, so megabytes may differ by a tenth. The figures are
those of one CPU level: on a machine that runs another, the numbers of results are not compared (and the test
says so).
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

from tilewright.runtime.cpu import available_levels

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
#: the level that the README's figures are of
LEVEL = "avx512_bf16"
NUMBER = r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?"
#: numbers that no two runs share
FREE = re.compile(rf"{NUMBER}(?= (?:s|tokens/s)\b)|(?<=agrees \(){NUMBER}")
SIZE = re.compile(rf"({NUMBER})(?= MB\b)")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


def calls(block: str) -> list[tuple[str, list[str]]]:
    """Each command with the lines shown below it."""
    parts = re.split(r"^\$ ", block, flags=re.M)[1:]
    return [(lines[0], lines[1:]) for lines in (p.rstrip("\n").split("\n") for p in parts)]


def run(command: str) -> list[str]:
    """The lines that a command prints."""
    words = shlex.split(command)
    program = [sys.executable, "-m", "tilewright"] if words[0] == "tilewright" else [words[0]]
    done = subprocess.run([*program, *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout.splitlines()


def differs(shown: str, printed: str) -> bool:
    """Whether a line is another than the one shown."""
    a, b = (FREE.sub("N", line.rstrip()) for line in (shown, printed))
    sizes = zip_longest(
        *([float(n.replace(",", "")) for n in SIZE.findall(x)] for x in (a, b)), fillvalue=0.0
    )
    return SIZE.sub("N", a) != SIZE.sub("N", b) or any(abs(x - y) > 0.1 * x for x, y in sizes)


def difference(shown: list[str], printed: list[str]) -> str:
    """The first line that is not as shown; empty if all are."""
    at = 0
    for n, line in enumerate(shown):
        if line.strip() == "…":
            following = shown[n + 1 :]
            if not following:
                return ""
            at = next(
                (i for i in range(at, len(printed)) if not differs(following[0], printed[i])), len(printed)
            )
            continue
        if at >= len(printed) or differs(line, printed[at]):
            return f"shown:   {line}\nprinted: {printed[at] if at < len(printed) else '(nothing more)'}"
        at += 1
    return "" if not shown or at == len(printed) else f"printed, and not shown: {printed[at]}"


def needs_level() -> None:
    if available_levels()[0] != LEVEL:
        pytest.skip(f"the README's figures are of {LEVEL}, this machine's best is {available_levels()[0]}")


@pytest.mark.slow
def test_console_blocks_print_what_they_show() -> None:
    needs_level()
    found = [
        (c, why)
        for block in blocks("console")
        for c, shown in calls(block)
        if (why := difference(shown, run(c)))
    ]
    assert not found, "\n\n".join(f"$ {c}\n{why}" for c, why in found)


def test_differences_are_found() -> None:
    shown = ["x: 5.3 MB, 14 kernels, in 27.2 s", "…", "perplexity  79.903"]
    assert not difference(shown, ["x: 5.6 MB, 14 kernels, in 1 s", "a", "b", "perplexity  79.903"])
    assert "7.3 MB" in difference(shown, ["x: 7.3 MB, 14 kernels, in 27.2 s", "perplexity  79.903"])
    assert "15 kernels" in difference(shown, ["x: 5.3 MB, 15 kernels, in 27.2 s", "perplexity  79.903"])
    assert "79.904" in difference(shown[2:], ["perplexity  79.904"])
    assert "more" in difference(shown[2:], ["perplexity  79.903", "more"])
    assert "(nothing more)" in difference(shown, shown[:1])
    assert not difference([], ["anything"])


PRELUDE = """
import torch
module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()
x = torch.randn(5, 8)
"""
CHECK = """
assert logits.shape == (3, 4096) and str(logits.dtype) == "float32"
assert (y - module(x)).abs().max() <= 1e-6 * max(1, float(module(x).abs().max())), (y - module(x)).abs().max()
"""


@pytest.mark.slow
def test_python_blocks_do_what_they_say() -> None:
    code = PRELUDE + "\n".join(blocks("python")) + CHECK
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_table_of_the_demo_is_what_it_prints() -> None:
    needs_level()
    table = re.search(r"`make demo` ends with this table.*?^```text\n(.*?)^```", README, re.S | re.M)
    assert table is not None
    done = subprocess.run([sys.executable, "examples/demo.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed, shown = (without_speed(text) for text in (done.stdout, table[1]))
    assert printed[-len(shown) :] == shown


def without_speed(text: str) -> list[str]:
    """Lines of the demo's table without the last column, which no two runs share."""
    return [re.sub(r"\s+\S+$", "", line) for line in text.splitlines()]


@pytest.mark.parametrize(
    "asked",
    [
        ["compile", "MODEL", "-o", "m.tw", "--weights", "int9"],
        ["compile", "MODEL", "-o", "m.tw", "--target", "sse9"],
    ],
    ids=["encoding", "level"],
)
def test_answers_of_the_table_of_limits(tiny_llama: Path, asked: list[str]) -> None:
    """Each begins as the table says, up to its `…`."""
    words = [str(tiny_llama) if w == "MODEL" else w for w in asked]
    done = subprocess.run([sys.executable, "-m", "tilewright", *words], capture_output=True, text=True)
    answers = [
        a.rstrip("…").strip()
        for a in re.findall(r"^\|[^|]*\| `([^`]*)`", README.partition("## Limits")[2], re.M)
    ]
    told = next(line for line in done.stderr.splitlines() if line.startswith("error: ")).removeprefix(
        "error: "
    )
    assert any(told.startswith(a) for a in answers), told
