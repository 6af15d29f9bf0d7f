"""The wheel holds every file of the packages, and its base install runs where PyTorch is not.

The wheel is built from a copy, so that no leftover of an earlier build can slip into it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tilewright as tw

FOLDERS = {
    "compiler": "tilewright",
    **{name: f"tilewright/{name}" for name in ("ir", "passes", "backends", "runtime")},
}
ABSENT = ("torch", "transformers", "lark", "sympy", "networkx")


@pytest.fixture(scope="module")
def wheel(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("source")
    for name in FOLDERS:
        shutil.copytree(repo / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo / name, copy)
    out = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(copy),
    )
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


@pytest.fixture(scope="module")
def python(repo: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment that holds the wheel and what it depends on, nothing else."""
    venv = tmp_path_factory.mktemp("base") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    python = str(venv / "bin" / "python")
    options = ("-q", "-c", str(repo / "constraints.txt"))
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, str(wheel))
    return python


def test_the_base_install_runs_without_pytorch(python: str, tmp_path: Path) -> None:
    for name in ABSENT:
        assert (
            run(python, "-c", f"import importlib.util as u; print(u.find_spec({name!r}))").strip() == "None"
        )
    where = run(python, "-c", "import tilewright.runtime as r; print(r.__file__)", cwd=tmp_path)
    assert str(Path(python).parent.parent) in where
    told = run(str(Path(python).parent / "tilewright"), "--help", cwd=tmp_path)
    assert "compile" in told and "run" in told
    run(python, "-c", "import tilewright; tilewright.load", cwd=tmp_path)


@pytest.mark.parametrize(
    "words",
    ["compile MODEL -o x.tw", "opt KERNEL", "exec KERNEL", "tune MODEL -o x", "dump MODEL", "inspect MODEL"],
)
def test_the_base_install_names_what_a_command_lacks(
    repo: Path, tiny_llama: Path, python: str, tmp_path: Path, words: str
) -> None:
    named = words.replace("MODEL", str(tiny_llama)).replace(
        "KERNEL", str(repo / "examples" / "tiles" / "softmax.tile")
    )
    command = [str(Path(python).parent / "tilewright"), *named.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    first, _, rest = done.stderr.partition(" is not installed (for ")
    assert done.returncode == 1 and first.removeprefix("error: ") in (*ABSENT, "accelerate", "safetensors")
    command_line = (
        "pip install 'tilewright[compile]' (in a checkout: pip install -c constraints.txt '.[compile]')"
    )
    assert rest.endswith(f")\n  help: {command_line}\n")


GENERATE = """
import json, sys
import tilewright as tw
model = tw.load(sys.argv[1])
ids = model.generate(sys.argv[2], max_new_tokens=12).ids
streamed = "".join(model.generate(sys.argv[2], max_new_tokens=12, stream=True))
logits = model([1, 2, 3])
top = logits.argmax(-1).tolist()
print(json.dumps({"ids": ids, "text": streamed, "top": top, "modules": sorted(sys.modules)}))
"""
PROMPT = "The configuration file"


@pytest.mark.slow
def test_a_compiled_model_generates_without_pytorch(tiny_llama: Path, python: str, tmp_path: Path) -> None:
    artifact = tmp_path / "model.tw"
    tw.compile(tiny_llama, recipe="w4a8").save(artifact)
    here = tw.load(artifact)
    want = here.generate(PROMPT, max_new_tokens=12)
    got = json.loads(run(python, "-c", GENERATE, str(artifact), PROMPT, cwd=tmp_path))
    assert got["ids"] == list(want.ids) and got["text"] == want.text and want.text.strip()
    assert got["top"] == here([1, 2, 3]).argmax(-1).tolist()
    loaded = {name.partition(".")[0] for name in got["modules"]}
    assert not loaded & set(ABSENT), "the runtime imports what the base install does not hold"
    told = run(
        str(Path(python).parent / "tilewright"),
        "run",
        str(artifact),
        "--prompt",
        PROMPT,
        "-n",
        "12",
        "--json",
    )
    assert json.loads(told)["ids"] == list(want.ids)
