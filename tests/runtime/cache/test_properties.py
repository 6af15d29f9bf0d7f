"""Every policy: a budget that suffices changes nothing; what is kept is sorted, unique, within budget.

Over a NumPy cache with one KV head per query head, groups of query heads, one KV head, and all three in one
model. The same holds in any chunking.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.cache.fake import FakeCache, Head, feed, kept
from tilewright.runtime.cache import CacheManager, parse_policy
from tilewright.runtime.cache.registry import HOMES, policy_class

#: (query heads, KV heads) of each layer
MODELS = {
    "mha": [(4, 4), (4, 4)],
    "gqa": [(6, 2), (6, 2), (6, 2), (6, 2)],
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
    "h2o(budget=0.2, slack=4)": (12, 0, 6),
    "tova(budget=12, sinks=1, slack=4)": (12, 1, 1),
    "snapkv(budget=0.2, window=4, pool=3)": (12, 0, 4),
    "pyramidkv(budget=0.2, window=4)": (12, 0, 4),
    "scalekv(budget=16, window=4, shares=SHARES)": (16, 0, 4),
    "windowkv(budget=20, size=3, observed=4)": (20, 0, 4),
    "windowkv(budget=20, size=3, observed=4, mode=localization, group=1)": (20, 0, 4),
    "zipvl(tau=0.6, probes=4)": (45, 0, 4),
    "prefixkv(budget=0.2, distance=5, slack=4)": (12, 4, 1),
    "elastic(budget=0.2, distance=5, slack=4)": (12, 4, 1),
    "d2o(budget=0.2, slack=4)": (12, 4, 6),
    "lookm(budget=0.2, images=5:40)": (12, 0, 6),
    "duo(gates=GATES, full=0, sinks=2, recent=8, slack=4)": (10, 2, 8),
    "trimkv(budget=12, gates=DECAY, slack=4)": (12, 0, 1),
    "mpcache(keep=0.2, observed=4)": (12, 0, 4),
}
#: one text per policy whose budget no prompt here exceeds
LARGE = (
    "full",
    "window(recent=100)",
    "window(recent=1.0)",
    "random(budget=100)",
    "random(budget=1.0)",
    "h2o(budget=1.0)",
    "tova(budget=100)",
    "snapkv(budget=1.0)",
    "pyramidkv(budget=2000)",
    "scalekv(budget=400, shares=SHARES)",
    "windowkv(budget=2000)",
    "zipvl(tau=1)",
    "prefixkv(budget=1.0)",
    "elastic(budget=1.0)",
    "d2o(budget=2000)",
    "lookm(budget=1.0)",
    "duo(gates=GATES, full=1)",
    "duo(gates=GATES, full=0)",
    "trimkv(budget=100, gates=DECAY)",
    "mpcache(keep=1.0)",
)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Supplied numbers for each model: shares of layers, gates of heads, decays."""
    folder = tmp_path_factory.mktemp("tables")
    for name, shapes in MODELS.items():
        heads = max(kv for _, kv in shapes)
        draw = np.random.default_rng(3)
        np.save(folder / f"SHARES-{name}.npy", draw.uniform(1, 2, len(shapes)))
        np.save(folder / f"GATES-{name}.npy", draw.random((len(shapes), heads)))
        np.save(folder / f"DECAY-{name}.npy", -draw.random((len(shapes), heads, 100)))
    return folder


def run(
    tables: Path, text: str, model: str, prompt: int = 60, decode: int = 0, chunk: int = 1 << 30
) -> FakeCache:
    """A prompt and single tokens after it."""
    cache, manager = FakeCache(MODELS[model]), managed(tables, text, model)
    feed(cache, manager, prompt, chunk)
    for _ in range(decode):
        feed(cache, manager, 1)
    return cache


def managed(tables: Path, text: str, model: str) -> CacheManager:
    for name in ("SHARES", "GATES", "DECAY"):
        text = text.replace(f"={name}", f"={tables}/{name}-{model}.npy")
    return CacheManager(parse_policy(text))


def rows_of(cache: FakeCache) -> list[Head]:
    """The rows of every head of every layer."""
    return [head for layer in cache.held for head in layer]


def test_every_policy_is_listed() -> None:
    evicting = {n for n in HOMES if policy_class(n).evicts}
    assert {t.partition("(")[0] for t in SMALL} == evicting
    assert {t.partition("(")[0] for t in LARGE} == evicting | {"full"}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("text", LARGE)
def test_a_budget_that_suffices_changes_nothing(tables: Path, text: str, model: str) -> None:
    plain, cache = run(tables, "full", model), run(tables, text, model)
    assert cache.evictions == 0 and kept(cache) == kept(plain)
    manager = managed(tables, text, model)
    for a, b in zip(feed(cache, manager, 1), feed(plain, manager, 1), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("decode", [0, 8, 11])
@pytest.mark.parametrize("text", SMALL)
def test_what_is_kept(tables: Path, text: str, decode: int, model: str) -> None:
    rows, first, last = SMALL[text]
    policy, cache = managed(tables, text, model).policy, run(tables, text, model, decode=decode)
    since = decode % policy.every if policy.decodes else decode
    means = [sum(map(len, layer)) / len(layer) for layer in kept(cache)]
    assert sum(means) <= (rows + since) * len(means) and cache.evictions
    for head in (head for layer in kept(cache) for head in layer):
        assert head == sorted(set(head)) and head[-1] < 60 + decode
        assert set(head) >= {*range(first), *range(60 + decode - last - since, 60 + decode)}


@pytest.mark.parametrize("text", SMALL)
def test_chunks_do_not_change_what_is_kept(tables: Path, text: str) -> None:
    whole = run(tables, text, "mixed", decode=9)
    for chunk in (1, 7, 59):
        cut = run(tables, text, "mixed", decode=9, chunk=chunk)
        assert kept(cut) == kept(whole)
        for a, b in zip(rows_of(cut), rows_of(whole), strict=True):
            assert np.array_equal(a.keys, b.keys) and np.array_equal(a.values, b.values)


@pytest.mark.parametrize("text", [*SMALL, *LARGE])
def test_text_parses_back(text: str) -> None:
    policy = parse_policy(text)
    assert parse_policy(str(policy)) == policy and str(parse_policy(str(policy))) == str(policy)


@pytest.mark.parametrize("text", SMALL)
def test_a_fork_goes_on_alone(tables: Path, text: str) -> None:
    """Two copies of a sequence that are given the same tokens keep the same rows, whatever the other does."""
    plain, cache = run(tables, text, "gqa"), run(tables, text, "gqa")
    fork = cache.copy()
    manager = managed(tables, text, "gqa")
    for _ in range(9):
        feed(cache, manager, 1)
    assert kept(fork) == kept(plain)
    for _ in range(9):
        feed(fork, manager, 1)
    assert kept(fork) == kept(cache)
