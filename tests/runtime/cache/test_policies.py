"""What each policy keeps, on scores and rows that are chosen by hand, as its paper says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.cache.fake import FakeCache, Head, feed, kept
from tilewright.runtime.cache import CacheManager, Progress, parse_policy
from tilewright.runtime.cache.access import F32
from tilewright.runtime.cache.coverage import equal_coverage
from tilewright.runtime.cache.merging import most_similar, nearest
from tilewright.runtime.cache.policy import compress, ends
from tilewright.runtime.cache.snap import descending, max_pool
from tilewright.runtime.cache.tables import shared_out
from tilewright.runtime.errors import SessionError


def cache_of(scores: Sequence[Sequence[Sequence[float]]], prompt: bool = True) -> FakeCache:
    """A cache whose layers' heads hold rows 0, 1, … with these scores, after a prompt or a token."""
    n, draw = len(scores[0][0]), np.random.default_rng(1)
    held = [
        [
            Head(
                np.arange(len(s), dtype=np.int32),
                *draw.normal(size=(2, len(s), 8)).astype(np.float32),
                np.asarray(s, np.float32),
            )
            for s in layer
        ]
        for layer in scores
    ]
    shapes = [(2 * len(layer), len(layer)) for layer in scores]
    return FakeCache(shapes, progress=Progress(n, n if prompt else n - 1), held=held)


def chosen(text: str, scores: Sequence[Sequence[Sequence[float]]]) -> list[list[list[int]]]:
    """The positions kept by layer and head."""
    cache = cache_of(scores)
    compress(parse_policy(text), cache)
    return kept(cache)


# ---------------------------------------------------------------- by attention
def test_h2o_keeps_heavy_and_recent_rows_of_each_head() -> None:
    scores = [[[5, 1, 4, 3, 9, 0, 0, 0], [1, 5, 4, 3, 0, 9, 0, 0]]]
    assert chosen("h2o(budget=4)", scores) == [[[0, 4, 6, 7], [1, 5, 6, 7]]]
    assert chosen("h2o(budget=4, sinks=1)", scores) == [[[0, 4, 6, 7], [0, 5, 6, 7]]]


def test_h2o_scores_grow_over_prompt_and_decode() -> None:
    """The evicted row is the one with the least attention of all queries so far."""
    plain, cache = FakeCache([(6, 2)]), FakeCache([(6, 2)])
    feed(plain, CacheManager(parse_policy("h2o(budget=100)")), 20)
    feed(cache, CacheManager(parse_policy("h2o(budget=19, recent=1, slack=1)")), 20)
    for head in range(2):
        worst = int(np.argmin(plain.scores(0, head)[:-1]))
        assert cache.positions(0, head).tolist() == [p for p in range(20) if p != worst]


def test_tova_looks_at_the_last_query_of_all_heads() -> None:
    scores = [[[5, 0, 4, 3, 0], [0, 8, 0, 0, 1]]]
    assert chosen("tova(budget=3)", scores) == [[[0, 1, 4], [0, 1, 4]]]
    cache = FakeCache([(4, 2)])
    manager = CacheManager(parse_policy("tova(budget=10, slack=1)"))
    manager.begin(cache.progress, 30)
    assert manager.observed(cache.progress, 30) == range(29, 30)


def test_snapkv_pools_and_keeps_the_window() -> None:
    scores = [[[0, 0, 9, 0, 0, 0, 5, 0, 0, 0, 99, 0]]]
    assert chosen("snapkv(budget=5, window=2, pool=3)", scores) == [[[1, 2, 3, 10, 11]]]
    assert chosen("snapkv(budget=4, window=2, pool=1)", scores) == [[[2, 6, 10, 11]]]
    assert max_pool(np.array([1, 0, 0, 5, 0], np.float32), 3).tolist() == [1, 1, 5, 5, 5]


def test_snapkv_evicts_once() -> None:
    cache, manager = FakeCache([(4, 2)]), CacheManager(parse_policy("snapkv(budget=10, window=4)"))
    feed(cache, manager, 40)
    assert not any(manager.observed(cache.progress, 1) for _ in range(1))
    for _ in range(40):
        feed(cache, manager, 1)
    assert cache.evictions == 1 and len(cache.positions(0, 0)) == 50


def test_pyramidkv_budgets_fall_and_sum_to_the_total() -> None:
    cache = FakeCache([(2, 1)] * 4, progress=Progress(1000, 1000))
    rows = [int(n[0]) for n in parse_policy("pyramidkv(budget=108)").budgets(cache)]
    assert rows == [8 + 195, 8 + 131, 8 + 68, 8 + 5] and sum(rows) <= 4 * 108
    assert descending(4, 20).mean() == 1 and descending(1, 20).tolist() == [1]


