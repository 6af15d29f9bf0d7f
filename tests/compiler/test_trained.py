"""The embedded trained model through the command line: compiled, compared with PyTorch, killed half-way."""

from __future__ import annotations

import gc
import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tilewright as tw

pytestmark = pytest.mark.slow
TILEWRIGHT = (sys.executable, "-c", "from tilewright.cli.app import main; main()")


def call(*args: object) -> str:
    return subprocess.run([*TILEWRIGHT, *map(str, args)], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def artifact(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "model.tw"
    report = json.loads(call("compile", tiny_llama, "-o", out, "--recipe", "f32", "--json"))
    assert report["bits_per_weight"] == 32 and report["kernels"] < 20
    return out


def test_it_computes_what_pytorch_computes(artifact: Path, tiny_llama: Path, repo: Path) -> None:
    text = repo / "docs" / "design.md"
    report = json.loads(
        call("eval", artifact, "--text", text, "--windows", 3, "--against", tiny_llama, "--json")
    )
    assert report["kl"] < 1e-9 and report["same_top"] == 1.0 and 1 < report["perplexity"] < 1000


def test_it_continues_a_prompt(artifact: Path) -> None:
    report = json.loads(call("run", artifact, "--prompt", "The configuration file", "-n", 12, "--json"))
    assert len(report["ids"]) == 12 and report["text"].strip()
    again = json.loads(
        call("run", artifact, "--prompt", "The configuration file", "-n", 12, "--json", "--threads", 1)
    )
    assert again["ids"] == report["ids"]


def test_a_killed_compile_leaves_the_old_artifact(artifact: Path, tiny_llama: Path) -> None:
    """The new one would be in other encodings, so that whatever it had replaced would show."""
    before = digests(artifact)
    command = [*TILEWRIGHT, "compile", str(tiny_llama), "-o", str(artifact), "--recipe", "w4a8"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and not list(artifact.parent.glob(".*partial-*")):
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert digests(artifact) == before
    assert json.loads(call("inspect", artifact, "--verify", "--json"))["verified"]


def digests(folder: Path) -> dict[str, str]:
    """Of every file's bytes, by its path in the folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_model_outlives_what_it_was_compiled_with(tiny_llama: Path) -> None:
    """The tokenizer is read late, from the folder that the model was loaded from."""
    model = tw.compile(tiny_llama, recipe="w4a8").load()
    gc.collect()
    assert model.codec.encode("The") != []
