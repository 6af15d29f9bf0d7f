"""The base of cache policies: a frozen dataclass of options, and hooks with defaults.

A policy acts on one sequence, when `manager.py` says. `compress` asks the hooks in order: `budgets` (rows for
each head), `admit` (which rows may stay at all), `score` (how important each is), `select` (the rows that
stay), `evict` (make it so), `merge` (fold what goes into what stays). A new policy overrides what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from tilewright.runtime.cache.access import F32, CacheAccess, Mask, Rows
from tilewright.runtime.cache.options import check_options, options_text, refuse
from tilewright.runtime.errors import SessionError

#: which queries' attention is added to the scores: of none, of all, or of the last w before the policy acts
Observe = int | Literal["none", "all"]
#: a number of rows per head (int), or a fraction of the prompt's length (float)
Budget = int | float


@dataclass(frozen=True)
class CachePolicy:
    """Keeps every row unless `budgets` says otherwise. Options are the fields."""

    name: ClassVar[str] = ""
    #: whether it also acts during decode, and not only after prompts
    decodes: ClassVar[bool] = True
    #: whether queries are observed during decode too, and not only those of prompts
    observes_decode: ClassVar[bool] = True
    #: whether a model compiled with it provides what any policy needs, since sessions will choose theirs
    defers: ClassVar[bool] = False
    #: whether it reads or writes keys and values
    reads: ClassVar[bool] = False
    #: whether it removes rows
    evicts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_options(self)
        self.check()

    def __str__(self) -> str:
        """The text that `parse_policy` reads: `name(option=value, …)`, without options at their defaults."""
        return options_text(self)

    # ------------------------------------------------------------ what it needs
    @property
    def observe(self) -> Observe:
        """Which queries' attention it needs in `cache.scores`."""
        return "none"

    @property
    def selects(self) -> str:
        """How decoded tokens choose the blocks of rows that they read, as the caches of an artifact state it;
        empty: they read all."""
        return ""

    @property
    def every(self) -> int:
        """Tokens between two times that it acts during decode, which is how far the rows may exceed the
        budget."""
        return 16

    def check(self) -> None:
        """Refuse options that do not go together, with `refuse`."""

    # ------------------------------------------------------------ hooks
    def choice(self, length: int, prompt: int) -> tuple[int, int, int]:
        """What the next token reads where the policy `selects`: how many blocks, and how many of them are the
        first and the last ones of the sequence, which has `length` tokens."""
        raise NotImplementedError(f"cache policy {self.name} selects no blocks")

    def budgets(self, cache: CacheAccess) -> list[Rows]:
        """For each layer [heads]: how many rows each head keeps at most."""
        return [full_rows(cache, layer, cache.length) for layer in range(cache.layers)]

    def admit(self, cache: CacheAccess, layer: int, head: int) -> Mask:
        """[n] rows that may stay; the others go, whatever the budget."""
        return np.ones(len(cache.positions(layer, head)), bool)

    def protected(self, cache: CacheAccess, layer: int, head: int) -> Mask:
        """[n] rows that stay, whatever their score."""
        return np.zeros(len(cache.positions(layer, head)), bool)

    def score(self, cache: CacheAccess, layer: int, head: int) -> F32:
        """[n] importance of each row. By default the observed attention."""
        return cache.scores(layer, head)

    def select(self, cache: CacheAccess, layer: int, head: int, scores: F32, count: int) -> Rows:
        """The rows that stay, ascending, at most `count`. Scores are infinite where a row is protected and
        minus infinity where it is not admitted."""
        return top(scores, count)

    def leader(self, cache: CacheAccess, layer: int) -> int:
        """The layer whose selection this one uses: itself, or an earlier one with as many heads."""
        return layer

    def evict(self, cache: CacheAccess, layer: int, kept: Sequence[Rows]) -> None:
        """Keep these rows of each head, after what goes was merged into them."""
        for head, rows in enumerate(kept):
            gone = others(rows, len(cache.positions(layer, head)))
            if gone.size:
                self.merge(cache, layer, head, rows, gone)
        cache.keep(layer, kept)

    def merge(self, cache: CacheAccess, layer: int, head: int, kept: Rows, gone: Rows) -> None:
        """Fold the rows that go into those that stay, with `cache.write`. By default nothing."""


