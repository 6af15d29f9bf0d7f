"""The embedded trained model through the command line: compiled, compared with PyTorch, killed half-way."""

from __future__ import annotations

import gc
import hashlib
import json
import re
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


def test_it_recalls_what_pytorch_recalls(artifact: Path, tiny_llama: Path) -> None:
    asked = ("--recall", "--distance", 64, "--distance", 96, "--others", 1, "--count", 3)
    report = json.loads(call("eval", artifact, *asked, "--against", tiny_llama, "--json"))
    assert (report["cache"], report["ask"], report["seed"]) == ("full", "with", 0)
    for row, distance in zip(report["distances"], (64, 96), strict=True):
        assert (row["distance"], row["others"], row["count"]) == (distance, 1, 3)
        assert row["right"] == row["against"] and row["difference"] == row["standard_error"] == 0
    told = call("eval", artifact, *asked, "--against", artifact).splitlines()
    assert re.fullmatch(r"distance +other facts +exact answers +share +against +difference", told[0])
    assert re.fullmatch(r"64 +1 +(\d) of 3 +[\d.]+% +\1 of 3 +\+0.0% ± 0.0%", told[1])


def test_recall_and_perplexity_say_what_they_lack(artifact: Path) -> None:
    done = subprocess.run([*TILEWRIGHT, "eval", str(artifact)], capture_output=True, text=True)
    assert done.returncode == 2 and "Missing option '--text': perplexity needs a text." in done.stderr
    far = ("--recall", "--distance", "2040", "--count", "1")
    done = subprocess.run([*TILEWRIGHT, "eval", str(artifact), *far], capture_output=True, text=True)
    assert done.returncode == 1 and "does not fit into a context of 2048" in done.stderr


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
