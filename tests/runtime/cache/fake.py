"""A cache of NumPy arrays that policies can act on, and attention over it.

One sequence, any number of layers, each with its own numbers of query and KV heads. Tokens, queries, keys and
values are random with a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tilewright.runtime.cache.access import F32, Rows
from tilewright.runtime.cache.manager import CacheManager, Progress


@dataclass
class Head:
    """The rows of one KV head."""

    positions: Rows
    keys: F32
    values: F32
    scores: F32

    def take(self, rows: Rows) -> Head:
        return Head(self.positions[rows], self.keys[rows], self.values[rows], self.scores[rows])

    def add(self, position: int, key: F32, value: F32) -> None:
        self.positions = np.append(self.positions, np.int32(position)).astype(np.int32)
        self.keys, self.values = np.vstack([self.keys, key]), np.vstack([self.values, value])
        self.scores = np.append(self.scores, np.float32(0))


@dataclass
class FakeCache:
    """`shapes`: for each layer (query heads, KV heads)."""

    shapes: Sequence[tuple[int, int]]
    width: int = 8
    seed: int = 0
    progress: Progress = field(default_factory=Progress)
    held: list[list[Head]] = field(default_factory=list)
    evictions: int = 0

    def __post_init__(self) -> None:
        empty = np.zeros((0, self.width), np.float32)
        for _, kv in () if self.held else self.shapes:
            none = np.zeros(0, np.int32)
            self.held.append([Head(none, empty, empty, np.zeros(0, np.float32)) for _ in range(kv)])

    # ------------------------------------------------------------ CacheAccess
    @property
    def layers(self) -> int:
        return len(self.shapes)

    @property
    def length(self) -> int:
        return self.progress.length

    @property
    def prompt(self) -> int:
        return self.progress.prompt

    @property
    def memory(self) -> dict[str, F32]:
        return self.progress.memory

    def heads(self, layer: int) -> int:
        return self.shapes[layer][1]

    def positions(self, layer: int, head: int) -> Rows:
        return self.held[layer][head].positions

    def scores(self, layer: int, head: int) -> F32:
        return self.held[layer][head].scores

    def clear_scores(self, layer: int) -> None:
        for head in self.held[layer]:
            head.scores = np.zeros_like(head.scores)

    def keys(self, layer: int, head: int) -> F32:
        return self.held[layer][head].keys.copy()

    def values(self, layer: int, head: int) -> F32:
        return self.held[layer][head].values.copy()

    def write(self, layer: int, head: int, rows: Rows, keys: F32, values: F32) -> None:
        self.held[layer][head].keys[rows], self.held[layer][head].values[rows] = keys, values

    def keep(self, layer: int, rows: Sequence[Rows]) -> None:
        assert len(rows) == len(self.held[layer])
        assert all(r.dtype == np.int32 and (np.diff(r) > 0).all() for r in rows)
        self.held[layer] = [head.take(r) for head, r in zip(self.held[layer], rows, strict=True)]
        self.evictions += 1

    def copy(self) -> FakeCache:
        """A fork of the sequence."""
        held = [
            [replace(head, keys=head.keys.copy(), values=head.values.copy()) for head in layer]
            for layer in self.held
        ]
        return replace(self, progress=self.progress.copy(), held=held)

    # ------------------------------------------------------------ steps
    def token(self, observed: bool, last: bool = True) -> list[F32]:
        """Process one token at every layer: its row is added, and its query's attention is observed if asked.
        For the last of an item, gives what each layer's query heads see [heads, width]."""
        at, seen = self.progress.length, []
        for layer, (query_heads, kv) in enumerate(self.shapes):
            draw = np.random.default_rng([self.seed, layer, at])
            q = draw.normal(size=(kv, query_heads // kv, self.width)).astype(np.float32)
            k, v = draw.normal(size=(2, kv, self.width)).astype(np.float32)
            for n, head in enumerate(self.held[layer]):
                head.add(at, k[n], v[n])
            if observed or last:
                outs = [attend(head, q[n], observed) for n, head in enumerate(self.held[layer])]
                seen.append(np.concatenate(outs))
        return seen


def attend(head: Head, q: F32, observed: bool) -> F32:
    """What the query heads of one KV head see [group, width]; their weights are added to the scores if
    asked."""
    x = q @ head.keys.T
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    if observed:
        head.scores = np.asarray(head.scores + p.sum(0), np.float32)
    return np.asarray(p @ head.values, np.float32)


def feed(cache: FakeCache, manager: CacheManager, tokens: int, chunk: int = 1 << 30) -> list[F32]:
    """One item of `tokens` tokens, in pieces of at most `chunk`; what the last token's layers see."""
    manager.begin(cache.progress, tokens)
    done, seen = 0, []
    while done < tokens:
        n = min(chunk, tokens - done)
        rows, start = manager.observed(cache.progress, n), cache.progress.length
        for i in range(n):
            seen = cache.token(i in rows)
            cache.progress.length += 1
        cache.progress.length = start
        manager.advance(cache.progress, n, cache)
        done += n
    return seen


def kept(cache: FakeCache) -> list[list[list[int]]]:
    """Positions by layer and head."""
    return [[head.positions.tolist() for head in layer] for layer in cache.held]
