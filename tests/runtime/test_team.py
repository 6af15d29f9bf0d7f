"""The thread team: a descheduled thread blocks nothing, the team adapts its size, bits stay the same."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.stub import build, expected_logits
from tilewright.runtime import cpu
from tilewright.runtime.artifact import open_artifact
from tilewright.runtime.model import Model

SEIZE, INTERRUPT, CONTINUE, WALL = 0x4206, 0x4207, 7, 0x40000000
#: prints the thread that it started, then computes the same again and again, for as long as it is told
CHILD = """
import os, sys, time
from pathlib import Path
from tilewright.runtime.artifact import open_artifact
from tilewright.runtime.model import Model
path = Path(sys.argv[1])
m = Model(open_artifact(path), path / "lib/baseline.so", threads=2)
ids = list(range(7, 55))
before = set(os.listdir("/proc/self/task"))
with m.session() as s:
    def run():
        seq = s.add()
        [y] = s.step([(seq, ids, "all")])
        s.drop(seq)
        return y.tobytes()
    first, runs = run(), 0
    print(*set(os.listdir("/proc/self/task")) - before, flush=True)
    for line in sys.stdin:
        until = time.monotonic() + float(line)
        while True:
            assert run() == first
            runs += 1
            if time.monotonic() > until:
                break
        print(runs, flush=True)
