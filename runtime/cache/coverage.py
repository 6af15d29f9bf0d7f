"""Budgets from how attention is spread: ZipVL's share of the mass, PrefixKV's one coverage of all layers.

Both look at the scores of a prompt; layers whose attention is concentrated keep fewer rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.runtime.cache.access import F32, CacheAccess, Mask, Rows
from tilewright.runtime.cache.heavy import FixedSlot, layer_scores
from tilewright.runtime.cache.options import refuse
from tilewright.runtime.cache.policy import (
    CachePolicy,
    Observe,
    at_least_one,
    at_prompt,
    ends,
    full_rows,
)
from tilewright.runtime.cache.registry import register_policy
from tilewright.runtime.cache.tables import layer_table, positive, shared_out


@register_policy
@dataclass(frozen=True)
class ZipVL(CachePolicy):
    """In each layer, as few rows as hold the share `tau` of the attention of the prompt's last `probes`
    queries, so that the budget follows from the prompt ("ZipVL: Efficient Large Vision-Language Models with
    Dynamic Token Sparsification"; 0.97). The paper keeps the other rows in 2 bits and skips them in prefill;
    here they are evicted when the prompt is complete. The rows of the probes stay."""

    name: ClassVar[str] = "zipvl"
    decodes: ClassVar[bool] = False
    tau: float = 0.97
    probes: int = 32

    @property
    def observe(self) -> Observe:
        return self.probes

    def check(self) -> None:
        at_least_one(self, "probes", self.probes)
        if not 0 < self.tau <= 1:
            refuse(self, "tau", "a share of the attention above 0, at most 1", self.tau)

    def protected(self, cache: CacheAccess, layer: int, head: int) -> Mask:
        return ends(len(cache.positions(layer, head)), 0, self.probes)

    def budgets(self, cache: CacheAccess) -> list[Rows]:
        counts = [max(self._rows(cache, layer), self.probes) for layer in range(cache.layers)]
        return [full_rows(cache, layer, n) for layer, n in enumerate(counts)]

    def _rows(self, cache: CacheAccess, layer: int) -> int:
        """The rows whose mass, averaged over heads, reaches `tau`."""
        if self.tau >= 1:  # rows whose mass is lost in rounding stay too
            return cache.length
        masses = [sorted_masses(cache.scores(layer, head)) for head in range(cache.heads(layer))]
        longest = max(map(len, masses))
        mean = np.mean([np.pad(np.cumsum(m), (0, longest - len(m)), "edge") for m in masses], 0)
        return int(np.searchsorted(mean, self.tau)) + 1


@register_policy
@dataclass(frozen=True)
class PrefixKV(FixedSlot):
    """Rows with the most attention of the prompt, the same in all heads of a layer, with one coverage for all
    layers: the share of its attention that a layer forgets is the same everywhere, and the total is the
    budget ("PrefixKV: Adaptive Prefix KV Cache is What Vision Instruction-Following Models Need for Efficient
    Generation"). The first 4 rows and the last stay. `profile`: a file with one share per layer, measured
    before, instead of this prompt's."""

    name: ClassVar[str] = "prefixkv"
    profile: str = ""

    def budgets(self, cache: CacheAccess) -> list[Rows]:
        if at_prompt(cache):
            cache.memory["budgets"] = self._counts(cache).astype(np.float32)
        return [full_rows(cache, layer, int(n)) for layer, n in enumerate(cache.memory["budgets"])]

    def _counts(self, cache: CacheAccess) -> Rows:
        """[layers] rows."""
        total = self.rows(cache) * cache.layers
        if self.profile:
            shares = positive(layer_table(self, "profile", self.profile, (cache.layers,)), self, "profile")
            return shared_out(total, shares, sum(self.edges(0)))
        scores = [layer_scores(cache, layer) for layer in range(cache.layers)]
        return equal_coverage(scores, [ends(len(s), *self.edges(0)) for s in scores], total)


def sorted_masses(scores: F32) -> F32:
    """Scores as shares of their sum, largest first."""
    total = float(scores.sum(dtype=np.float64)) or 1.0
    return np.asarray(np.sort(scores)[::-1] / total, np.float32)


def equal_coverage(scores: list[F32], protected: list[Mask], total: int) -> Rows:
    """For each layer how many of its best rows to keep, `total` together, such that all cover the same share
    of their attention: of all rows, those that come when the least has been covered before them. Protected
    rows come first."""
    before = [_covered_before(s, p) for s, p in zip(scores, protected, strict=True)]
    layer = np.repeat(np.arange(len(scores)), [len(b) for b in before])
    chosen = np.argsort(np.concatenate(before), kind="stable")[:total]
    spare = max(total - len(layer), 0) // len(scores)  # more than there are rows: room for later ones
    return (np.bincount(layer[chosen], minlength=len(scores)) + spare).astype(np.int32)


def _covered_before(scores: F32, protected: Mask) -> F32:
    """For a layer's rows, best first: the share of its attention that the rows before hold; -1 for protected
    ones."""
    order = np.argsort(-np.where(protected, np.float32(np.inf), scores), kind="stable")
    held = np.cumsum(scores[order] / (float(scores.sum(dtype=np.float64)) or 1.0))
    return np.where(protected[order], -1.0, np.append(0.0, held[:-1])).astype(np.float32)
