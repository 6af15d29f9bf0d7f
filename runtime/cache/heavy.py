"""Policies that keep the rows which received the most attention: H2O and TOVA.

Also what policies share that select the same rows for all heads of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.runtime.cache.access import F32, CacheAccess, Rows
from tilewright.runtime.cache.policy import Budget, Budgeted, Observe, Protected, at_least_one, at_prompt, top
from tilewright.runtime.cache.registry import register_policy


@register_policy
@dataclass(frozen=True)
class H2O(Protected):
    """Heavy hitters: rows that received the most attention from all queries so far, in prompts and decode,
    beside recent rows, here half of the budget ("H2O: Heavy-Hitter Oracle for Efficient Generative Inference
    of Large Language Models"; 20% in equal halves)."""

    name: ClassVar[str] = "h2o"
    recent: Budget = 0.5

    @property
    def observe(self) -> Observe:
        return "all"


@register_policy
@dataclass(frozen=True)
class TOVA(Protected):
    """Rows that the latest query attends to most, the same in all heads of a layer: attention is summed over
    heads ("Transformers are Multi-State RNNs"). The paper evicts at every token, which is `slack=1`."""

    name: ClassVar[str] = "tova"

    @property
    def observe(self) -> Observe:
        return 1

    def score(self, cache: CacheAccess, layer: int, head: int) -> F32:
        return layer_scores(cache, layer)


@dataclass(frozen=True)
class FixedSlot(Budgeted):
    """The base of Elastic Cache and PrefixKV: rows with the most attention of the prompt, the same in all
    heads of a layer, of which the first 4 and the last stay. During decode each new row evicts the one that
    is `distance` before the end, whatever its score. `slack`: tokens between evictions during decode."""

    observes_decode: ClassVar[bool] = False
    distance: int = 25
    slack: int = 16

    @property
    def observe(self) -> Observe:
        return "all"

    @property
    def every(self) -> int:
        return self.slack

    def edges(self, rows: int) -> tuple[int, int]:
        return 4, 1

    def check(self) -> None:
        at_least_one(self, "distance", self.distance)
        at_least_one(self, "slack", self.slack)
        super().check()

    def score(self, cache: CacheAccess, layer: int, head: int) -> F32:
        return layer_scores(cache, layer)

    def select(self, cache: CacheAccess, layer: int, head: int, scores: F32, count: int) -> Rows:
        return top(scores, count) if at_prompt(cache) else make_room(len(scores), count, self.distance)


def layer_scores(cache: CacheAccess, layer: int) -> F32:
    """[n] observed attention summed over the heads of a layer, which must hold the same tokens."""
    heads = [cache.scores(layer, head) for head in range(cache.heads(layer))]
    return np.asarray(np.sum(heads, 0), np.float32)


def make_room(n: int, count: int, distance: int) -> Rows:
    """Of n rows `count`: the last `distance`, and the first; so each new row evicts the one that is
    `distance` before the end."""
    last = min(distance, count)
    return np.append(np.arange(count - last), np.arange(n - last, n)).astype(np.int32)
