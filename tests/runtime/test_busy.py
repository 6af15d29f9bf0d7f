"""How busy the machine is: from the text of /proc/stat, in words, and beside a process that computes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tilewright.runtime import busy
from tilewright.runtime.busy import Load, LoadWatch, current_load, parse_stat

STAT = """cpu  900 90 90 900 9 0 9 9 0 0
cpu0 100 10 20 500 5 1 2 30 7 0
cpu1 200 0 40 300 0 0 0 0 0 0
cpu11 600 80 30 100 4 0 7 9 0 0
intr 5
"""


def test_processors_of_this_process_are_counted() -> None:
    assert parse_stat(STAT, [0], 100) == (1.33, 0.3)
    assert parse_stat(STAT, [0, 1], 100) == (3.73, 0.3)
    assert parse_stat(STAT, [7], 100) is None and parse_stat("", [0], 100) is None


@pytest.mark.parametrize(
    ("load", "is_busy", "text"),
    [
        (Load(2, 0.04, 0.0), False, "other processes keep 0.0 of 2 processors busy"),
        (Load(2, 0.97, 0.0), True, "other processes keep 1.0 of 2 processors busy"),
        (
            Load(4, 0.1, 0.5), True,
            "other processes keep 0.1 of 4 processors busy, and 0.5 of them ran other machines of this host",
        ),
    ],
)  # fmt: skip
def test_in_words(load: Load, is_busy: bool, text: str) -> None:
    assert (load.busy, load.sentence()) == (is_busy, text)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_own_work_is_not_others() -> None:
    """What another process does shows; what this one does, does not."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        beside = current_load(0.5)
    finally:
        other.kill()
        other.wait()
    watch = LoadWatch()
    assert beside is not None and beside.others > 0.2
    ticks = watch._ticks
    assert ticks is not None and sum(range(3_000_000)) > 0
    now = busy._now(watch._cpus)
    assert now is not None and now.own - ticks.own > 0.01 and now.busy >= ticks.busy


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "_now", lambda cpus: None)
    assert current_load(0) is None
