"""Runs a command and records peak anonymous memory of its process, with and without its children.

In: a command. Out: seconds, peaks, output. Anonymous memory is what cannot be given back: files that are
mapped do not count. Samples `/proc` every few milliseconds (Linux).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PERIOD = 0.01


@dataclass(frozen=True)
class Watched:
    """One command that ran. `anon`: peak anonymous bytes of the process alone; `anon_tree`: with its
    children."""

    seconds: float
    anon: int
    anon_tree: int
    output: str


def watch(command: Sequence[str], env: Mapping[str, str] | None = None) -> Watched:
    """Run to the end. Raises RuntimeError with the command's messages if it fails."""
    with tempfile.TemporaryFile("w+") as out:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(env or {})}
        )
        alone = tree = 0
        while process.poll() is None:
            alone = max(alone, _anon(process.pid))
            tree = max(tree, sum(_anon(p) for p in _family(process.pid)))
            time.sleep(PERIOD)
        seconds = time.perf_counter() - began
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{text[-2000:]}")
    return Watched(seconds, alone, tree, text)


def _anon(pid: int) -> int:
    """RssAnon of a process in bytes; 0 if it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def _family(pid: int) -> list[int]:
    """The process and all that it started."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(c) for c in task.read_text().split()]
            except OSError:
                continue
    return found
