"""SnapKV and two ways to divide its budget over layers: PyramidKV and ScaleKV.

They act when a prompt is complete, by the attention of its last queries; what is decoded after is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.runtime.cache.access import F32, CacheAccess, Rows
from tilewright.runtime.cache.options import refuse
from tilewright.runtime.cache.policy import Budgeted, Observe, at_least_one, full_rows
from tilewright.runtime.cache.registry import register_policy
from tilewright.runtime.cache.tables import F64, layer_table, positive, shared_out


@register_policy
@dataclass(frozen=True)
class SnapKV(Budgeted):
    """Per head, the rows that the last `window` queries of the prompt attend to, and their neighbours: scores
    are maxima over `pool` rows ("SnapKV: LLM Knows What You Are Looking for Before Generation"; 32 and 7).
    The rows of the window itself stay."""

    name: ClassVar[str] = "snapkv"
    decodes: ClassVar[bool] = False
    window: int = 32
    pool: int = 7

    @property
    def observe(self) -> Observe:
        return self.window

    def edges(self, rows: int) -> tuple[int, int]:
        return 0, self.window

    def check(self) -> None:
        at_least_one(self, "window", self.window)
        if self.pool % 2 != 1:
            refuse(self, "pool", "an odd number", self.pool)
        super().check()

    def score(self, cache: CacheAccess, layer: int, head: int) -> F32:
        scores = cache.scores(layer, head)
        return np.append(max_pool(scores[: -self.window], self.pool), scores[-self.window :])


@register_policy
@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV whose budget falls from layer to layer in equal steps, with the same total: beside the window,
    the last layer gets 1/`beta` of the mean ("PyramidKV: Dynamic KV Cache Compression based on Pyramidal
    Information Funneling"; window 8, beta 20)."""

    name: ClassVar[str] = "pyramidkv"
    window: int = 8
    beta: int = 20

    def check(self) -> None:
        at_least_one(self, "beta", self.beta)
        super().check()

    def budgets(self, cache: CacheAccess) -> list[Rows]:
        shares = descending(cache.layers, self.beta)
        rows = shared_out(self.rows(cache) * cache.layers, shares, self.window)
        return [full_rows(cache, layer, int(n)) for layer, n in enumerate(rows)]


@register_policy
@dataclass(frozen=True)
class ScaleKV(SnapKV):
    """SnapKV whose budget is divided over layers as a table says, so that drafting layers keep more rows than
    refining ones ("Memory-Efficient Visual Autoregressive Modeling with Scale-Aware KV Cache Compression").
    `shares`: a file with one positive number per layer; the mean layer gets the budget. One table serves all
    scales of an image here, while the paper has one for each."""

    name: ClassVar[str] = "scalekv"
    shares: str = ""

    def check(self) -> None:
        if not self.shares:
            refuse(self, "shares", "a file with one positive number per layer", self.shares)
        super().check()

    def budgets(self, cache: CacheAccess) -> list[Rows]:
        shares = positive(layer_table(self, "shares", self.shares, (cache.layers,)), self, "shares")
        rows = shared_out(self.rows(cache) * cache.layers, shares, self.window)
        return [full_rows(cache, layer, int(n)) for layer, n in enumerate(rows)]


def max_pool(x: F32, size: int) -> F32:
    """[n] the largest of the `size` values around each; fewer at the ends."""
    half = size // 2
    padded = np.pad(x, half, constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(padded, size).max(-1) if x.size else x


def descending(layers: int, beta: float) -> F64:
    """[layers] shares that fall in equal steps to 1/beta of their mean, which is 1."""
    return np.linspace(2 - 1 / beta, 1 / beta, layers) if layers > 1 else np.ones(1)
