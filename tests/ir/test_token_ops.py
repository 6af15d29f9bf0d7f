"""Choices of tokens by their properties: kept indices, index maps, sizes, ties, rows of a batch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ir.op_samples import Array, f, run
from tilewright.ir.ops import infer
from tilewright.ir.ops.base import OpTypeError
from tilewright.ir.ops.token_choice import first_medoids, segments_of
from tilewright.ir.types import tensor

#: attributes of every mode, over 3 rows of 17 tokens, of which the first is protected
MODES: dict[str, dict[str, object]] = {
    "gather": {"mode": "gather", "count": 9},
    "fused": {"mode": "gather", "count": 9, "fuse": True},
    "merge": {"mode": "merge", "count": 10},
    "cluster": {"mode": "cluster", "count": 8, "segments": 3, "rounds": 3},
    "neighbours": {"mode": "cluster", "count": 7, "segments": 6},
}
N = 17


def choice(name: str, x: Array | None = None, **more: object) -> tuple[Array, Array]:
    attrs = {"protect": 1, **MODES[name], **more}
    given = x if x is not None else f(3, N) if attrs["mode"] == "gather" else f(3, N, 8)
    ids, slots = run("assign_tokens", [given], attrs)
    return ids, slots


@pytest.mark.parametrize("name", MODES)
def test_kept_tokens_are_in_order_and_hold_the_protected_one(name: str) -> None:
    ids, slots = choice(name)
    for row in ids:
        in_order = row[:-1] if name == "fused" else row  # the place that the rest shares comes last
        assert (np.diff(in_order) > 0).all()
        assert len(set(row.tolist())) == len(row)
        assert row[0] == 0
    assert (slots[:, 0] == 0).all()
    assert (slots[:, 1:] > 0).all()  # nothing joins the protected token


@pytest.mark.parametrize("name", MODES)
def test_the_index_map_leads_back(name: str) -> None:
    """The token that represents a place has that place, and every place has a token."""
    ids, slots = choice(name)
    count = ids.shape[1]
    np.testing.assert_array_equal(np.take_along_axis(slots, ids.astype(np.int64), 1), [range(count)] * 3)
    dropped = (slots == count).sum(1)
    assert (dropped == (N - count if name == "gather" else 0)).all()


def test_rows_of_a_batch_choose_for_themselves() -> None:
    for name in ("gather", "merge", "cluster"):
        ids, _ = choice(name)
        assert not (ids[0] == ids[1]).all(), name


@pytest.mark.parametrize("name", MODES)
def test_every_place_for_itself_changes_nothing(name: str) -> None:
    """T-id: as many places as tokens."""
    more: dict[str, object] = {"count": N}
    if name == "neighbours":
        more["segments"] = N - 1
    if name == "fused":
        more["fuse"] = False
    ids, slots = choice(name, **more)
    np.testing.assert_array_equal(ids, [range(N)] * 3)
    np.testing.assert_array_equal(slots, ids)
    x, weights = f(3, N, 5), np.abs(f(3, N)) * 1e-20
    for args in ([x, slots], [x, slots, weights]):
        np.testing.assert_array_equal(run("merge_tokens", args, {"count": N})[0], x)
    np.testing.assert_array_equal(run("take_tokens", [x, ids], {})[0], x)
    np.testing.assert_array_equal(run("restore_tokens", [x, slots, x * 0], {})[0], x)


@pytest.mark.parametrize("name", ["fused", "merge", "cluster", "neighbours"])
def test_sizes_add_up_to_all_tokens(name: str) -> None:
    ids, slots = choice(name)
    count = {"count": ids.shape[1], "mean": False}
    (sizes,) = run("merge_tokens", [np.ones((3, N), np.float32), slots], count)
    np.testing.assert_array_equal(sizes.sum(1), [N] * 3)
    assert (sizes >= 1).all()


def test_a_merge_weighted_by_sizes_keeps_the_sum() -> None:
    """Merging twice by sizes gives the mean of all tokens that share a place."""
    x = f(2, 16, 5)
    _, slots = run("assign_tokens", [x], {"mode": "merge", "count": 10})
    (sizes,) = run("merge_tokens", [np.ones((2, 16), np.float32), slots], {"count": 10, "mean": False})
    (y,) = run("merge_tokens", [x, slots], {"count": 10})
    np.testing.assert_allclose((y * sizes[..., None]).sum(1), x.sum(1), rtol=1e-5, atol=1e-5)


def test_equal_scores_go_to_the_lower_index() -> None:
    ids, _ = choice("gather", np.ones((1, N), np.float32), count=5)
    np.testing.assert_array_equal(ids, [[0, 1, 2, 3, 4]])
    same = np.ones((1, N, 4), np.float32)
    ids, slots = choice("merge", same, count=14)
    np.testing.assert_array_equal(
        slots[0, [2, 4, 6]], [slots[0, 1]] * 3
    )  # the first offers, the first target
    ids, _ = choice("cluster", same, count=3, segments=1, rounds=2)
    assert ids[0, 0] == 0 and len(set(ids[0].tolist())) == 3


def test_nan_is_the_lowest_score() -> None:
    score = f(1, N)
    score[0, 3:8] = np.nan
    ids, slots = choice("gather", score, count=12)
    np.testing.assert_array_equal(ids, [[0, 1, 2, *range(8, N)]])
    assert (slots[0, 3:8] == 12).all()


def test_dropped_tokens_come_back_as_they_were() -> None:
    ids, slots = choice("gather")
    x = f(3, N, 5)
    (y,) = run("take_tokens", [x, ids], {})
    (back,) = run("restore_tokens", [y * 2, slots, x], {})
    dropped = slots == ids.shape[1]
    np.testing.assert_array_equal(back[dropped], x[dropped])
    np.testing.assert_array_equal(back[~dropped], 2 * x[~dropped])


@pytest.mark.parametrize(
    ("n", "count", "protect", "segments"),
    [(17, 8, 1, 3), (65, 33, 1, 4), (10, 10, 0, 10), (12, 5, 2, 2), (7, 4, 0, 3)],
)
def test_segments_of_sizes_that_do_not_divide(n: int, count: int, protect: int, segments: int) -> None:
    segment, start = segments_of(n, count, protect, segments), first_medoids(n, count, protect, segments)
    assert len(segment) == n and len(start) == count
    assert (np.diff(start) > 0).all()
    assert set(segment[protect:].tolist()) == set(range(segments))
    assert (np.diff(segment[protect:]) >= 0).all()
    assert set(segment[start].tolist()) == set(segment.tolist())


@pytest.mark.parametrize(
    ("shape", "attrs", "message"),
    [
        ((2, 9), {"mode": "cut", "count": 3},
         "assign_tokens: expected a mode of gather, merge, cluster, got cut"),
        ((2, 9), {"mode": "gather", "count": 10},
         "assign_tokens: expected to keep between 0 and all tokens, got 10 of 9 tokens"),
        ((2, 9), {"mode": "gather", "count": 1, "protect": 1, "fuse": True},
         "assign_tokens: expected to keep between 2 and all tokens, got 1 of 9 tokens"),
        ((2, 9, 4), {"mode": "merge", "count": 3, "protect": 1},
         "assign_tokens: expected to keep between 5 and all tokens, got 3 of 9 tokens"),
        ((2, 9), {"mode": "merge", "count": 8},
         "assign_tokens: expected keys [B, N, D] of rank 3, got f32[2, 9]"),
    ],
)  # fmt: skip
def test_messages(shape: tuple[int, ...], attrs: dict[str, object], message: str) -> None:
    with pytest.raises(OpTypeError) as e:
        infer("assign_tokens", [tensor("f32", *shape)], attrs)
    assert str(e.value) == message
