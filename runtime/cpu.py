"""What this machine's processor offers: feature flags, model name, and how many threads may run.

In: /proc and cgroup files (other systems give fewer facts). Out: plain values. Independent of instruction
tables.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

#: features each level needs, named as in /proc/cpuinfo, from the lowest level to the highest
LEVEL_FEATURES: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "avx2": ("avx2", "fma", "f16c"),
    "avx512": (
        "avx2",
        "fma",
        "f16c",
        "bmi1",
        "bmi2",
        "abm",
        "popcnt",
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl",
    ),
}
LEVEL_FEATURES["avx512_vnni"] = (*LEVEL_FEATURES["avx512"], "avx512_vnni")
LEVEL_FEATURES["avx512_bf16"] = (*LEVEL_FEATURES["avx512_vnni"], "avx512_bf16")


@lru_cache(maxsize=1)
def cpu_features() -> frozenset[str]:
    """Feature flags of the first processor; empty where /proc/cpuinfo does not list them."""
    return parse_flags(_read(Path("/proc/cpuinfo")))


def parse_flags(cpuinfo: str) -> frozenset[str]:
    """The flags in the text of /proc/cpuinfo (`flags` on x86, `Features` on Arm)."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def cpu_name() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def missing_features(level: str, have: Iterable[str] | None = None) -> list[str]:
    """Features that `level` needs and the processor lacks; empty: the level runs here. KeyError: no such
    level."""
    if level not in LEVEL_FEATURES:
        raise KeyError(f"unknown level {level!r}; known: {', '.join(LEVEL_FEATURES)}")
    present = cpu_features() if have is None else set(have)
    return [f for f in LEVEL_FEATURES[level] if f not in present]


def available_levels(have: Iterable[str] | None = None) -> list[str]:
    """Levels this processor runs, best first."""
    return [n for n in reversed(LEVEL_FEATURES) if not missing_features(n, have)]


def affinity() -> list[int]:
    """Processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cgroup_quota() -> float | None:
    """Processors' worth of time that the control group grants, None: no limit."""
    return _quota_v2() or _quota_v1()


def _quota_v2() -> float | None:
    return _least([_limit(*_read(p / "cpu.max").split()[:2]) for p in _groups(Path("/sys/fs/cgroup"), "")])


def _quota_v1() -> float | None:
    folders = _groups(Path("/sys/fs/cgroup/cpu"), "cpu")
    return _least(
        [
            _limit(_read(p / "cpu.cfs_quota_us").strip(), _read(p / "cpu.cfs_period_us").strip())
            for p in folders
        ]
    )


def _least(quotas: Iterable[float | None]) -> float | None:
    return min((q for q in quotas if q is not None), default=None)


def _groups(root: Path, controller: str) -> list[Path]:
    """The folders of this process's group and of those it lies in, up to the root, which in a container is
    the group itself."""
    lines = [
        line.split(":", 2) for line in _read(Path("/proc/self/cgroup")).splitlines() if line.count(":") >= 2
    ]
    group = next((path for _, names, path in lines if controller in names.split(",")), "/")
    folder = root / group.lstrip("/")
    return [p for p in (folder, *folder.parents) if p == root or root in p.parents]


def _limit(quota: str = "", period: str = "") -> float | None:
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def default_threads() -> int:
    """Threads a team should have: the processors of the affinity mask, no more than the quota grants (rounded
    up)."""
    quota = cgroup_quota()
    count = len(affinity())
    return max(1, count if quota is None else min(count, -int(-quota // 1)))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def available_bytes() -> int:
    """Memory that a program may still take without swapping: the machine's, within this process's cgroup."""
    found = [n for n in (_mem_available(), _cgroup_memory_left()) if n is not None]
    return min(found, default=1 << 40)


def _mem_available() -> int | None:
    try:
        line = next(
            x for x in Path("/proc/meminfo").read_text("utf-8").splitlines() if x.startswith("MemAvailable:")
        )
        return int(line.split()[1]) << 10
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def _cgroup_memory_left() -> int | None:
    root = Path("/sys/fs/cgroup")
    try:
        return max(
            int((root / "memory.max").read_text("utf-8")) - int((root / "memory.current").read_text("utf-8")),
            0,
        )
    except (OSError, ValueError):  # no such limit ("max"), or no cgroup of the second version
        return None
