"""The load of this machine: processors' worth of time taken by other processes and other virtual machines.

In: /proc/stat and this process's own times. Out: plain values and a sentence. Where /proc/stat does not
exist, nothing is known.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tilewright.runtime.cpu import affinity

#: shares of the processors below which a machine counts as idle: other processes, a hypervisor's other
#: machines
QUIET_OTHERS, QUIET_STOLEN = 0.05, 0.02


@dataclass(frozen=True)
class Load:
    """Over a while, of the processors that this process may run on: `others`, how many of them other
    processes kept busy; `stolen`, how many a hypervisor gave to other machines."""

    processors: int
    others: float
    stolen: float

    @property
    def busy(self) -> bool:
        return self.others > QUIET_OTHERS * self.processors or self.stolen > QUIET_STOLEN * self.processors

    def as_dict(self) -> dict[str, float | bool]:
        return {"others": round(self.others, 2), "stolen": round(self.stolen, 2), "busy": self.busy}

    def sentence(self) -> str:
        """`other processes keep 1.0 of 2 processors busy`, and what a hypervisor took if that is much."""
        text = f"other processes keep {self.others:.1f} of {self.processors} processors busy"
        if self.stolen > QUIET_STOLEN * self.processors:
            text += f", and {self.stolen:.1f} of them ran other machines of this host"
        return text


@dataclass(frozen=True)
class _Ticks:
    """Seconds so far: of all processes, stolen, of this process."""

    busy: float
    stolen: float
    own: float


class LoadWatch:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._cpus = affinity()
        self._began, self._ticks = time.monotonic(), _now(self._cpus)

    def load(self) -> Load | None:
        """Since the making; None: the system does not tell."""
        before, after, seconds = self._ticks, _now(self._cpus), time.monotonic() - self._began
        if before is None or after is None or seconds <= 0:
            return None
        others = (after.busy - before.busy) - (after.own - before.own)
        return Load(
            len(self._cpus), max(others / seconds, 0.0), max((after.stolen - before.stolen) / seconds, 0.0)
        )


def current_load(seconds: float = 0.2) -> Load | None:
    """Watches for so long. None: the system does not tell."""
    watch = LoadWatch()
    time.sleep(seconds)
    return watch.load()


def _now(cpus: Sequence[int]) -> _Ticks | None:
    try:
        text = Path("/proc/stat").read_text()
    except OSError:
        return None
    found = parse_stat(text, cpus, os.sysconf("SC_CLK_TCK"))
    return _Ticks(*found, time.process_time()) if found else None


def parse_stat(text: str, cpus: Sequence[int], per_second: int) -> tuple[float, float] | None:
    """Seconds that these processors ran processes or interrupts, and seconds stolen, from the text of
    /proc/stat."""
    rows = [line.split() for line in text.splitlines() if line.startswith("cpu") and line[3:4].isdigit()]
    wanted = {f"cpu{n}" for n in cpus}
    mine = [[int(x) for x in row[1:9]] for row in rows if row[0] in wanted and len(row) > 8]
    if not mine:
        return None
    return sum(u + n + s + i + j for u, n, s, _, _, i, j, _ in mine) / per_second, sum(
        r[7] for r in mine
    ) / per_second
