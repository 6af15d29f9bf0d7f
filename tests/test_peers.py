"""Benchmarks run other systems in a separate environment, which cannot change Tilewright's own packages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = """
import json, sys
sys.path.insert(0, {folder!r})
import workers
try:
    found = workers.interpreter({kind!r})
except workers.WorkerError as e:
    found = str(e)
print(json.dumps(found))
"""


def interpreter(repo: Path, kind: str, peers: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TW_PEERS", str(peers))
    code = PROBE.format(folder=str(repo / "benchmarks"), kind=kind)
    return str(
        json.loads(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        )
    )


def test_peers_have_another_python(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "bin" / "python"
    assert interpreter(repo, "openvino", tmp_path, monkeypatch) == (
        f"openvino runs in an environment of its own, and {tmp_path} is not there; run: make peers"
    )
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    assert interpreter(repo, "llama.cpp", tmp_path, monkeypatch) == str(python)
    for kind in ("tilewright", "torch", "torch-compile"):
        assert interpreter(repo, kind, tmp_path, monkeypatch) == sys.executable


def test_no_page_or_script_installs_them_beside_tilewright(repo: Path) -> None:
    texts = [*(repo / "benchmarks").glob("*.py"), *(repo / "docs").glob("*.md"), repo / "README.md"]
    advice = [
        f"{p.name}: {m}"
        for p in texts
        for m in re.findall(r"pip install[^\n]*(?:openvino|gguf|optimum)", p.read_text("utf-8"))
    ]
    assert not advice


def test_the_pin_on_torch_is_the_one_of_the_tests(repo: Path) -> None:
    pins = [
        re.findall(r"^torch==.*$", (repo / f).read_text("utf-8"), re.M)
        for f in ("constraints.txt", "benchmarks/peers.txt")
    ]
    assert pins[0] == pins[1] and len(pins[0]) == 1
