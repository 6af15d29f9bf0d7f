"""What a cache policy sees and may do: the rows that one sequence holds in every attention layer.

A row is one token's key and value in one head. The rows of a head are in ascending order of position; heads
may hold different tokens. Implemented over the native cache by sessions, and over NumPy arrays by the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
#: indices of rows, or positions
Rows = NDArray[np.int32]
Mask = NDArray[np.bool_]


class CacheAccess(Protocol):
    """One sequence. Keys are as attention uses them: after rotation where the model rotates them."""

    @property
    def layers(self) -> int:
        """Attention layers."""

    @property
    def length(self) -> int:
        """Tokens that the sequence has processed, evicted ones included."""

    @property
    def prompt(self) -> int:
        """The length when its latest prompt was complete; 0 if it was fed single tokens only."""

    @property
    def memory(self) -> dict[str, F32]:
        """What the policy remembers of this sequence: empty at first, copied by fork, saved with it."""

    def heads(self, layer: int) -> int:
        """KV heads."""

    def positions(self, layer: int, head: int) -> Rows:
        """[n] original positions of the rows held, ascending."""

    def scores(self, layer: int, head: int) -> F32:
        """[n] attention that each row received: softmax weights summed over the observed queries and over
        the query heads that share this KV head."""

    def clear_scores(self, layer: int) -> None:
        """Set the scores of all rows of a layer to zero."""

    def keys(self, layer: int, head: int) -> F32:
        """[n, D] decoded."""

    def values(self, layer: int, head: int) -> F32:
        """[n, DV] decoded."""

    def write(self, layer: int, head: int, rows: Rows, keys: F32, values: F32) -> None:
        """Replace the keys [m, D] and values [m, DV] of some rows, encoded as the cache stores them."""

    def keep(self, layer: int, rows: Sequence[Rows]) -> None:
        """Evict all other rows: for each head, the ascending indices of those that stay."""