def test_scalekv_follows_the_table(tmp_path: Path) -> None:
    cache = FakeCache([(2, 1)] * 3, progress=Progress(400, 400))
    np.save(tmp_path / "even.npy", np.ones(3))
    (tmp_path / "uneven.txt").write_text("3\n2\n1\n")
    rows = {
        name: [int(n[0]) for n in parse_policy(f"scalekv(132, shares={tmp_path}/{name})").budgets(cache)]
        for name in ("even.npy", "uneven.txt")
    }
    assert rows == {"even.npy": [132] * 3, "uneven.txt": [182, 132, 82]}


def test_windowkv_keeps_whole_windows_and_layers_follow_their_leader() -> None:
    first = [1, 1, 1, 9, 0, 0, 2, 2, 2, 0, 0]
    second = [9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0]
    text = "windowkv(budget=5, size=3, observed=2, group=2)"
    assert chosen(text, [[first], [second]]) == [[[3, 4, 5, 9, 10]]] * 2
    # the better half of [1, 1, 1] and of [9, 0, 0] is [1, 1] and [9, 0]
    assert chosen(text.replace("group=2", "group=1, beta=1"), [[first], [second]])[1] == [[0, 1, 2, 9, 10]]
    even = [3, 3, 3, 8, 0, 0, 0, 0, 0, 0, 0]
    assert chosen(text, [[even], [even]])[0] == [[0, 1, 2, 9, 10]]
    assert chosen(text.replace("group", "mode=localization, group"), [[even], [even]])[0] == [
        [3, 4, 5, 9, 10]
    ]


def test_zipvl_keeps_the_fewest_rows_that_hold_the_mass() -> None:
    scores = [[[50, 30, 10, 5, 4, 1]], [[100, 0, 0, 0, 0, 0]], [[1, 1, 1, 1, 1, 1]]]
    assert chosen("zipvl(tau=0.89, probes=1)", scores) == [[[0, 1, 5]], [[5]], [[0, 1, 2, 3, 4, 5]]]
    assert chosen("zipvl(tau=0.91, probes=1)", scores)[0] == [[0, 1, 2, 5]]


# ---------------------------------------------------------------- budgets over layers
@pytest.mark.parametrize("total", [30, 57, 100, 160])
def test_prefixkv_forgets_the_same_share_in_every_layer(total: int) -> None:
    draw = np.random.default_rng(0)
    scores = [np.asarray(draw.random(60) ** power, np.float32) for power in (1, 3, 9)]
    counts = equal_coverage(scores, [ends(60, 4, 1)] * 3, total)
    assert counts.sum() == total
    assert equal_coverage(scores, [ends(60, 4, 1)] * 3, 240).tolist() == [80, 80, 80]
    ranked = [np.sort(np.append(s[4:-1], np.full(5, 1e9)))[::-1] for s in scores]
    full = [s.sum() for s in scores]
    covered = [(r[5:n].sum() + np.append(s[:4], s[-1]).sum()) / t
               for r, n, s, t in zip(ranked, counts, scores, full, strict=True) if n > 5]  # fmt: skip
    steps = [r[5] / t for r, t in zip(ranked, full, strict=True)]
    assert max(covered) - min(covered) <= 2 * max(steps)


def test_prefixkv_totals() -> None:
    cache = FakeCache([(4, 2)] * 3)
    feed(cache, CacheManager(parse_policy("prefixkv(budget=0.25)")), 80)
    held = [len(cache.positions(layer, 0)) for layer in range(3)]
    assert 55 <= sum(held) <= 60 and len(set(held)) > 1
    assert all(cache.positions(n, 0).tolist() == cache.positions(n, 1).tolist() for n in range(3))


def test_prefixkv_profile(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "shares.txt", [3.0, 1.0])
    cache = FakeCache([(2, 1)] * 2, progress=Progress(100, 100))
    rows = parse_policy(f"prefixkv(25, profile={tmp_path}/shares.txt)").budgets(cache)
    assert [n.tolist() for n in rows] == [[35], [15]]


@pytest.mark.parametrize("name", ["prefixkv", "elastic"])
def test_a_fixed_slot_makes_room_during_decode(name: str) -> None:
    cache, manager = (
        FakeCache([(2, 1)]),
        CacheManager(parse_policy(f"{name}(budget=12, distance=5, slack=1)")),
    )
    feed(cache, manager, 60)
    have = cache.positions(0, 0).tolist()
    for n in range(9):
        feed(cache, manager, 1)
        have.append(60 + n)
        del have[12 - 5]  # the place that is 5 before the end of 12
        assert cache.positions(0, 0).tolist() == have


