"""Sequences that are no longer used, kept for later ones that begin with the same tokens.

In: ids of sequences that are dropped, ids of new ones. Out: which kept sequence has the longest beginning in
common, and which to forget when they take too many bytes. Independent of how sequences are stored.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

#: tokens that are hashed together; a beginning that is shorter is read again
BLOCK = 32
#: most sequences that are kept
MOST = 256


@dataclass
class KeptSequences:
    """`most_bytes`: of all kept sequences, each of which takes `token_bytes` per token. The least recently
    used are forgotten first, and those that another one contains."""

    most_bytes: int
    token_bytes: float
    _ids: OrderedDict[int, list[int]] = field(default_factory=OrderedDict)
    _blocks: dict[bytes, set[int]] = field(default_factory=dict)

    def __contains__(self, seq: object) -> bool:
        return seq in self._ids

    @property
    def nbytes(self) -> int:
        return int(sum(len(ids) for ids in self._ids.values()) * self.token_bytes)

    def keep(self, seq: int, ids: Sequence[int]) -> list[int]:
        """Keep a sequence; returns those to forget for it, itself if it is too short or too large."""
        if len(ids) < BLOCK or len(ids) * self.token_bytes > self.most_bytes:
            return [seq]
        gone = []
        for other, held in list(self._ids.items()):
            if held == list(ids[: len(held)]):
                gone.append(self._forget(other))
            elif list(ids) == held[: len(ids)]:
                return [seq]
        self._ids[seq] = list(ids)
        for key in hashes(ids):
            self._blocks.setdefault(key, set()).add(seq)
        while self.nbytes > self.most_bytes or len(self._ids) > MOST:
            gone.append(self.oldest())
        return gone

    def oldest(self) -> int:
        """Forget the sequence that was not used for longest; returns it. KeyError if none is kept."""
        if not self._ids:
            raise KeyError("no sequence is kept")
        return self._forget(next(iter(self._ids)))

    def _forget(self, seq: int) -> int:
        for key in hashes(self._ids.pop(seq)):
            self._blocks[key].discard(seq)
            if not self._blocks[key]:
                del self._blocks[key]
        return seq

    def find(
        self, ids: Sequence[int], whole: bool, least: Callable[[int], int] = lambda seq: 0
    ) -> tuple[int, int] | None:
        """The kept sequence that has most tokens in common with the beginning of `ids`, but not all of them,
        and how many; None if it is less than a block. `whole`: only sequences whose every token is among
        them; `least`: how many tokens of a sequence must be."""
        best: tuple[int, int] | None = None
        for key in hashes(ids):
            if key not in self._blocks:
                break
            for seq in self._blocks[key]:
                n = min(common(self._ids[seq], ids), len(ids) - 1)
                usable = n >= (len(self._ids[seq]) if whole else least(seq))
                if (best is None or n > best[1]) and usable:
                    best = seq, n
        if best is not None:
            self._ids.move_to_end(best[0])
        return best


def hashes(ids: Sequence[int]) -> Iterator[bytes]:
    """A hash of each whole number of blocks that a sequence begins with."""
    state = hashlib.blake2b(digest_size=16)
    data = np.asarray(ids, np.int32)
    for end in range(BLOCK, len(data) + 1, BLOCK):
        state.update(data[end - BLOCK : end].tobytes())
        yield state.copy().digest()


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    n = min(len(a), len(b))
    x, y = np.asarray(a[:n]), np.asarray(b[:n])
    differs = np.flatnonzero(x != y)
    return int(differs[0]) if differs.size else n
