"""The lowest supported versions work: each set is installed into a folder that is first on the path.

Needs a package index; without one the tests are skipped, and say what pip said.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.packages import PACKAGES

#: what brings PyTorch along when it is resolved, and what PyTorch itself needs
ALONE = ("accelerate", "networkx", "lark", "sympy")


def pinned(*names: str) -> list[str]:
    return [f"{n}=={PACKAGES[n].at_least}" for n in names]


def install(folder: Path, wanted: Sequence[str], *options: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--target",
        str(folder),
    ]
    done = subprocess.run([*command, *options, *wanted], capture_output=True, text=True)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        pytest.skip(f"cannot install {' '.join(wanted)}: {(reasons or ['pip failed'])[-1]}")


def run(folder: Path, code: str, *arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


BASE = """
import sys
from importlib.metadata import version
for pin in sys.argv[2:]:
    name, _, wanted = pin.partition("==")
    have = version(name)
    assert have == wanted or have.startswith(wanted + "."), (name, have)
from tilewright.cli.app import run
prompt = ["--prompt", "Hello", "-n", "4"]
for command in (["run", sys.argv[1], *prompt], ["inspect", sys.argv[1]], ["compile", "--help"]):
    assert run(command) == 0
assert run(["run", sys.argv[1], "--promt", "x"]) == 2 and run(["doctor"]) == 0
"""


@pytest.mark.slow
def test_the_runtime_runs_on_the_lowest_versions(stub_path: Path, tmp_path: Path) -> None:
    wanted = pinned(*(n for n, p in PACKAGES.items() if not p.extra))
    install(tmp_path, wanted)
    printed = run(tmp_path, BASE, str(stub_path), *wanted)
    assert "made by" in printed and "Usage: " in printed


COMPILE = """
import sys
import numpy as np, transformers, tilewright as tw
assert transformers.__version__.startswith(sys.argv[3]), transformers.__version__
compiled = tw.compile(sys.argv[1], recipe="f32")
np.save(sys.argv[2], compiled.load()([1, 2, 3, 4]))
"""


@pytest.mark.slow
def test_a_model_compiles_on_the_lowest_versions(tiny_llama: Path, tmp_path: Path) -> None:
    """Its logits are those that it has with the versions that are installed."""
    lowest = PACKAGES["transformers"].at_least
    install(tmp_path, [*pinned("transformers", "safetensors"), f"numpy=={np.__version__}"])
    for found in tmp_path.glob("numpy*"):
        shutil.rmtree(found)
    install(tmp_path, pinned(*ALONE), "--no-deps")
    out = tmp_path / "logits.npy"
    run(tmp_path, COMPILE, str(tiny_llama), str(out), lowest)
    want = tw.compile(tiny_llama, recipe="f32").load()([1, 2, 3, 4])
    assert np.abs(np.load(out) - want).max() <= 1e-6 * np.abs(want).max()
