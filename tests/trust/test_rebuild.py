"""Rebuilding from forged IR: names that would become C++ code, sizes that would leave memory."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from forge import forge, program_file

import tilewright as tw
from tilewright.backends.cpp.literals import c_comment, c_function, c_string
from tilewright.backends.cpp.plan import render_step
from tilewright.ir.errors import RefusedError, VerifyError
from tilewright.ir.text.plan_parser import parse_program
from tilewright.runtime.model import load

X = np.linspace(-1, 1, 60, dtype=np.float32).reshape(3, 20)
EVIL = (
    '", 0, 0, 0, 0, 0, 0, 0, false}}; __attribute__((constructor)) static void evil() { '
    '__builtin_trap(); } int y = {{"'
)
#: how text could leave a string or a comment: quotes, every line's end there is, continuations, trigraphs
ODD = (
    EVIL,
    "\r" + EVIL,
    "\\",
    "a\\\nb",
    "??/",
    "\u2028evil",
    "\u0085evil",
    "*/ evil /*",
    "%s%n",
    "\u00e9\U0001f600",
    "\x0b\x0c",
    "\x1b",
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 48), torch.nn.ReLU(), torch.nn.Linear(48, 5)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    compiled = tw.compile(
        model, example_inputs=(torch.randn(3, 20),), dynamic_shapes=({0: batch},), recipe="f32"
    )
    path = tmp_path_factory.mktemp("plain") / "plain.tw"
    compiled.save(path)
    return path


def forged(plain: Path, tmp_path: Path, change: Callable[[str], str]) -> Path:
    folder = Path(shutil.copytree(plain, tmp_path / "forged.tw"))
    text = program_file(folder).read_text()
    assert change(text) != text
    forge(folder, change(text))
    return folder


def quoted(text: str) -> str:
    return json.dumps(text)


def test_an_honest_artifact_is_rebuilt(plain: Path) -> None:
    again, want = load(plain, rebuild=True)(X), load(plain)(X)
    assert isinstance(again, np.ndarray) and np.array_equal(again, want)


def renamed(text: str, odd: str) -> str:
    """The plan, its input, its result, a buffer, a weight and a source note: all of them called by an odd
    name."""
    name = quoted(odd)
    head, plan = text.split("plan @forward(", 1)
    for old, new in (("%relu", f"%{name}"), ("output =", f"{name} ="), ('from ":0 0', f"from {name[:-1]}")):
        assert old in plan
        plan = plan.replace(old, new)
    return f"{head}plan @{name}({plan}".replace("@0.weight", f"@{name}").replace(
        "%input", f"%{quoted('in' + odd)}"
    )


@pytest.mark.parametrize("odd", [*ODD, "".join(ODD)])
def test_names_stay_in_their_strings_and_comments(plain: Path, odd: str) -> None:
    text = program_file(plain).read_text()
    source = render_step(parse_program(renamed(text, odd)), "baseline")
    assert source.isascii() and "\r" not in source and "??" not in source
    assert not any(line.rstrip().endswith("\\") for line in source.splitlines())
    assert len(source.splitlines()) == len(render_step(parse_program(text), "baseline").splitlines())


def test_no_name_becomes_code(plain: Path, tmp_path: Path) -> None:
    odd = "".join(ODD)
    # the description of inputs and results goes by names too, and would be refused first
    bare = re.compile(r"^meta (inputs|outputs) = .*\n", re.M)
    model = load(forged(plain, tmp_path, lambda text: renamed(bare.sub("", text), odd)), rebuild=True)
    assert np.array_equal(np.asarray(model(X)), np.asarray(load(plain)(X)))
    assert model.manifest.graphs[0].name == odd


def test_the_one_escaper() -> None:
    assert c_string('a"b\\c?\n\u00e9') == r'"a\042b\134c\077\012\303\251"'
    assert c_string("\ud800") == r'"\134ud800"'
    assert c_comment("file.py:3\r\nint x; \\") == "file.py:3__int x; _"
    assert c_function("linear_2") == "k_linear_2"
    assert c_function("a.b-c") == "k_a_b_c_ab8bb2e3578f"
    assert c_function("a.b") != c_function("a-b") != c_function("a_b")


SIZES = [
    (
        "{M=batch}",
        "{M=1000000*batch}",
        r"[10] parameter %x spans [1000000*batch, 20] of it, which is [batch, 20]",
    ),
    ("{M=batch}", "{M=30*batch}", r"[10] parameter %x spans [30*batch, 20] of it, which is [batch, 20]"),
    ("{M=batch}", "{M=batch - 9}", "[9] M: batch - 9 takes values from -8 to 55"),
    (" at 0\n", " at 32\n", "[11] %relu starts at 32, expected a multiple of 64"),
    (
        "batch in 1..64",
        "batch in 1..640",
        "[11] %relu has 12288 bytes, its type takes 122880 at the largest step",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), SIZES)
def test_sizes_are_proved(plain: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(VerifyError, match=re.escape(message)):
        load(forged(plain, tmp_path, lambda t: t.replace(old, new, 1)), rebuild=True)


def test_a_call_that_is_left_out(plain: Path, tmp_path: Path) -> None:
    def change(text: str) -> str:
        lines = text.split("\n")
        calls = [n for n, line in enumerate(lines) if line.startswith("  call ")]
        return "\n".join(line for n, line in enumerate(lines) if n != calls[-1])

    with pytest.raises(
        VerifyError,
        match=r"\[8\] result output is %linear_1, which is neither an input nor a buffer that is written",
    ):
        load(forged(plain, tmp_path, change), rebuild=True)


def test_a_place_beyond_the_arena(plain: Path, tmp_path: Path) -> None:
    with pytest.raises((VerifyError, RefusedError), match="beyond the arena"):
        load(forged(plain, tmp_path, lambda t: t.replace(" at 0\n", " at 1048576\n", 1)), rebuild=True)
