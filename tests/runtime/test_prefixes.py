"""Dropped sequences serve later ones that begin alike: the same results, fewer tokens, bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.stub import expected_logits
from tests.runtime.test_session import some_ids
from tilewright.runtime.artifact import open_artifact
from tilewright.runtime.errors import SessionError
from tilewright.runtime.model import Model
from tilewright.runtime.prefixes import BLOCK, KeptSequences, common
from tilewright.runtime.session import Session


@pytest.fixture(scope="module")
def model(stub_path: Path) -> Model:
    return Model(open_artifact(stub_path), stub_path / "lib/baseline.so", threads=1)


def served(s: Session, ids: list[int]) -> int:
    """How many tokens were there already; the answer to all of them is checked."""
    seq = s.add(ids)
    had = s.lengths[seq]
    [got] = s.step([(seq, ids[had:], "last")])
    assert got is not None and np.array_equal(got[0], expected_logits(ids)[-1])
    s.drop(seq)
    return had


def test_a_prompt_continues_what_it_has_in_common(model: Model) -> None:
    first, other = some_ids(70), some_ids(70, 1)
    with model.session(2, reuse=1 << 20) as s:
        assert served(s, first) == 0
        assert served(s, other) == 0
        assert served(s, first[:50] + other[:20]) == 50
        assert served(s, first) == 69  # the last token is stepped for its logits
        assert served(s, [*other, 5, 6]) == 70
        assert served(s, first[: BLOCK - 1]) == 0


def test_without_reuse_nothing_is_kept(model: Model) -> None:
    with model.session(2) as s:
        assert served(s, some_ids(70)) == 0 and served(s, some_ids(70)) == 0


def test_the_sequences_that_are_kept_take_bounded_memory(model: Model) -> None:
    each = model.library.sequence_bytes / model.library.context
    with model.session(1, reuse=int(70 * each * 3)) as s:
        for seed in range(5):
            served(s, some_ids(70, seed))
        assert s.kept is not None and s.kept.nbytes <= 70 * each * 3
        assert [served(s, some_ids(70, seed)) for seed in (4, 3, 2)] == [69, 69, 69]
        assert served(s, some_ids(70, 0)) == 0


def test_kept_sequences_do_not_count_as_live(model: Model) -> None:
    with model.session(2, reuse=1 << 20) as s:
        for seed in range(10):
            served(s, some_ids(40, seed))
        a, b = s.add(), s.add()
        assert s.lengths == {a: 0, b: 0}
        with pytest.raises(SessionError, match="all 2 sequences are in use"):
            s.add(some_ids(40))


def test_least_recently_used_goes_first_and_equal_hashes_are_compared() -> None:
    kept = KeptSequences(most_bytes=200, token_bytes=1.0)
    a, b = list(range(80)), list(range(1000, 1080))
    assert kept.keep(0, a) == [] and kept.keep(1, b) == []
    assert kept.find(a[:60], whole=False) == (0, 59) and kept.find(a[:60], whole=True) is None
    assert kept.keep(2, list(range(2000, 2080))) == [1]
    assert kept.find(b, whole=False) is None and kept.find([*a, 7], whole=True) == (0, 80)
    assert kept.keep(3, [1] * 10) == [3] and kept.keep(4, [1] * 300) == [4]
    assert common([1, 2, 3], [1, 2, 4, 5]) == 2 and common([], [1]) == 0
