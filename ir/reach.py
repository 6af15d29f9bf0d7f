"""Which magnitudes an encoding holds: rows beyond are refused, or stored under scales of a wider range.

In: an encoding, rows of weights. Out: the rows that decode to no numbers, or to others than the same rows at
magnitude 1 do. Probes the encoding itself, so it holds for a user's encoding too; ordinary rows cost one
comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Encoding, EncodingError, RangeError
from tilewright.ir.numbers import largest, unit_rows

F32 = NDArray[np.float32]
#: shares of a row that rounding a scale to bf16 may cost; rows of lesser magnitude than the floor may decode
#: to zero
ALLOWED, FLOOR = 2.0**-7, 2.0**-100


@dataclass(frozen=True)
class Misfit:
    """A row that an encoding does not hold: its number, its largest magnitude, whether it is beyond the range
    (or loses bits)."""

    row: int
    size: float
    beyond: bool

    def __str__(self) -> str:
        why = "beyond its range" if self.beyond else "where its scales lose precision"
        return f"row {self.row} holds magnitudes up to {self.size:.4g}, {why}"


def misfits(encoding: Encoding, rows: F32, sizes: F32 | None = None) -> list[Misfit]:
    """The rows [N, K] that the encoding does not hold, all of them finite. `sizes`: their largest magnitudes,
    if known."""
    sizes = largest(rows) if sizes is None else sizes
    low, high = reach(encoding)
    odd = np.flatnonzero((sizes > high) | (sizes < low) & (sizes > FLOOR))
    found = (_misfit(encoding, rows[n : n + 1], int(n), float(sizes[n])) for n in odd)
    return [m for m in found if m]


def _misfit(encoding: Encoding, row: F32, number: int, size: float) -> Misfit | None:
    try:
        strays, numbers = deviation(encoding, row)
    except RangeError:
        return Misfit(number, size, True)
    return Misfit(number, size, not numbers) if strays else None


@lru_cache(maxsize=64)
def reach(encoding: Encoding) -> tuple[float, float]:
    """(lowest, highest) magnitude of rows that are certainly held: between them nothing need be looked at."""
    probe = _probe(encoding)
    if probe is None:
        return 0.0, float("inf")

    def held(exponent: int) -> bool:
        try:
            return not deviation(encoding, np.ldexp(probe, exponent))[0]
        except RangeError:
            return False

    low, high = _last(held, -100), _last(held, 125)
    sizes = largest(probe)
    lowest = (
        0.0 if low == -100 else float(np.ldexp(sizes.max(), low + 1))
    )  # errors of a few bits rise and fall
    return lowest, float(np.ldexp(np.float64(sizes.min()), high))


def deviation(encoding: Encoding, rows: F32) -> tuple[bool, bool]:
    """Whether rows are stored otherwise than rows of magnitude 1 are, and whether they decode to numbers.
    They may differ by half of what rounding loses at magnitude 1, or by what a scale of 8 bits loses: no
    row's error is twice that at magnitude 1."""
    units, exponents = unit_rows(rows)
    with np.errstate(all="ignore"):
        plain = encoding.decode(encoding.encode(units)).astype(np.float64)
        got = np.ldexp(encoding.decode(encoding.encode(rows)).astype(np.float64), -exponents[:, None])
        size = np.sqrt(np.square(units, dtype=np.float64).sum(-1))
        lost, differ = (np.sqrt(np.square(a).sum(-1)) / size for a in (plain - units, got - plain))
    return not (differ <= np.clip(lost / 2, ALLOWED, 0.5)).all(), bool(np.isfinite(got).all())


def _probe(encoding: Encoding) -> F32 | None:
    """Normal numbers, a lone number and equal ones, in rows of magnitude 1/2 to 1 and of the shortest length
    that fits."""
    alike = np.array([0.53, 0.61, 0.7, 0.83, 0.97], np.float32)[:, None]
    for k in (256, 512, 768, 1 << 12, 1 << 16, 1 << 20):
        try:
            encoding.check((7, k))
        except EncodingError:
            continue
        normal = np.random.default_rng(0).standard_normal((1, k)).astype(np.float32)
        lone = np.where(np.arange(k) == 5, np.float32(0.7), np.float32(0))[None]
        return unit_rows(np.concatenate([normal, lone, np.broadcast_to(alike, (5, k))]))[0]
    return None


def _last(held: object, end: int) -> int:
    """The exponent farthest from 0 towards `end` up to which all is held."""
    assert callable(held)
    near, far = 0, end
    if held(end):
        return end
    while abs(far - near) > 1:
        middle = (near + far) // 2
        near, far = (middle, far) if held(middle) else (near, middle)
    return near
