"""Schedules of convolutions for the CPU levels: how many pixels by how many outputs one instance computes.

In: a kernel, and the facts about its convolution. Out: schedules, of which the first that fits is used.
"""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.backends.base import Convolution
from tilewright.ir.layout import PANEL
from tilewright.ir.tile.core import Kernel, Schedule

#: registers for accumulators of a level, and the most columns of a tile
_ROOM: Mapping[str, tuple[int, int]] = {
    "avx512_bf16": (24, 48), "avx512_vnni": (24, 48), "avx512": (24, 48), "avx2": (8, 16),
}  # fmt: skip
#: lanes of one vector of f32, by level
_LANES: Mapping[str, int] = {"avx512_bf16": 16, "avx512_vnni": 16, "avx512": 16, "avx2": 8}
#: the most and the fewest pixels of a tile: more gain nothing, fewer do not hide the latency of sums
MOST, FEWEST = 14, 4
#: with sums of at most so many products, tiles have up to so many columns: what is read of the image is used
#: by more outputs at a time, and their weights are in the nearest cache all the same
SHORT, WIDE = 256, 64
#: bytes of weights that stay in a core's own cache while images stream through it
NEAR = 512 << 10


#: rows of the image that lie inside it need no tests
INTERIOR = (("interior", 1),)


def convolution_schedules(c: Convolution, kernel: Kernel) -> tuple[Schedule, ...]:
    """One per level. With weights that a core's cache holds, each row of the image is finished before the
    next; else each column of weights is used for the whole image."""
    order = [a.var for a in kernel.grid]
    if c.weights * 4 > NEAR and c.w is not None:
        first = [v for v in order if v in ("g", "j")]
        order = first + [v for v in order if v not in first]
    shared = " ".join(v for v in order if v != "m")
    free = {a.step for a in kernel.grid if isinstance(a.step, str)}
    out = []
    for level in (*_ROOM, "*"):
        sizes = {k: v for k, v in _sizes(c, level).items() if k in free}
        out.append(Schedule(level, tuple(sorted(sizes.items())), (), tuple(order), shared, options=INTERIOR))
    return tuple(out)


def _sizes(c: Convolution, level: str) -> dict[str, int]:
    room, most = _ROOM.get(level, (4, PANEL))
    lanes = _LANES.get(level, 4)
    if c.w is None:
        return {"BM": _height(c.across, room * lanes // PANEL), "BN": PANEL}
    panels = -(-c.width // PANEL)
    if lanes == PANEL and c.weights <= SHORT * c.width:
        most = WIDE
    columns = PANEL * max(n for n in range(1, most // PANEL + 1) if panels % n == 0)
    return {"BM": _height(c.across, room * lanes // columns), "BN": columns}


def _height(across: int, most: int) -> int:
    """Pixels of a tile: of the heights in question the one that leaves the least of the last tile unused,
    and of those the highest."""
    most = max(min(most, MOST), 1)
    if not across:
        return min(most, 8)
    heights = range(min(most, across), min(FEWEST, most, across) - 1, -1)
    return min(heights, key=lambda h: (-(-across // h) * h, -h))
