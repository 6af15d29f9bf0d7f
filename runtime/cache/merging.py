"""Policies that fold evicted rows into those that stay: Elastic Cache, D2O and LOOK-M.

Keys are merged as attention uses them, after rotation, as the published code does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.cache.access import F32, CacheAccess, Rows
from tilewright.runtime.cache.heavy import FixedSlot
from tilewright.runtime.cache.options import refuse
from tilewright.runtime.cache.policy import Budget, Ends, Observe, Protected, at_prompt, full_rows
from tilewright.runtime.cache.registry import register_policy
from tilewright.runtime.cache.tables import shared_out

#: keys that are compared with all kept ones at a time
BLOCK = 1024


@register_policy
@dataclass(frozen=True)
class Elastic(FixedSlot):
    """Rows with the most attention of the prompt, the same in all heads of a layer; each other row is
    averaged into the kept one nearest in position ("Efficient Inference of Vision Instruction-Following
    Models with Elastic Cache"). The first 4 rows and the last stay. Nothing is merged during decode."""

    name: ClassVar[str] = "elastic"
    reads: ClassVar[bool] = True

    def merge(self, cache: CacheAccess, layer: int, head: int, kept: Rows, gone: Rows) -> None:
        if at_prompt(cache):
            positions = cache.positions(layer, head)
            anchors = nearest(positions[gone], positions[kept])
            fold(cache, layer, head, kept, gone, anchors, np.ones(len(gone), np.float32))


@register_policy
@dataclass(frozen=True)
class D2O(Protected):
    """H2O with 4 sinks that merges an evicted row into the kept one whose key is most similar, if the cosine
    is at least a threshold, and drops it otherwise ("D2O: Dynamic Discriminative Operations for Efficient
    Long-Context Inference of Large Language Models"). The threshold is the mean similarity, averaged half and
    half with the one before. A row weighs the exponential of its similarity, the kept one e. Layers whose
    attention varies less from row to row get more of the total: their share is exp(-variance / its mean),
    our reading of the paper."""

    name: ClassVar[str] = "d2o"
    reads: ClassVar[bool] = True
    sinks: int = 4
    recent: Budget = 0.5

    @property
    def observe(self) -> Observe:
        return "all"

    def budgets(self, cache: CacheAccess) -> list[Rows]:
        if at_prompt(cache):
            total, least = self.rows(cache) * cache.layers, sum(self.edges(self.rows(cache)))
            variance = np.array([variation(cache, layer) for layer in range(cache.layers)])
            shares = np.exp(-variance / (variance.mean() or 1.0))
            cache.memory["budgets"] = shared_out(total, shares, least).astype(np.float32)
        return [full_rows(cache, layer, int(n)) for layer, n in enumerate(cache.memory["budgets"])]

    def merge(self, cache: CacheAccess, layer: int, head: int, kept: Rows, gone: Rows) -> None:
        keys = cache.keys(layer, head)
        anchors, similar = most_similar(keys[gone], keys[kept])
        merged = similar >= self._threshold(cache, layer, head, similar.mean())
        weights = np.exp(similar[merged] - 1)  # the kept row's own is e: all are divided by it
        fold(cache, layer, head, kept, gone[merged], anchors[merged], weights)

    @staticmethod
    def _threshold(cache: CacheAccess, layer: int, head: int, mean: np.float32) -> np.float32:
        """The threshold of a head after a mean similarity was seen; it is remembered."""
        unset = np.full((cache.layers, max(map(cache.heads, range(cache.layers)))), np.nan, np.float32)
        known = cache.memory.setdefault("threshold", unset)
        before = known[layer, head]
        known[layer, head] = mean if np.isnan(before) else (before + mean) / 2
        return np.float32(known[layer, head])


@register_policy
@dataclass(frozen=True)
class LookM(Ends):
    """H2O over the prompt in which text comes before images, and evicted rows are merged into the kept ones
    whose keys are most similar ("LOOK-M: Look-Once Optimization in KV Cache for Efficient Multimodal
    Long-Context Inference"; 10% heavy and 10% recent). `images`: positions of image tokens as
    `from:to+from:to`, each up to but without `to`. `how` rows merge: `average` of all, `pivot` (each is first
    averaged with the kept row), or `weighted` by similarity."""

    name: ClassVar[str] = "lookm"
    decodes: ClassVar[bool] = False
    reads: ClassVar[bool] = True
    recent: Budget = 0.5
    images: str = ""
    how: str = "pivot"

    @property
    def observe(self) -> Observe:
        return "all"

    def check(self) -> None:
        if self.images and not re.fullmatch(r"\d+:\d+(\+\d+:\d+)*", self.images):
            refuse(self, "images", "positions such as 1:577+600:1176", self.images)
        if self.how not in ("average", "pivot", "weighted"):
            refuse(self, "how", "average, pivot or weighted", self.how)
        super().check()

    def score(self, cache: CacheAccess, layer: int, head: int) -> F32:
        scores, positions = cache.scores(layer, head), cache.positions(layer, head)
        return np.where(self._image(positions), scores, scores + scores.max() + 1)

    def _image(self, positions: Rows) -> NDArray[np.bool_]:
        """[n] which rows are of image tokens."""
        image = np.zeros(len(positions), np.bool_)
        for start, end in (map(int, span.split(":")) for span in self.images.split("+") if span):
            image[(positions >= start) & (positions < end)] = True
        return image

    def merge(self, cache: CacheAccess, layer: int, head: int, kept: Rows, gone: Rows) -> None:
        keys = cache.keys(layer, head)
        anchors, similar = most_similar(keys[gone], keys[kept])
        count = np.bincount(anchors, minlength=len(kept)).astype(np.float32)
        match self.how:
            case "average":
                fold(cache, layer, head, kept, gone, anchors, np.ones_like(similar))
            case "pivot":
                fold(
                    cache,
                    layer,
                    head,
                    kept,
                    gone,
                    anchors,
                    np.full_like(similar, 0.5),
                    own=(1 + count / 2).astype(np.float32),
                )
            case _:
                fold(cache, layer, head, kept, gone, anchors, similar, total=1 + count)


# ---------------------------------------------------------------- folding rows into others
def fold(
    cache: CacheAccess,
    layer: int,
    head: int,
    kept: Rows,
    gone: Rows,
    anchors: Rows,
    weights: F32,
    own: F32 | float = 1.0,
    total: F32 | None = None,
) -> None:
    """Add rows that go, times `weights` [m], to kept rows times `own` [len(kept)]; the sum is divided by
    `total` [len(kept)], by default that of all weights. `anchors` [m]: which of the kept rows each goes to.
    Keys and values alike; rows that receive nothing are not written."""
    if not gone.size:
        return
    mine = np.broadcast_to(np.asarray(own, np.float32), len(kept))
    sums = mine + np.bincount(anchors, weights, len(kept)).astype(np.float32) if total is None else total
    into = np.unique(anchors)
    new = []
    for rows in (cache.keys(layer, head), cache.values(layer, head)):
        merged = rows[kept] * mine[:, None]
        np.add.at(merged, anchors, rows[gone] * weights[:, None])
        new.append((merged / sums[:, None])[into].astype(np.float32))
    cache.write(layer, head, kept[into], *new)


def nearest(positions: Rows, anchors: Rows) -> Rows:
    """[m] for each position the index of the nearest anchor; of two as near, the one before. Both ascend."""
    after = np.clip(np.searchsorted(anchors, positions), 1, max(len(anchors) - 1, 1))
    after = np.minimum(after, len(anchors) - 1)
    before = np.maximum(after - 1, 0)
    closer = np.abs(anchors[after] - positions) < np.abs(positions - anchors[before])
    return np.where(closer, after, before).astype(np.int32)


def most_similar(keys: F32, anchors: F32) -> tuple[Rows, F32]:
    """[m] for each key the index of the anchor with the largest cosine, and that cosine."""
    a, at, best = unit(anchors), [], []
    for lo in range(0, len(keys), BLOCK):
        cosines = unit(keys[lo : lo + BLOCK]) @ a.T
        at.append(cosines.argmax(1))
        best.append(cosines.max(1))
    return np.concatenate(at).astype(np.int32), np.concatenate(best).astype(np.float32)


def unit(x: F32) -> F32:
    """Rows divided by their lengths; zeros stay zeros."""
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(lengths > 0, lengths, 1), np.float32)


def variation(cache: CacheAccess, layer: int) -> float:
    """The variance from row to row of the attention that they received, in units of its mean; the mean over
    heads."""
    heads = [cache.scores(layer, head).astype(np.float64) for head in range(cache.heads(layer))]
    return float(np.mean([np.var(s / (s.mean() or 1.0)) for s in heads]))
