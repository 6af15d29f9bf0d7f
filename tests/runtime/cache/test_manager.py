"""When a policy acts and what it observes, as a function of lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from tests.runtime.cache.fake import FakeCache, feed
from tilewright.runtime.cache import CacheManager, Progress, Protected, parse_policy
from tilewright.runtime.cache.access import CacheAccess, Mask, Rows
from tilewright.runtime.cache.policy import Observe, compress, fraction_of, others, top
from tilewright.runtime.errors import SessionError


@dataclass(frozen=True)
class Watched(Protected):
    """Observes the last three queries before it acts."""

    name: ClassVar[str] = "watched"
    slack: int = 5

    @property
    def observe(self) -> Observe:
        return 3


@dataclass(frozen=True)
class Once(Watched):
    """The same, after prompts only."""

    name: ClassVar[str] = "once"
    decodes: ClassVar[bool] = False


def lengths(manager: CacheManager, items: list[int], chunk: int) -> tuple[list[int], list[int]]:
    """(lengths at which the policy acted, positions whose queries were observed)."""
    cache, acts, seen = FakeCache([(2, 1)]), list[int](), list[int]()
    for tokens in items:
        manager.begin(cache.progress, tokens)
        for lo in range(0, tokens, chunk):
            n, at = min(chunk, tokens - lo), cache.progress.length
            seen += [at + r for r in manager.observed(cache.progress, n)]
            for i in range(n):
                cache.progress.length = at + i
                cache.token(False)
            cache.progress.length = at
            if manager.advance(cache.progress, n, cache):
                acts.append(cache.progress.length)
    return acts, seen


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
def test_lengths_alone_decide(chunk: int) -> None:
    items = [8, *[1] * 12, 6, 1, 1, 1, 1, 1]
    acts, seen = lengths(CacheManager(Watched(budget=4)), items, chunk)
    assert acts == [8, 13, 18, 26, 31]
    assert seen == [5, 6, 7, 10, 11, 12, 15, 16, 17, 23, 24, 25, 28, 29, 30]
    acts, seen = lengths(CacheManager(Once(budget=4)), items, chunk)
    assert (acts, seen) == ([8, 26], [5, 6, 7, 23, 24, 25])


def test_single_tokens_from_the_start() -> None:
    acts, _ = lengths(CacheManager(Watched(budget=4)), [1] * 12, 1)
    assert acts == [5, 10]


def test_scores_start_afresh_after_each_act() -> None:
    cache, manager = FakeCache([(2, 1)]), CacheManager(Watched(budget=4))
    feed(cache, manager, 20)
    assert not cache.scores(0, 0).any()
    for _ in range(4):
        feed(cache, manager, 1)
    assert np.isclose(cache.scores(0, 0).sum(), 2 * 2)  # two of four queries, two query heads


def test_forked_and_truncated_sequences() -> None:
    p = Progress(30, 20, 29, 30, {"x": np.ones(2, np.float32)})
    fork = p.copy()
    fork.memory["x"][0] = 5
    assert p.memory["x"][0] == 1 and fork.prompt == 20
    fork.truncate(12)
    assert (fork.length, fork.prompt) == (12, 12) and p.length == 30


def test_a_policy_that_needs_attention_where_none_is_recorded() -> None:
    with pytest.raises(SessionError) as e:
        CacheManager(Watched(), emits=False)
    assert str(e.value) == (
        "cache policy watched(budget=0.2): needs the attention that tokens receive, which this artifact does "
        'not record\n  help: compile it with cache="watched(budget=0.2)", or use a policy that needs none, '
        "such as window"
    )
    assert CacheManager(parse_policy("window"), emits=False)


def test_fractions_never_go_below_the_protected_tokens() -> None:
    cache = FakeCache([(2, 1)], progress=Progress(length=100, prompt=50))
    assert Watched(budget=0.29).rows(FakeCache([(2, 1)], progress=Progress(100, 100))) == 29
    assert Watched(budget=0.2).rows(cache) == 10
    assert Watched(budget=0.02, sinks=4, recent=8).rows(cache) == 12
    assert Watched(budget=40).rows(cache) == 40
    assert fraction_of(0.29, 100) == 29 and fraction_of(0.1, 9) == 0


def test_ties_go_to_the_lower_index() -> None:
    assert top(np.array([1, 3, 1, 3, 1], np.float32), 3).tolist() == [0, 1, 3]
    assert top(np.zeros(5, np.float32), 2).tolist() == [0, 1]
    assert others(np.array([0, 3], np.int32), 5).tolist() == [1, 2, 4]


@pytest.mark.parametrize("rows", [[3, 1], [1, 1], [0, 99], list(range(8))])
def test_a_wrong_selection_is_refused(rows: list[int]) -> None:
    @dataclass(frozen=True)
    class Wrong(Protected):
        name: ClassVar[str] = "wrong"

        def select(self, cache: CacheAccess, layer: int, head: int, scores: object, count: int) -> Rows:
            return np.array(rows, np.int32)

    cache = FakeCache([(2, 1)])
    with pytest.raises(SessionError, match=r"select: expected at most 4 ascending rows from 0 to 9, got"):
        feed(cache, CacheManager(Wrong(budget=4)), 10)


def test_rows_that_are_not_admitted_go_even_within_the_budget() -> None:
    @dataclass(frozen=True)
    class Even(Protected):
        name: ClassVar[str] = "even"

        def admit(self, cache: CacheAccess, layer: int, head: int) -> Mask:
            return np.asarray(cache.positions(layer, head) % 2 == 0)

    cache = FakeCache([(2, 1)])
    feed(cache, CacheManager(Even(budget=100)), 10)
    assert cache.positions(0, 0).tolist() == [0, 2, 4, 6, 8]
    feed(cache, CacheManager(Even(budget=8, recent=1)), 10)
    assert cache.positions(0, 0).tolist() == [0, 2, 4, 6, 8, 10, 12, 19]


def test_compress_leaves_layers_within_their_budget_alone() -> None:
    cache = FakeCache([(2, 1), (2, 1)])
    feed(cache, CacheManager(parse_policy("full")), 10)
    compress(parse_policy("random(100)"), cache)
    assert cache.evictions == 0
