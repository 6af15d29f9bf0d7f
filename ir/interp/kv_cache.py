"""KV caches as the interpreter keeps them: per slot, plain arrays of the values that the encodings leave.

In: rows of k and v with their slot and position. Out: the keys and values of a slot in position order. Knows
no op and no graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Encoding
from tilewright.ir.graph.core import State
from tilewright.ir.numbers import hold

F32 = NDArray[np.float32]


def through(encoding: Encoding | None, x: NDArray[np.generic]) -> F32:
    """What is left of `x` once stored: decode(encode(x))."""
    values = np.asarray(x, np.float32)
    return values if encoding is None or values.size == 0 else encoding.decode(encoding.encode(values))


@dataclass
class Slot:
    """One sequence's rows: k [C, H, D], v [C, H, DV], their positions and observed attention [C, H], and how
    many rows each head has lost, [H]. A head holds the token at position p in row p - gone. `recent`: the
    rows of k and v in bf16, where the cache keeps those."""

    k: F32
    v: F32
    pos: NDArray[np.int32]
    score: F32
    gone: NDArray[np.int32]
    recent: tuple[F32, ...] = ()

    def copy(self) -> Slot:
        kept = tuple(x.copy() for x in self.recent)
        return Slot(self.k.copy(), self.v.copy(), self.pos.copy(), self.score.copy(), self.gone.copy(), kept)


@dataclass
class CacheState:
    """One cache: the rows of each sequence, made on first touch."""

    state: State
    slots: dict[int, Slot] = field(default_factory=dict)
    #: by sequence and KV head: the latest scores of its blocks, and which of its rows attention reads next
    worth: dict[tuple[int, int], NDArray[np.float64]] = field(default_factory=dict)
    chosen: dict[tuple[int, int], NDArray[np.bool_]] = field(default_factory=dict)

    def append(self, k: F32, v: F32, seq: NDArray[np.int32], pos: NDArray[np.int32]) -> None:
        """Write row t of k and v for the token at position pos[t] of sequence seq[t]. IndexError names a
        position outside the context."""
        given = (k, v)
        k, v = (
            through(c.encoding, x.swapaxes(0, 1)).swapaxes(0, 1)
            for c, x in ((self.state.keys, k), (self.state.values, v))
        )
        heads = np.arange(self.state.heads)
        for t, (s, p) in enumerate(zip(seq.tolist(), pos.tolist(), strict=True)):
            if not 0 <= p < self.state.context:
                raise IndexError(
                    f"@{self.state.name}: position {p} is outside the context of {self.state.context}"
                )
            slot = self.read(s)
            row = p - slot.gone
            slot.k[row, heads], slot.v[row, heads], slot.pos[row, heads] = k[t], v[t], p
            slot.score[row, heads] = 0
            for kept, x in zip(slot.recent, given, strict=False):
                kept[p] = hold(x[t], "bf16")

    def rows(self, slot: int, head: int, length: int) -> tuple[F32, F32, NDArray[np.int32]]:
        """Keys [n, 1, D], values [n, 1, DV] and positions [n] that a head holds of the first `length`
        tokens."""
        held = self.read(slot)
        n = length - int(held.gone[head])
        return held.k[:n, head : head + 1], held.v[:n, head : head + 1], held.pos[:n, head]

    def recent_rows(self, slot: int, head: int, length: int) -> tuple[F32, F32]:
        """The keys and values of `rows` in bf16."""
        k, v = self.read(slot).recent
        return k[:length, head : head + 1], v[:length, head : head + 1]

    def observe(self, slot: int, head: int, weights: NDArray[np.float64]) -> None:
        """Add attention that the first rows of a head got."""
        self.read(slot).score[: len(weights), head] += weights.astype(np.float32)

    def keep(self, slot: int, length: int, rows: Sequence[NDArray[np.int32]]) -> None:
        """Of a sequence of `length` tokens, keep these rows of each head, ascending."""
        held = self.read(slot)
        for h, kept in enumerate(rows):
            n = length - int(held.gone[h])
            for x in (held.k, held.v, held.pos, held.score):
                x[: len(kept), h] = x[kept, h]
            held.gone[h] += n - len(kept)

    def read(self, slot: int) -> Slot:
        if slot < 0:
            raise IndexError(f"@{self.state.name}: slot {slot} is negative")
        if slot not in self.slots:
            n, h = self.state.context, self.state.heads
            keys, values = (
                np.zeros((n, h, c.width), np.float32) for c in (self.state.keys, self.state.values)
            )
            pos, score = np.zeros((n, h), np.int32), np.zeros((n, h), np.float32)
            recent = (keys.copy(), values.copy()) if self.state.recent else ()
            self.slots[slot] = Slot(keys, values, pos, score, np.zeros(h, np.int32), recent)
        return self.slots[slot]


class InterpStates:
    """All caches of a module, by state name; kept between steps."""

    def __init__(self, states: Iterable[State]) -> None:
        self._caches = {s.name: CacheState(s) for s in states}

    def __getitem__(self, name: str) -> CacheState:
        if name not in self._caches:
            known = ", ".join("@" + n for n in self._caches) or "none"
            raise KeyError(f"no state @{name}; known: {known}")
        return self._caches[name]

    def copy(self) -> InterpStates:
        """An independent copy: what happens to one is not seen in the other."""
        out = InterpStates(c.state for c in self._caches.values())
        for name, cache in self._caches.items():
            out[name].slots.update({s: held.copy() for s, held in cache.slots.items()})
        return out
