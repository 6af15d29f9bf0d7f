"""Every policy: a budget that suffices changes nothing; what is kept is sorted, unique, within budget.

Over a NumPy cache with one KV head per query head, groups of query heads, one KV head, and all three in one
model. The same holds in any chunking.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.cache.fake import FakeCache, Head, feed, kept
from tilewright.runtime.cache import CacheManager, known_policies, parse_policy

#: (query heads, KV heads) of each layer
MODELS = {
    "mha": [(4, 4), (4, 4)],
    "gqa": [(6, 2), (6, 2), (6, 2)],
    "mqa": [(4, 1), (4, 1)],
    "mixed": [(4, 4), (6, 2), (4, 1)],
}
#: one text per policy whose budget a prompt of 60 tokens exceeds, with the rows that a head then has at most
#: on average, and the first and last tokens that are always kept
SMALL = {
    "window(sinks=2, recent=10, slack=4)": (12, 2, 10),
    "window(sinks=2, recent=0.2, slack=4)": (12, 2, 10),
    "random(budget=0.2, sinks=3, recent=2, slack=4)": (12, 3, 2),
    "random(budget=12, slack=4, seed=5)": (12, 0, 1),
}
#: one text per policy whose budget no prompt here exceeds
LARGE = ("full", "window(recent=100)", "window(recent=1.0)", "random(budget=100)", "random(budget=1.0)")


def run(text: str, model: str, prompt: int = 60, decode: int = 0, chunk: int = 1 << 30) -> FakeCache:
    cache, manager = FakeCache(MODELS[model]), CacheManager(parse_policy(text))
    feed(cache, manager, prompt, chunk)
    for _ in range(decode):
        feed(cache, manager, 1)
    return cache


def rows_of(cache: FakeCache) -> list[Head]:
    """The rows of every head of every layer."""
    return [head for layer in cache.held for head in layer]


def test_every_policy_is_listed() -> None:
    assert {t.partition("(")[0] for t in SMALL} == set(known_policies()) - {"full"}
    assert {t.partition("(")[0] for t in LARGE} == set(known_policies())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("text", LARGE)
def test_a_budget_that_suffices_changes_nothing(text: str, model: str) -> None:
    plain, cache = run("full", model), run(text, model)
    assert cache.evictions == 0 and kept(cache) == kept(plain)
    manager = CacheManager(parse_policy(text))
    for a, b in zip(feed(cache, manager, 1), feed(plain, manager, 1), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("decode", [0, 1, 8, 11])
@pytest.mark.parametrize("text", SMALL)
def test_what_is_kept(text: str, decode: int, model: str) -> None:
    rows, first, last = SMALL[text]
    policy = parse_policy(text)
    cache = run(text, model, decode=decode)
    since = decode % policy.every if policy.decodes else decode
    heads = [head for layer in kept(cache) for head in layer]
    assert sum(map(len, heads)) <= (rows + since) * len(heads)
    for head in heads:
        assert head == sorted(set(head)) and head[-1] < 60 + decode
        assert set(head) >= {*range(first), *range(60 + decode - last - since, 60 + decode)}


@pytest.mark.parametrize("text", SMALL)
def test_chunks_do_not_change_what_is_kept(text: str) -> None:
    whole = run(text, "mixed", decode=9)
    for chunk in (1, 7, 59):
        cut = run(text, "mixed", decode=9, chunk=chunk)
        assert kept(cut) == kept(whole)
        for a, b in zip(rows_of(cut), rows_of(whole), strict=True):
            assert np.array_equal(a.keys, b.keys) and np.array_equal(a.values, b.values)


@pytest.mark.parametrize("text", [*SMALL, *LARGE])
def test_text_parses_back(text: str) -> None:
    policy = parse_policy(text)
    assert parse_policy(str(policy)) == policy and str(parse_policy(str(policy))) == str(policy)
