"""PyTorch's padding in every mode, as parts of an axis joined: constant, reflect, replicate, circular.

In: a tensor and amounts, counted from the last axis; negative ones cut. Out: `pad`, or joins of slices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tilewright.capture.aten_move import cut
from tilewright.capture.context import Capture, aten
from tilewright.capture.symbols import Dim
from tilewright.ir.types import as_dim

#: (context, x, axis, amount) -> what stands before the axis, and behind it
Edge = Callable[[Capture, str, int, Dim], str]


@aten("constant_pad_nd", "pad.default")
def pad(c: Capture, x: str, pads: Sequence[Any], *rest: Any, mode: str = "", value: Any = None) -> str:
    mode = mode or next((r for r in rest if isinstance(r, str)), "constant")
    x, amounts = _trimmed(c, x, pads)
    if mode in _EDGES:
        return _around(c, x, amounts, *_EDGES[mode])
    value = next((r for r in rest if isinstance(r, int | float)), 0 if value is None else value)
    if all(p == 0 for p in amounts):
        return x
    return c.op("pad", x, pads=tuple(amounts), value=c.scalar(value, c.dtype(x)))


def _trimmed(c: Capture, x: str, pads: Sequence[Any]) -> tuple[str, list[Any]]:
    """x without what negative amounts cut, and the others axis by axis from the front."""
    rank = c.rank(x)
    amounts: list[Any] = [0, 0] * rank
    for n in range(len(pads) // 2):
        amounts[2 * (rank - 1 - n) : 2 * (rank - n)] = pads[2 * n : 2 * n + 2]
    for axis in range(rank):
        before, after = amounts[2 * axis : 2 * axis + 2]
        if any(isinstance(p, int) and p < 0 for p in (before, after)):
            x = cut(c, x, axis, max(-before, 0), as_dim(c.shape(x)[axis] + min(after, 0)))
            amounts[2 * axis : 2 * axis + 2] = [max(before, 0), max(after, 0)]
    return x, amounts


def _around(c: Capture, x: str, amounts: Sequence[Any], before: Edge, after: Edge) -> str:
    """One axis after the other, so that corners are edges of edges."""
    for axis in range(c.rank(x)):
        lo, hi = amounts[2 * axis : 2 * axis + 2]
        parts = [before(c, x, axis, lo)] if lo != 0 else []
        parts += [x, *([after(c, x, axis, hi)] if hi != 0 else [])]
        x = x if len(parts) == 1 else c.op("concat", *parts, axis=axis)
    return x


# ------------------------------------------------------------------ edges
def _mirrored_start(c: Capture, x: str, axis: int, n: Dim) -> str:
    return c.op("flip", cut(c, x, axis, 1, as_dim(n + 1)), axes=(axis,))


def _mirrored_end(c: Capture, x: str, axis: int, n: Dim) -> str:
    last = as_dim(c.shape(x)[axis] - 1)
    return c.op("flip", cut(c, x, axis, as_dim(last - n), last), axes=(axis,))


def _stretched(c: Capture, x: str, axis: int, n: Dim) -> str:
    """The one entry of an axis n times."""
    shape = c.shape(x)
    return c.expand(x, (*shape[:axis], n, *shape[axis + 1 :]))


def _first(c: Capture, x: str, axis: int, n: Dim) -> str:
    return _stretched(c, cut(c, x, axis, 0, 1), axis, n)


def _last(c: Capture, x: str, axis: int, n: Dim) -> str:
    size = c.shape(x)[axis]
    return _stretched(c, cut(c, x, axis, as_dim(size - 1), size), axis, n)


def _from_the_end(c: Capture, x: str, axis: int, n: Dim) -> str:
    size = c.shape(x)[axis]
    return cut(c, x, axis, as_dim(size - n), size)


def _from_the_start(c: Capture, x: str, axis: int, n: Dim) -> str:
    """Of an axis that has its end in front already, so that its own beginning comes after that."""
    return cut(c, x, axis, 0, n)


_EDGES: dict[str, tuple[Edge, Edge]] = {
    "reflect": (_mirrored_start, _mirrored_end), "replicate": (_first, _last),
    "circular": (_from_the_end, _from_the_start),
}  # fmt: skip


def _padding(mode: str) -> Callable[..., str]:
    def run(c: Capture, x: str, pads: Sequence[Any]) -> str:
        x, amounts = _trimmed(c, x, pads)
        return _around(c, x, amounts, *_EDGES[mode])

    return run


for _kind, _mode in (("reflection", "reflect"), ("replication", "replicate")):
    for _n in (1, 2, 3):
        aten(f"{_kind}_pad{_n}d")(_padding(_mode))
