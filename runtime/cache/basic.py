"""Policies that look at positions alone: everything, a window with sinks, and random rows as a control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.runtime.cache.access import F32, CacheAccess, Mask, Rows
from tilewright.runtime.cache.options import refuse
from tilewright.runtime.cache.policy import (
    Budget,
    CachePolicy,
    Protected,
    at_least_one,
    ends,
    fraction_of,
    full_rows,
)
from tilewright.runtime.cache.registry import register_policy


@register_policy
@dataclass(frozen=True)
class Full(CachePolicy):
    """Every token. A model compiled with it serves any policy that a session chooses."""

    name: ClassVar[str] = "full"
    defers: ClassVar[bool] = True
    evicts: ClassVar[bool] = False
    decodes: ClassVar[bool] = False


@register_policy
@dataclass(frozen=True)
class Window(CachePolicy):
    """The first `sinks` tokens and the `recent` last ones ("Efficient Streaming Language Models with
    Attention Sinks"). A fraction for `recent` is of the prompt's length and includes the sinks. Tokens keep
    the positions that they were read at, while the paper numbers them anew inside the cache; so a sequence is
    limited by the model's context."""

    name: ClassVar[str] = "window"
    sinks: int = 4
    recent: Budget = 256
    slack: int = 16

    @property
    def every(self) -> int:
        return self.slack

    def check(self) -> None:
        at_least_one(self, "slack", self.slack)
        if self.sinks + self.recent == 0:
            refuse(self, "recent", "at least 1 where there are no sinks", self.recent)

    def rows(self, cache: CacheAccess) -> int:
        """Sinks and recent tokens together."""
        if isinstance(self.recent, int):
            return self.sinks + self.recent
        return max(fraction_of(self.recent, cache.prompt or cache.length), self.sinks + 1)

    def budgets(self, cache: CacheAccess) -> list[Rows]:
        return [full_rows(cache, layer, self.rows(cache)) for layer in range(cache.layers)]

    def protected(self, cache: CacheAccess, layer: int, head: int) -> Mask:
        rows = self.rows(cache)
        return ends(len(cache.positions(layer, head)), self.sinks, rows - self.sinks)


@register_policy
@dataclass(frozen=True)
class Random(Protected):
    """Random tokens: a control that any policy should beat. Each position of each head has a fixed priority,
    so that what is kept depends on `seed` and not on when rows are evicted."""

    name: ClassVar[str] = "random"
    seed: int = 0

    def score(self, cache: CacheAccess, layer: int, head: int) -> F32:
        draw = np.random.default_rng([self.seed, layer, head])
        return draw.random(cache.length, np.float32)[cache.positions(layer, head)]