@dataclass(frozen=True)
class Budgeted(CachePolicy):
    """A policy with one budget for every head, of which rows at both ends are kept whatever their score."""

    budget: Budget = 0.2

    def edges(self, rows: int) -> tuple[int, int]:
        """How many of the first and of the last rows a budget of `rows` protects."""
        return 0, 1

    def check(self) -> None:
        first, last = self.edges(int(self.budget))
        if isinstance(self.budget, int) and self.budget < max(first + last, 1):
            raise SessionError(
                f"budget: expected at least {max(first + last, 1)} tokens, got {self.budget}: "
                f"the first {first} and the last {last} are protected",
                f"cache policy {self.name}",
                "give a larger budget, or protect fewer",
            )

    def rows(self, cache: CacheAccess) -> int:
        """The budget in rows: a fraction is of the latest prompt's length, or of the sequence's if it has no
        prompt, and never less than the protected rows."""
        if isinstance(self.budget, int):
            return self.budget
        rows = fraction_of(self.budget, cache.prompt or cache.length)
        return max(rows, sum(self.edges(rows)), 1)

    def budgets(self, cache: CacheAccess) -> list[Rows]:
        return [full_rows(cache, layer, self.rows(cache)) for layer in range(cache.layers)]

    def protected(self, cache: CacheAccess, layer: int, head: int) -> Mask:
        return ends(len(cache.positions(layer, head)), *self.edges(self.rows(cache)))


@dataclass(frozen=True)
class Ends(Budgeted):
    """The first `sinks` tokens are kept, and the `recent` last ones: a number, or a part of the budget."""

    sinks: int = 0
    recent: Budget = 1

    def edges(self, rows: int) -> tuple[int, int]:
        return self.sinks, self.recent if isinstance(self.recent, int) else fraction_of(self.recent, rows)


@dataclass(frozen=True)
class Protected(Ends):
    """A policy that also acts during decode. `slack`: tokens between evictions there."""

    slack: int = 16

    @property
    def every(self) -> int:
        return self.slack

    def check(self) -> None:
        at_least_one(self, "slack", self.slack)
        super().check()


def compress(policy: CachePolicy, cache: CacheAccess) -> None:
    """Bring one sequence within the budget of a policy; layers that hold no more than theirs are left
    alone."""
    budgets, chosen = policy.budgets(cache), dict[int, list[Rows]]()
    for layer in range(cache.layers):
        leader, heads = policy.leader(cache, layer), range(cache.heads(layer))
        if leader == layer:
            chosen[layer] = [_chosen(policy, cache, layer, head, int(budgets[layer][head])) for head in heads]
        else:
            chosen[layer] = chosen[leader]
    for layer, kept in chosen.items():
        if any(len(rows) < len(cache.positions(layer, head)) for head, rows in enumerate(kept)):
            policy.evict(cache, layer, kept)


def _chosen(policy: CachePolicy, cache: CacheAccess, layer: int, head: int, count: int) -> Rows:
    """The rows of one head that stay."""
    n, admitted = len(cache.positions(layer, head)), policy.admit(cache, layer, head)
    if n <= count:
        return np.flatnonzero(admitted).astype(np.int32)
    scores = np.where(admitted, policy.score(cache, layer, head), np.float32(-np.inf))
    scores = np.where(policy.protected(cache, layer, head), np.float32(np.inf), scores)
    rows = policy.select(cache, layer, head, scores.astype(np.float32), count)
    if rows.size > max(count, 0) or (np.diff(rows) <= 0).any() or not ((rows >= 0) & (rows < n)).all():
        raise SessionError(
            f"select: expected at most {count} ascending rows from 0 to {n - 1}, got {rows[:8].tolist()} …",
            f"cache policy {policy}, layer {layer}, head {head}",
            "correct its select",
        )
    return rows[scores[rows] > -np.inf]


# ---------------------------------------------------------------- helpers for policies
def at_least_one(policy: CachePolicy, option: str, value: int) -> int:
    """An option that may not be 0."""
    return value if value >= 1 else refuse(policy, option, "at least 1", value)


def at_prompt(cache: CacheAccess) -> bool:
    """Whether a prompt has just been completed, rather than a token decoded after one."""
    return cache.prompt in (0, cache.length)


def full_rows(cache: CacheAccess, layer: int, rows: int) -> Rows:
    """The same number of rows for every head of a layer."""
    return np.full(cache.heads(layer), rows, np.int32)


def fraction_of(share: float, tokens: int) -> int:
    """Whole tokens in a share; 0.29 of 100 is 29, though the product of floats is below."""
    return int(share * tokens + 1e-6)


def top(scores: F32, count: int) -> Rows:
    """The `count` highest scores as ascending indices; of equal ones, those with lower indices."""
    return np.sort(np.argsort(-scores, kind="stable")[:count]).astype(np.int32)


def ends(n: int, first: int, last: int) -> Mask:
    """[n] the first and the last rows."""
    at = np.arange(n)
    return (at < first) | (at >= n - last)


def others(rows: Rows, n: int) -> Rows:
    """The rows of 0..n that are not among `rows`, ascending."""
    absent = np.ones(n, bool)
    absent[rows] = False
    return np.flatnonzero(absent).astype(np.int32)
