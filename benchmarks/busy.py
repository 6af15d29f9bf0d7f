"""Speed on a machine that is not idle: decoding beside other busy processes, by number of threads.

In: nothing but the machine (or artifacts to compare). Out: a table in markdown (or `--json`): tokens per
second, and the ratio to one thread under the same load. Runs interleave; each figure is the median of its
runs, and a run counts all its time, stalls too. Usage: `python benchmarks/busy.py [--artifact A.tw --artifact
B.tw]`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tilewright.runtime.busy import current_load
from tilewright.runtime.cpu import cpu_name
from tilewright.runtime.model import Model, load
from tilewright.runtime.session import Session

#: what runs beside: a name, and the nice level of each busy process
LOADS = {"idle": (), "one busy, nice 10": (10,), "one busy, nice 0": (0,), "two busy, nice 0": (0, 0)}
#: decode steps of a sequence before it starts again
LENGTH = 64
_BURN = (
    "import os, sys\nos.nice(int(sys.argv[1]))\nwhile os.getppid() == int(sys.argv[2]): sum(range(100000))"
)


@dataclass
class Runner:
    """One session that decodes: tokens per second by load."""

    artifact: str
    threads: str
    session: Session
    rates: dict[str, list[float]] = field(default_factory=dict)

    def run(self, load: str, seconds: float) -> None:
        """A short warm-up, then decode for so long."""
        self._decode(seconds / 5)
        self.rates.setdefault(load, []).append(self._decode(seconds))

    def _decode(self, seconds: float) -> float:
        began, tokens = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            seq = self.session.add()
            for n in range(LENGTH):
                self.session.step([(seq, np.array([n]), "last")])
                tokens += 1
                if time.perf_counter() - began > seconds:
                    break
            self.session.drop(seq)
        return tokens / (time.perf_counter() - began)

    def rate(self, load: str) -> float:
        return statistics.median(self.rates[load])


@contextlib.contextmanager
def busy(levels: Sequence[int]) -> Iterator[None]:
    """Processes that compute without end at these nice levels; they end with the block, or with this
    process."""
    procs = [subprocess.Popen([sys.executable, "-c", _BURN, str(n), str(os.getpid())]) for n in levels]
    time.sleep(0.1 if procs else 0)
    try:
        yield
    finally:
        for p in procs:
            p.kill()
            p.wait()


def measure(runners: Sequence[Runner], loads: Sequence[str], repeats: int, seconds: float) -> None:
    """All runners in turn under each load; the order turns too, so that none always follows the same
    other."""
    for n in range(repeats):
        for name in loads:
            with busy(LOADS[name]):
                for k in range(len(runners)):
                    runners[(n + k) % len(runners)].run(name, seconds)


def table(runners: Sequence[Runner], loads: Sequence[str]) -> Iterator[str]:
    several = len({r.artifact for r in runners}) > 1
    heads = [f"{Path(r.artifact).name + ', ' if several else ''}threads {r.threads}" for r in runners]
    yield f"| tokens/s (x one thread) | {' | '.join(heads)} |"
    yield "|---" * (len(heads) + 1) + "|"
    for name in loads:
        yield f"| {name} | {' | '.join(_cell(r, runners, name) for r in runners)} |"


def _cell(r: Runner, runners: Sequence[Runner], load: str) -> str:
    one = next((x for x in runners if x.artifact == r.artifact and x.threads == "1"), None)
    ratio = f" ({r.rate(load) / one.rate(load):.2f} x)" if one and one is not r else ""
    return f"{r.rate(load):,.0f}{ratio}"


def compiled(folder: str, recipe: str) -> str:
    import tilewright as tw

    root = Path(__file__).resolve().parent.parent
    path = f"{folder}/tiny-{recipe}.tw"
    tw.compile(root / "examples" / "models" / "tiny-llama", recipe=recipe).save(path)
    return path


def opened(artifact: str, threads: Sequence[str]) -> Iterator[Runner]:
    model: Model = load(artifact)
    for t in threads:
        yield Runner(artifact, t, Session(model.library, 1, None if t == "auto" else int(t)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Decoding beside other busy processes, by number of threads."
    )
    parser.add_argument(
        "--artifact", action="append", default=[], help="compare these; default: tiny-llama, compiled here"
    )
    parser.add_argument("--recipe", default="bf16", help="of tiny-llama")
    parser.add_argument("--threads", default="1,2,auto", help="comma-separated")
    parser.add_argument("--loads", default=";".join(LOADS), help="semicolons between them")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.4, help="of one run")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    loads = args.loads.split(";")
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        artifacts = args.artifact or [compiled(folder, args.recipe)]
        runners = [r for a in artifacts for r in opened(a, args.threads.split(","))]
        idle = current_load(0.5)
        measure(runners, loads, args.repeats, args.seconds)
        if args.json:
            print(
                json.dumps(
                    [{"artifact": r.artifact, "threads": r.threads, "rates": r.rates} for r in runners],
                    indent=1,
                )
            )
            return
        others = f"; before it began, {idle.sentence()}" if idle else ""
        print(f"{cpu_name()}; {args.repeats} runs of {args.seconds} s each{others}\n")
        print("\n".join(table(runners, loads)))


if __name__ == "__main__":
    main()