"""


class Traced:
    """A process that runs the model with two threads; its second thread can be stopped alone."""

    def __init__(self, stub_path: Path) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(stub_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.member = int(self.read())
        self.libc = ctypes.CDLL(None, use_errno=True)
        if self.ptrace(SEIZE):
            self.child.kill()
            pytest.skip(
                "this system does not let a process stop its child's thread: "
                f"{os.strerror(ctypes.get_errno())}"
            )

    def ptrace(self, request: int) -> int:
        return int(self.libc.ptrace(request, self.member, None, None))

    def stop(self) -> None:
        assert self.ptrace(INTERRUPT) == 0
        os.waitpid(self.member, WALL)

    def run(self, seconds: float) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(f"{seconds}\n")
        self.child.stdin.flush()

    def read(self) -> str:
        """The next line. Whoever waits too long has found what this file is about."""
        assert self.child.stdout is not None
        timer = threading.Timer(30, self.child.kill)
        timer.start()
        line = self.child.stdout.readline()
        timer.cancel()
        assert line, "the process made no progress"
        return line

    def end(self) -> None:
        self.child.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.member, WALL)  # whoever traces a thread buries it
        self.child.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="stops a thread with Linux's ptrace")
def test_a_thread_that_never_runs_holds_nothing_up(stub_path: Path) -> None:
    process = Traced(stub_path)
    try:
        time.sleep(0.05)  # it sleeps by then
        process.stop()
        process.run(0.2)
        assert int(process.read()) > 5
        process.ptrace(CONTINUE)
        process.run(0)
        assert int(process.read()) > 5
    finally:
        process.end()


@pytest.mark.skipif(sys.platform != "linux", reason="stops a thread with Linux's ptrace")
def test_a_thread_may_be_stopped_at_any_moment(stub_path: Path) -> None:
    process, rng = Traced(stub_path), random.Random(0)
    try:
        process.run(1.0)
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            process.stop()
            time.sleep(rng.choice([0, 0.0005, 0.003, 0.01]))
            process.ptrace(CONTINUE)
            time.sleep(rng.choice([0, 0.0002, 0.002]))
        assert int(process.read()) > 5
    finally:
        process.end()


@pytest.mark.parametrize("threads", [2, 3, 11])
def test_sessions_side_by_side_with_more_threads_than_processors(stub_path: Path, threads: int) -> None:
    model = Model(open_artifact(stub_path), stub_path / "lib/baseline.so")
    ids = [int(i) for i in np.random.default_rng(threads).integers(0, 256, 60)]
    wrong: list[int] = []

    def work(n: int) -> None:
        with model.session(threads=threads) as s:
            for _ in range(30):
                seq = s.add()
                [got] = s.step([(seq, ids, "all")])
                s.drop(seq)
                if got is None or not np.array_equal(got, expected_logits(ids)):
                    wrong.append(n)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


def test_the_number_of_threads_changes_between_steps(stub_path: Path) -> None:
    model = Model(open_artifact(stub_path), stub_path / "lib/baseline.so")
    ids = list(range(16))
    with model.session(threads=1) as s:
        for threads in (1, 4, 2, 7, 1, 3, 7):
            s.native.set_threads(threads)
            seq = s.add()
            [got] = s.step([(seq, ids, "all")])
            s.drop(seq)
            assert (
                got is not None and np.array_equal(got, expected_logits(ids)) and s.native.threads == threads
            )


def test_a_forked_child_has_a_team_of_its_own(stub_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom tilewright.runtime.model import load\n"
        f"m = load({str(stub_path)!r}, threads=2)\ns = m.session()\nq = s.add()\n"
        "before = s.step([(q, range(16), 'all')])[0].tobytes()\n"
        "child = os.fork()\nsignal.alarm(20)\n"
        "s.truncate(q, 0)\nassert s.step([(q, range(16), 'all')])[0].tobytes() == before\n"
        "assert m(range(16)).tobytes() == before\ns.close()\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]) if child else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# ------------------------------------------------------------------ pieces by themselves
PIECES = """
#define TW_NSYMBOLS 0
#define TW_MAX_VALUES 1
#define TW_MAX_BASES 1
#include "tw_team.h"
static tw_team team;
extern "C" int quota(int most, const char *root, const char *groups) { return tw_quota(most, root, groups); }
// After `idle` ns without loss, `lost` ns: the size, and how many ns it rests.
extern "C" int size_after(int threads, int size, int64_t debt, int64_t idle, int64_t lost, int64_t *rest) {
  const int64_t now = tw_now_ns();
  team.threads = threads, team.size = size, team.debt = debt;
  team.then = now - idle, team.until = now - 1, team.lost = lost;
  team.adapt();
  *rest = team.until - now;
  return team.size;
}
"""


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return ctypes.CDLL(str(build(PIECES, tmp_path_factory.mktemp("pieces") / "pieces.so")))


@pytest.mark.parametrize(
    ("threads", "size", "debt", "idle", "lost", "then", "rests"),
    [
        (2, 2, 0.0, 100.0, 0.2, 2, 0),  # once in a while
        (2, 2, 0.0, 100.0, 5.0, 1, 80),  # long
        (2, 2, 3.9, 1.0, 0.2, 1, 65),  # again and again
        (2, 2, 3.9, 100.0, 0.2, 2, 0),  # forgotten meanwhile
        (16, 16, 0.0, 1.0, 5.0, 15, 80),  # one thread fewer, not all
        (16, 3, 0.0, 1.0, 0.0, 4, 2),  # a rest is over: one more
        (2, 1, 0.0, 1.0, 5.0, 1, 80),
    ],
)
def test_the_team_is_smaller_where_time_is_lost_again_and_again(
    pieces: ctypes.CDLL, threads: int, size: int, debt: float, idle: float, lost: float, then: int, rests: int
) -> None:
    ns = [ctypes.c_int64(int(1e6 * x)) for x in (debt, idle, lost)]
    rest = ctypes.c_int64()
    assert pieces.size_after(threads, size, *ns, ctypes.byref(rest)) == then
    assert round(rest.value / 1e6) == rests


@pytest.mark.parametrize(
    ("files", "groups", "quota"),
    [
        ({}, "0::/\n", None),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"a.slice/cpu.max": "300000 100000\n", "a.slice/b/cpu.max": "max 100000\n"}, "0::/a.slice/b\n", 3.0),
        ({"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "50000 100000\n"}, "0::/a/b\n", 0.5),
        ({"a/cpu.max": "200000 100000\n", "a/c/cpu.max": "50000 100000\n"}, "0::/a/b\n", 2.0),
        (
            {"cpu/x/cpu.cfs_quota_us": "250000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            "4:cpu,cpuacct:/x\n0::/\n",
            2.5,
        ),
        (
            {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            "4:cpuacct,cpu:/x\n0::/\n",
            None,
        ),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/\n", 1.0),
    ],
)
def test_the_quota_of_a_group_and_of_those_it_lies_in(
    pieces: ctypes.CDLL,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    groups: str,
    quota: float | None,
) -> None:
    """The native count and Python's read the same files alike."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "self").write_text(groups)

    def moved(path: Path) -> str:
        name = "self" if str(path) == "/proc/self/cgroup" else os.path.relpath(path, "/sys/fs/cgroup")
        return (tmp_path / name).read_text() if (tmp_path / name).is_file() else ""

    monkeypatch.setattr(cpu, "_read", moved)
    assert cpu.cgroup_quota() == quota
    native = pieces.quota(8, str(tmp_path).encode(), str(tmp_path / "self").encode())
    assert native == (8 if quota is None else max(1, -int(-quota // 1)))
