"""Measures what the machine can do at most, by a small native probe that artifacts carry.

In: the probe library of a level (`lib/limits-LEVEL.so` of an artifact, or one just built). Out: rates. Needs no compiler.
"""

from __future__ import annotations

import ctypes
from dataclasses import asdict, dataclass
from pathlib import Path

from tilewright.runtime.cpu import default_threads

_MIB = 384
_SECONDS = 1.0


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


def measure_limits(library: Path | str, threads: int | None = None, seconds: float = _SECONDS, mib: int = _MIB) -> Limits:
    """Reads `mib` MiB repeatedly (plainly and with prefetch, the best counts) and runs multiply-adds in registers.

    Takes about `seconds` and a quarter, and `mib` MiB of memory, which it gives back."""
    count = threads or default_threads()
    try:
        probe = ctypes.CDLL(str(library)).tw_limits
    except (OSError, AttributeError) as e:
        raise LimitsError(f"{library} is no probe library ({e}); compile the model again") from e
    probe.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_double, ctypes.POINTER(ctypes.c_double)]
    out = (ctypes.c_double * 4)()
    if probe(count, mib, seconds, out) != 0:
        raise LimitsError(f"no memory for the probe's buffer of {mib} MiB; free some memory or pass a smaller `mib`")
    dram, f32, bf16, int8 = (round(float(x), 2) for x in out)
    return Limits(dram, f32, bf16 or None, int8 or None, count)
