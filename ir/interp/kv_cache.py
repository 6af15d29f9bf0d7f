"""KV caches as the interpreter keeps them: per slot, plain arrays of the values that the encodings leave.

In: rows of k and v with their slot and position. Out: the keys and values of a slot in position order. Knows
no op and no graph.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Encoding
from tilewright.ir.graph.core import State

F32 = NDArray[np.float32]


def through(encoding: Encoding | None, x: NDArray[np.generic]) -> F32:
    """What is left of `x` once stored: decode(encode(x))."""
    values = np.asarray(x, np.float32)
    return values if encoding is None or values.size == 0 else encoding.decode(encoding.encode(values))


@dataclass
class CacheState:
    """One cache: `slots[s]` is (k [context, heads, k_dim], v [context, heads, v_dim]), grown on first
    touch."""

    state: State
    slots: dict[int, tuple[F32, F32]] = field(default_factory=dict)

    def append(self, k: F32, v: F32, seq: NDArray[np.int32], pos: NDArray[np.int32]) -> None:
        """Write row t of k and v at slot seq[t], position pos[t]. IndexError names a position outside the
        context."""
        k, v = (
            through(c.encoding, x.swapaxes(0, 1)).swapaxes(0, 1)
            for c, x in zip(self.state.streams, (k, v), strict=True)
        )
        for t, (s, p) in enumerate(zip(seq.tolist(), pos.tolist(), strict=True)):
            if not 0 <= p < self.state.context:
                raise IndexError(
                    f"@{self.state.name}: position {p} is outside the context of {self.state.context}"
                )
            keys, values = self.read(s)
            keys[p], values[p] = k[t], v[t]

    def read(self, slot: int) -> tuple[F32, F32]:
        if slot < 0:
            raise IndexError(f"@{self.state.name}: slot {slot} is negative")
        if slot not in self.slots:
            n, h = self.state.context, self.state.heads
            keys, values = (np.zeros((n, h, c.width), np.float32) for c in self.state.streams)
            self.slots[slot] = (keys, values)
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
            out[name].slots.update({s: (k.copy(), v.copy()) for s, (k, v) in cache.slots.items()})
        return out