# ---------------------------------------------------------------- merging
def test_elastic_averages_rows_into_the_nearest_anchor() -> None:
    scores = [[[9, 9, 9, 9, 0, 0, 5, 0, 0, 9]]]
    plain, cache = cache_of(scores), cache_of(scores)
    compress(parse_policy("elastic(budget=6)"), cache)
    assert kept(cache) == [[[0, 1, 2, 3, 6, 9]]]
    for before, after in ((plain.keys, cache.keys), (plain.values, cache.values)):
        groups = [[0], [1], [2], [3, 4], [5, 6, 7], [8, 9]]
        means = np.stack([before(0, 0)[g].mean(0) for g in groups])
        assert np.allclose(after(0, 0), means, atol=1e-6)


def test_the_nearest_anchor_is_the_earlier_of_two() -> None:
    def at(positions: list[int], anchors: list[int]) -> list[int]:
        return nearest(np.array(positions, np.int32), np.array(anchors, np.int32)).tolist()

    assert at([0, 3, 5, 7, 12], [1, 5, 9]) == [0, 0, 1, 1, 2]
    assert at([0, 9], [4]) == [0, 0]


def test_d2o_merges_identical_keys_to_themselves() -> None:
    scores = [[[0] * 4 + [1, 9, 1, 1, 1, 1]]]
    cache = cache_of(scores)
    cache.held[0][0].keys[:] = cache.held[0][0].keys[0]
    keys = cache.keys(0, 0)
    compress(parse_policy("d2o(budget=6, recent=1)"), cache)
    assert kept(cache) == [[[0, 1, 2, 3, 5, 9]]]
    assert np.allclose(cache.keys(0, 0), keys[:6], atol=1e-6)
    assert np.allclose(cache.memory["threshold"], 1, atol=1e-6)


def test_d2o_merges_only_what_is_similar_enough() -> None:
    scores = [[[9, 9, 9, 9, 0, 0, 9]]]
    cache = cache_of(scores)
    head = cache.held[0][0]
    head.keys[:] = np.eye(8, dtype=np.float32)[:7]
    head.keys[4], head.keys[5] = 2 * head.keys[1], head.keys[5] + 0.1 * head.keys[2]
    before = head.values.copy()
    compress(parse_policy("d2o(budget=5, recent=1)"), cache)
    assert np.allclose(cache.keys(0, 0)[1], 1.5 * np.eye(8)[1])
    assert np.allclose(cache.values(0, 0)[1], (before[1] + before[4]) / 2)
    assert np.array_equal(cache.values(0, 0)[2], before[2])  # cosine 0.1, below the mean


def test_d2o_threshold_is_averaged_half_and_half() -> None:
    policy, cache = parse_policy("d2o"), FakeCache([(2, 1)])
    seen = [float(policy._threshold(cache, 0, 0, np.float32(x))) for x in (0.8, 0.4, 0.2)]  # type: ignore[attr-defined]
    assert np.allclose(seen, [0.8, 0.6, 0.4])


def test_d2o_gives_even_layers_more() -> None:
    flat, peaked = [1.0] * 40, [40.0] + [0.1] * 39
    cache = cache_of([[flat], [peaked]])
    even, uneven = (int(n[0]) for n in parse_policy("d2o(budget=20, recent=4)").budgets(cache))
    assert even > 20 > uneven >= 8 and even + uneven <= 40
    same = cache_of([[flat], [flat]])
    assert [int(n[0]) for n in parse_policy("d2o(budget=20)").budgets(same)] == [20, 20]


def test_most_similar_is_by_cosine() -> None:
    keys = np.array([[3, 0], [1, 1], [0, 0]], np.float32)
    at, cosines = most_similar(keys, np.array([[0, 5], [9, 0]], np.float32))
    assert at.tolist() == [1, 0, 0] and np.allclose(cosines, [1, 0.5**0.5, 0])


def test_lookm_keeps_text_before_images() -> None:
    scores = [[[1, 1, 9, 8, 7, 1, 0, 0]]]
    assert chosen("lookm(budget=5, recent=2, images=2:5)", scores) == [[[0, 1, 5, 6, 7]]]
    assert chosen("lookm(budget=6, recent=2, images=2:4+4:5)", scores) == [[[0, 1, 2, 5, 6, 7]]]


def test_lookm_of_text_keeps_what_h2o_keeps() -> None:
    scores = np.random.default_rng(4).random((2, 2, 40)).tolist()
    assert chosen("lookm(budget=0.25)", scores) == chosen("h2o(budget=0.25)", scores)


