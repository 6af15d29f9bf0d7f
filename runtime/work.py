"""What one step of a session is asked to do: items of work, cut into steps.

In: items (sequence, ids, want). Out: pieces of at most as many tokens as a step takes. Independent of caches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tilewright.runtime.errors import SessionError
from tilewright.runtime.json_fields import kind

Logits = NDArray[np.float32]
Ids = NDArray[np.int32]
#: which logits of an item are wanted: of its last token, of all its tokens, of none
WANT = ("last", "all", "none")


@dataclass
class Item:
    """One sequence's part of a step, and what came of it so far."""

    seq: int
    ids: Ids
    want: str
    parts: list[Logits] = field(default_factory=list)

    def rows(self, lo: int, hi: int) -> range:
        """Offsets within lo..hi of this item's tokens whose logits are wanted."""
        if self.want == "all":
            return range(hi - lo)
        return range(hi - lo - 1, hi - lo) if self.want == "last" and hi == len(self.ids) else range(0)


def parts_of(n: int, item: object) -> tuple[int, ArrayLike, str | bool | None]:
    """The three parts of one item of a step."""
    if not isinstance(item, tuple | list) or len(item) != 3:
        raise SessionError(f"expected (sequence, ids, want), got {kind(item)}", f"step, item {n}")
    seq, ids, want = item
    return seq, ids, want


def chunks(items: list[Item], limit: int) -> list[list[tuple[Item, int, int]]]:
    """Pieces (item, from, to) in order, at most `limit` tokens per step."""
    steps: list[list[tuple[Item, int, int]]] = []
    room = 0
    for item in items:
        lo = 0
        while lo < len(item.ids):
            if not room:
                steps.append([])
                room = limit
            n = min(room, len(item.ids) - lo)
            steps[-1].append((item, lo, lo + n))
            lo, room = lo + n, room - n
    return steps
