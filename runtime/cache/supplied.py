"""Policies that follow numbers found in training, which the user supplies: DuoAttention and TRIM-KV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.runtime.cache.access import F32, CacheAccess, Mask, Rows
from tilewright.runtime.cache.options import refuse
from tilewright.runtime.cache.policy import CachePolicy, Protected, at_least_one, ends
from tilewright.runtime.cache.registry import register_policy
from tilewright.runtime.cache.tables import layer_table
from tilewright.runtime.errors import SessionError


@register_policy
@dataclass(frozen=True)
class Duo(CachePolicy):
    """Retrieval heads keep every row, streaming heads the first `sinks` and the `recent` last
    ("DuoAttention: Efficient Long-Context LLM Inference with Retrieval and Streaming Heads"; 64 and 256).
    `gates`: a file with one number per KV head, [layers, heads]; the share `full` of the heads with the
    largest are retrieval heads (the paper: 0.25 where every query head has its own KV head, else 0.5)."""

    name: ClassVar[str] = "duo"
    gates: str = ""
    full: float = 0.5
    sinks: int = 64
    recent: int = 256
    slack: int = 16

    @property
    def every(self) -> int:
        return self.slack

    def check(self) -> None:
        at_least_one(self, "slack", self.slack)
        at_least_one(self, "recent", self.recent)
        if not self.gates:
            refuse(self, "gates", "a file with one number per KV head", self.gates)
        if not 0 <= self.full <= 1:
            refuse(self, "full", "a share of the heads from 0 to 1", self.full)

    def retrieval(self, cache: CacheAccess) -> list[Mask]:
        """For each layer [heads] which ones keep everything; of equal gates, those of earlier heads."""
        heads = [cache.heads(layer) for layer in range(cache.layers)]
        table = layer_table(self, "gates", self.gates, (len(heads), max(heads)))
        gates = np.concatenate([row[:n] for row, n in zip(table, heads, strict=True)])
        chosen = np.zeros(len(gates), bool)
        chosen[np.argsort(-gates, kind="stable")[: round(self.full * len(gates))]] = True
        return np.split(chosen, np.cumsum(heads)[:-1])

    def budgets(self, cache: CacheAccess) -> list[Rows]:
        return [
            np.where(full, cache.length, self.sinks + self.recent).astype(np.int32)
            for full in self.retrieval(cache)
        ]

    def protected(self, cache: CacheAccess, layer: int, head: int) -> Mask:
        return ends(len(cache.positions(layer, head)), self.sinks, self.recent)


@register_policy
@dataclass(frozen=True)
class TrimKV(Protected):
    """Rows that a gate says will be of use for longest: a row made at position i is worth (t - i) · log β at
    position t ("Cache What Lasts: Token Retention for Memory-Bounded KV Cache in LLMs"). `gates`: a file with
    log β, none above 0, [layers, heads, positions] of this very text, or [layers, heads, 1] for one decay per
    head; the network that computes them is not part of an artifact. Attention plays no part."""

    name: ClassVar[str] = "trimkv"
    gates: str = ""

    def check(self) -> None:
        if not self.gates:
            refuse(self, "gates", "a file with log β per layer, KV head and position", self.gates)
        super().check()

    def score(self, cache: CacheAccess, layer: int, head: int) -> F32:
        positions = cache.positions(layer, head)
        most = max(cache.heads(n) for n in range(cache.layers))
        table = layer_table(self, "gates", self.gates, (cache.layers, most))
        if table.ndim != 3 or table.shape[2] != 1 and table.shape[2] < cache.length:
            raise SessionError(
                f"expected log β of shape [{cache.layers}, {most}, 1] or [{cache.layers}, {most}, positions] "
                f"with at least {cache.length} positions, got {list(table.shape)}",
                f"cache policy trimkv, gates={self.gates}",
                "compute the gates of the whole text",
            )
        if table.max() > 0:
            refuse(self, "gates", "numbers of at most 0 (log β)", float(table.max()))
        decay = table[layer, head, positions if table.shape[2] > 1 else 0]
        return np.asarray((cache.length - positions) * decay, np.float32)