@pytest.mark.parametrize("how", ["average", "pivot", "weighted"])
def test_lookm_merges(how: str) -> None:
    cache = cache_of([[[0, 9, 0, 9]]])
    head = cache.held[0][0]
    head.keys[:3] = np.eye(8, dtype=np.float32)[:3]
    head.keys[0], head.keys[2] = 3 * head.keys[1], 5 * head.keys[1]
    keys, values = head.keys.copy(), head.values.copy()
    compress(parse_policy(f"lookm(budget=2, recent=1, how={how})"), cache)

    def merged(x: F32) -> F32:
        if how == "pivot":
            return np.asarray((x[1] + (x[1] + x[0]) / 2 + (x[1] + x[2]) / 2) / 3)
        return np.asarray((x[1] + x[0] + x[2]) / 3)  # cosines are 1

    assert kept(cache) == [[[1, 3]]]
    assert np.allclose(cache.keys(0, 0), [merged(keys), keys[3]], atol=1e-6)
    assert np.allclose(cache.values(0, 0), [merged(values), values[3]], atol=1e-6)


# ---------------------------------------------------------------- supplied numbers
def test_duo_splits_heads(tmp_path: Path) -> None:
    (tmp_path / "gates.tsv").write_text("0.1 0.9\n0.8 0.2\n")
    cache = FakeCache([(4, 2), (4, 2)])
    manager = CacheManager(parse_policy(f"duo(gates={tmp_path}/gates.tsv, sinks=2, recent=5, slack=1)"))
    feed(cache, manager, 30)
    stream = [0, 1, *range(25, 30)]
    assert kept(cache) == [[stream, list(range(30))], [list(range(30)), stream]]
    for n in range(9):
        feed(cache, manager, 1)
        assert len(cache.positions(0, 0)) == 7 and len(cache.positions(0, 1)) == 31 + n
    quarter = parse_policy(f"duo(gates={tmp_path}/gates.tsv, full=0.25)")
    assert [m.tolist() for m in quarter.retrieval(cache)] == [[False, True], [False, False]]  # type: ignore[attr-defined]


def test_trimkv_ignores_attention(tmp_path: Path) -> None:
    decay = np.full((1, 1, 10), -1.0)
    decay[0, 0, [0, 4]] = -0.01
    np.save(tmp_path / "gates.npy", decay)
    text = f"trimkv(budget=4, gates={tmp_path}/gates.npy)"
    assert chosen(text, [[[0.0] * 10]]) == chosen(text, [[list(range(10))]]) == [[[0, 4, 8, 9]]]
    np.save(tmp_path / "one.npy", np.full((1, 1, 1), -0.5))
    assert chosen(f"trimkv(budget=4, gates={tmp_path}/one.npy)", [[[0.0] * 10]]) == [[[6, 7, 8, 9]]]


@pytest.mark.parametrize(
    ("text", "table", "message"),
    [
        (
            "duo(gates=FILE)",
            [[1.0]],
            (
                "cache policy duo, gates=FILE: expected finite numbers of shape [2, 2], got shape [1, 1]\n"
                "  help: give one entry per layer (and KV head) of this model"
            ),
        ),
        (
            "scalekv(0.5, shares=FILE, window=2)",
            [1.0, -1.0],
            "cache policy scalekv: shares: expected positive numbers, got -1.0",
        ),
        (
            "trimkv(2, gates=FILE)",
            [[[-1.0] * 3] * 2] * 2,
            (
                "cache policy trimkv, gates=FILE: expected log β of shape [2, 2, 1] or [2, 2, positions] "
                "with at least 6 positions, got [2, 2, 3]\n  help: compute the gates of the whole text"
            ),
        ),
        (
            "trimkv(2, gates=FILE)",
            [[[0.5]] * 2] * 2,
            "cache policy trimkv: gates: expected numbers of at most 0 (log β), got 0.5",
        ),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, text: str, table: object, message: str) -> None:
    path = tmp_path / "table.npy"
    np.save(path, np.asarray(table))
    with pytest.raises(SessionError) as e:
        chosen(text.replace("FILE", str(path)), [[[1.0] * 6] * 2] * 2)
    assert str(e.value) == message.replace("FILE", str(path))


def test_a_table_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("none of this is a number")
    for name in ("x.txt", "absent.npy"):
        with pytest.raises(
            SessionError, match=r"cannot be read \(.*\)\n  help: expected an .npy file, or text"
        ):
            chosen(f"duo(gates={tmp_path}/{name})", [[[1.0] * 6]])


def test_totals_are_shared_out() -> None:
    assert shared_out(100, np.array([3.0, 1.0]), 10).tolist() == [70, 30]
    assert shared_out(15, np.array([3.0, 1.0]), 10).tolist() == [10, 10]
