"""WindowKV: whole windows of consecutive tokens, chosen once for a group of layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.runtime.cache.access import F32, CacheAccess, Rows
from tilewright.runtime.cache.options import refuse
from tilewright.runtime.cache.policy import Budgeted, Observe, at_least_one, full_rows, top
from tilewright.runtime.cache.registry import register_policy
from tilewright.runtime.cache.snap import descending
from tilewright.runtime.cache.tables import shared_out

MODES = ("aggregation", "localization")


@register_policy
@dataclass(frozen=True)
class WindowKV(Budgeted):
    """Windows of `size` consecutive rows that the last `observed` queries of the prompt attend to ("WindowKV:
    Task-Adaptive Group-Wise KV Cache Window Selection for Efficient LLM Inference"). A window's score is its
    mean (`mode=aggregation`), or the mean of its better half (`localization`); the paper lets a classifier of
    prompts choose, here the option does. The first layer of each `group` selects, the others follow it.
    Budgets fall from group to group, with the same total: the last gets group/`beta` of the mean."""

    name: ClassVar[str] = "windowkv"
    decodes: ClassVar[bool] = False
    size: int = 8
    observed: int = 32
    mode: str = "aggregation"
    group: int = 2
    beta: int = 14

    @property
    def observe(self) -> Observe:
        return self.observed

    def edges(self, rows: int) -> tuple[int, int]:
        return 0, self.observed

    def check(self) -> None:
        for option in ("size", "observed", "group", "beta"):
            at_least_one(self, option, getattr(self, option))
        if self.mode not in MODES:
            refuse(self, "mode", " or ".join(MODES), self.mode)
        if self.group > self.beta:
            refuse(self, "group", f"at most beta = {self.beta}", self.group)
        super().check()

    def leader(self, cache: CacheAccess, layer: int) -> int:
        group = range(layer - layer % self.group, layer + 1)
        return next(n for n in group if cache.heads(n) == cache.heads(layer))

    def budgets(self, cache: CacheAccess) -> list[Rows]:
        groups = -(-cache.layers // self.group)
        shares = np.repeat(descending(groups, self.beta / self.group), self.group)[: cache.layers]
        rows = shared_out(self.rows(cache) * cache.layers, shares, self.observed)
        return [full_rows(cache, layer, int(n)) for layer, n in enumerate(rows)]

    def select(self, cache: CacheAccess, layer: int, head: int, scores: F32, count: int) -> Rows:
        n, size = len(scores) - self.observed, self.size
        starts = np.arange(0, n, size)
        worth = np.array([self._worth(scores[at : min(at + size, n)]) for at in starts], np.float32)
        best = starts[top(worth, (count - self.observed) // size)]
        rows = [*(np.arange(at, min(at + size, n)) for at in best), np.arange(n, len(scores))]
        return np.concatenate(rows).astype(np.int32)

    def _worth(self, scores: F32) -> float:
        """The score of one window."""
        half = scores if self.mode == MODES[0] else np.sort(scores)[len(scores) // 2 :]
        return float(half.mean())
