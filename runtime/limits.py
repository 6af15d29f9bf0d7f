"""Measures what the machine can do at most, by a small native probe that artifacts carry.

In: a library that holds the probe (each level's library of an artifact does). Out: rates. Without a library
the probe is built for this very machine, which needs a compiler.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tilewright.runtime.cpu import default_threads

_MIB = 384
_SECONDS = 1.0
_SOURCE = Path(__file__).parent / "native" / "tw_limits.h"


class LimitsError(RuntimeError):
    """The probe cannot be loaded or run."""


@dataclass(frozen=True)
class Limits:
    """Best rates seen with `threads` threads; None: the level has no such instruction."""

    dram_gb_s: float
    f32_gflop_s: float
    bf16_gflop_s: float | None
    int8_gop_s: float | None
    threads: int

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def measure_limits(
    threads: int | None = None, library: Path | str | None = None, seconds: float = _SECONDS, mib: int = _MIB
) -> Limits:
    """Reads `mib` MiB repeatedly (plainly and with prefetch, the best counts) and runs multiply-adds in
    registers.

    Takes about `seconds` and a quarter, and `mib` MiB of memory, which it gives back. Raises LimitsError."""
    if library is None:
        with built_probe() as own:
            return measure_limits(threads, own, seconds, mib)
    try:
        probe = ctypes.CDLL(str(library)).tw_limits
    except (OSError, AttributeError) as e:
        raise LimitsError(
            f"{library} contains no benchmark of the machine's limits ({e}); compile the model again"
        ) from e
    return _run(probe, threads or default_threads(), seconds, mib)


class ReadProbe:
    """Reads a buffer of its own again and again: what memory gives at this moment. Machines that are shared
    change by the second: a share of the limit is worth something only beside readings taken before and after.
    Raises LimitsError."""

    def __init__(self, library: Path | str, threads: int, mib: int = _MIB // 2) -> None:
        try:
            self._call = ctypes.CDLL(str(library)).tw_bandwidth
            self._buffer = mmap.mmap(-1, mib << 20)
        except (OSError, AttributeError) as e:
            raise LimitsError(
                f"{library}: no benchmark of the memory bandwidth ({e}); compile the model again"
            ) from e
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):
                self._buffer.madvise(mmap.MADV_HUGEPAGE)
        for at in range(0, mib << 20, 4096):  # every page is there before the first reading
            self._buffer[at] = 1
        self._call.restype = ctypes.c_double
        self._call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_double]
        self._bytes, self._threads = mib << 20, threads

    def gb_s(self) -> float:
        """The best of a few passes, plain and prefetching: about 20 ms."""
        view = (ctypes.c_char * self._bytes).from_buffer(self._buffer)
        return float(self._call(self._threads, ctypes.addressof(view), self._bytes, 0.015))


def has_probe(library: Path | str) -> bool:
    """Whether `measure_limits` can use this library."""
    try:
        return hasattr(ctypes.CDLL(str(library)), "tw_limits")
    except OSError:
        return False


def _run(probe: Any, count: int, seconds: float, mib: int) -> Limits:
    probe.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_double, ctypes.POINTER(ctypes.c_double)]
    out = (ctypes.c_double * 4)()
    failed = probe(count, mib, seconds, out)
    if failed == 2:
        raise LimitsError(f"the benchmark's {count} threads cannot all be started; use fewer")
    if failed:
        raise LimitsError(
            f"not enough memory for the benchmark's buffer of {mib} MiB; free some memory or pass a "
            "smaller `mib`"
        )
    dram, f32, bf16, int8 = (round(float(x), 2) for x in out)
    return Limits(dram, f32, bf16 or None, int8 or None, count)


@contextmanager
def built_probe() -> Iterator[Path]:
    """The probe compiled for this machine in a folder that lasts as long as it is used."""
    names = [shlex.split(os.environ["CXX"])] if os.environ.get("CXX") else [["g++"], ["clang++"], ["c++"]]
    command = next(([path, *n[1:]] for n in names if n and (path := shutil.which(n[0]))), None)
    if command is None:
        raise LimitsError(
            "no C++ compiler found to build the benchmark of the machine's limits; install g++, or set CXX "
            "to a compiler's path"
        )
    tune = ["-march=native"] if platform.machine() in ("x86_64", "AMD64") else []
    with tempfile.TemporaryDirectory(prefix="tilewright-") as folder:
        probe = Path(folder) / "limits.so"
        flags = [
            "-O3",
            "-std=c++17",
            *tune,
            "-pthread",
            "-fPIC",
            "-shared",
            "-w",
            "-x",
            "c++",
            str(_SOURCE),
            "-o",
            str(probe),
        ]
        done = subprocess.run(
            [*command, *flags], capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode != 0:
            first = next((x for x in done.stderr.splitlines() if "error" in x), done.stderr[:200])
            raise LimitsError(f"{command[0]} cannot build the benchmark of the machine's limits: {first}")
        yield probe
