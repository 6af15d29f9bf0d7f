"""Policies that choose for each decoded token which blocks of the cache its attention reads.

Nothing is evicted, except where a policy says so: what is not read for one token may be read for the next.
How blocks are scored is compiled into the model (`selects`); how many are read follows from the policy's
options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tilewright.runtime.cache.access import CacheAccess, Mask, Rows
from tilewright.runtime.cache.options import refuse
from tilewright.runtime.cache.policy import (
    Budget,
    CachePolicy,
    Observe,
    at_least_one,
    ends,
    fraction_of,
    full_rows,
)
from tilewright.runtime.cache.registry import register_policy
from tilewright.runtime.errors import SessionError

#: rows of a block that models can be compiled for
BLOCKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Selecting(CachePolicy):
    """Each decoded token reads `budget` tokens in whole blocks of `block`: the first `sinks`, the `recent`
    last ones, and those between with the best scores for its query. Prompts read all."""

    decodes: ClassVar[bool] = False
    evicts: ClassVar[bool] = False
    #: what a block's score is, and how those of the query heads that share a KV head become one
    measure: ClassVar[str] = "bound"
    pool: ClassVar[str] = "max"
    budget: Budget = 0.2
    block: int = 16
    sinks: int = 4
    recent: int = 16

    @property
    def selects(self) -> str:
        return f"{self.measure}(block={self.block}, pool={self.pool})"

    @property
    def edges(self) -> tuple[int, int]:
        """How many blocks hold the sinks, and how many the recent tokens at most."""
        return -(-self.sinks // self.block), (self.recent + self.block - 2) // self.block + 1

    def check(self) -> None:
        if self.block not in BLOCKS:
            refuse(self, "block", f"one of {', '.join(map(str, BLOCKS))}", self.block)
        at_least_one(self, "recent", self.recent)
        least = (sum(self.edges) + 1) * self.block
        if isinstance(self.budget, int) and self.budget < least:
            raise SessionError(
                f"budget: expected at least {least} tokens, got {self.budget}: the blocks of the first "
                f"{self.sinks} and the last {self.recent} tokens are always read, and one more",
                f"cache policy {self.name}",
                "give a larger budget, smaller blocks, or protect fewer",
            )

    def choice(self, length: int, prompt: int) -> tuple[int, int, int]:
        first, last = self.edges
        share = self.budget if isinstance(self.budget, int) else fraction_of(self.budget, prompt or length)
        return max(share // self.block, first + last + 1), first, last


@register_policy
@dataclass(frozen=True)
class Quest(Selecting):
    """Blocks by the largest score that a key within the extremes of their keys could have ("Quest:
    Query-Aware Sparsity for Efficient Long-Context LLM Inference"; blocks of 16). The paper reads everything
    in the first two layers."""

    name: ClassVar[str] = "quest"


@register_policy
@dataclass(frozen=True)
class Kinetics(Selecting):
    """Blocks by the score of their mean key, added up over the query heads of a KV head ("Kinetics:
    Rethinking Test-Time Scaling Laws")."""

    name: ClassVar[str] = "kinetics"
    measure: ClassVar[str] = "mean"
    pool: ClassVar[str] = "sum"


@register_policy
@dataclass(frozen=True)
class MPCache(Selecting):
    """Two stages: when a prompt is complete, all but the share `keep` of its tokens are evicted, by the
    attention of its last `observed` queries; of the rest each token reads the blocks with the best mixture of
    extremes, 0.6 of the largest and 0.4 of the smallest ("MPCache: MPC-Friendly KV Cache Eviction for
    Efficient Private Large Language Model Inference"). The paper observes a fifth of the prompt, first
    discards coarser blocks, and lets adjacent layers share their choice."""

    name: ClassVar[str] = "mpcache"
    evicts: ClassVar[bool] = True
    measure: ClassVar[str] = "mix"
    keep: Budget = 0.5
    observed: int = 32

    @property
    def observe(self) -> Observe:
        return self.observed

    def check(self) -> None:
        at_least_one(self, "observed", self.observed)
        super().check()

    def budgets(self, cache: CacheAccess) -> list[Rows]:
        kept = self.keep if isinstance(self.keep, int) else fraction_of(self.keep, cache.prompt)
        return [full_rows(cache, layer, max(kept, self.observed)) for layer in range(cache.layers)]

    def protected(self, cache: CacheAccess, layer: int, head: int) -> Mask:
        return ends(len(cache.positions(layer, head)), 0, self.observed)
