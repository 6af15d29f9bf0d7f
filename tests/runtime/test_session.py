"""Sessions: results depend only on a sequence's history; wrong arguments change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.runtime.stub import CONTEXT, VOCAB, expected_logits, expected_next
from tilewright.runtime.artifact import open_artifact
from tilewright.runtime.errors import SessionError
from tilewright.runtime.model import Model


@pytest.fixture(scope="module")
def model(stub_path: Path) -> Model:
    return Model(open_artifact(stub_path), stub_path / "lib/baseline.so", threads=2)


def some_ids(n: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, 256, n)]


def test_every_position_of_a_prompt_longer_than_a_step(model: Model) -> None:
    ids = some_ids(50)
    assert np.array_equal(model(ids), expected_logits(ids))
    both = model(np.asarray([ids, some_ids(50, 1)]))
    assert both.shape == (2, 50, VOCAB) and np.array_equal(both[1], expected_logits(some_ids(50, 1)))


@pytest.mark.parametrize("cuts", [[1] * 20, [7, 1, 12], [16, 4], [3, 17], [20]])
def test_any_cut_gives_the_same_bits(model: Model, cuts: list[int]) -> None:
    ids, at = some_ids(20), 0
    with model.session() as s:
        seq = s.add()
        for n in cuts:
            [got] = s.step([(seq, ids[at : at + n], "last")])
            at += n
    assert got is not None and np.array_equal(got[0], expected_logits(ids)[-1])


def test_prompts_and_single_tokens_mix(model: Model) -> None:
    with model.session(max_sequences=3, threads=1) as s:
        a, b, c = s.add(), s.add(), s.add()
        s.step([(a, some_ids(9, 1), "none")])
        got = s.step([(a, [5], "last"), (b, some_ids(40, 2), "all"), (c, some_ids(3, 3), None)])
        assert got[2] is None and s.lengths == {a: 10, b: 40, c: 3}
        assert got[0] is not None and got[0][0].argmax() == expected_next([*some_ids(9, 1), 5])
        assert np.array_equal(got[1], expected_logits(some_ids(40, 2)))


def test_fork_shares_the_past_and_drop_frees_it(model: Model) -> None:
    ids = some_ids(37)
    with model.session(max_sequences=3) as s:
        a = s.add()
        s.step([(a, ids, "none")])
        b = s.fork(a)
        got = s.step([(a, [1], "last"), (b, [2], "last")])
        assert [g[0].argmax() for g in got if g is not None] == [
            expected_next([*ids, 1]),
            expected_next([*ids, 2]),
        ]
        s.drop(a)
        c, d = s.add(), s.add()
        assert (c, d) == (a, 2)
        [again] = s.step([(c, [9], "last")])
        assert again is not None and again[0].argmax() == 9
        with pytest.raises(SessionError, match="all 3 sequences are in use"):
            s.fork(b)


def test_truncate_forgets_the_end(model: Model) -> None:
    ids = some_ids(20)
    with model.session() as s:
        a = s.add()
        s.step([(a, ids, "none")])
        s.truncate(a, 5)
        [got] = s.step([(a, [3], "last")])
        assert got is not None and got[0].argmax() == expected_next([*ids[:5], 3])
        with pytest.raises(SessionError, match="length: expected 0 to 6, got 7"):
            s.truncate(a, 7)


def test_an_overflow_names_both_lengths_and_changes_nothing(model: Model) -> None:
    with model.session() as s:
        a = s.add()
        s.step([(a, [1] * 90, "none")])
        with pytest.raises(SessionError, match=f"item 0: 101 tokens do not fit into a context of {CONTEXT}"):
            s.step([(a, [1] * 11, "last")])
        assert s.lengths == {a: 90}
        s.step([(a, [1] * 10, "last")])
        assert s.lengths == {a: CONTEXT}


@pytest.mark.parametrize(
    ("work", "message"),
    [
        ([(0, [260], "last")], "token id 260: expected 0 to 259"),
        ([(0, [3, -1], "last")], "token id -1: expected 0 to 259"),
        ([(0, [2**40], "last")], "token id 1099511627776"),
        ([(0, [], "last")], "expected a non-empty list of integers"),
        ([(0, [1.5], "last")], "got float64"),
        ([(7, [1], "last")], "sequence 7 is not in this session; live: 0"),
        ([(0, [1], "some")], "expected one of last, all, none, got 'some'"),
        ([(0, [1], "last"), (0, [2], "last")], "a sequence occurs twice"),
    ],
)
def test_wrong_work_is_named(model: Model, work: list[tuple[int, list[int], str]], message: str) -> None:
    with model.session() as s:
        s.add()
        with pytest.raises(SessionError, match=message):
            s.step(work)
        assert s.lengths == {0: 0}


def test_the_native_interface_checks_for_itself(model: Model) -> None:
    with model.session(max_sequences=2) as s:

        def call(ids: list[int], pos: list[int], seq: list[int], rows: list[int]) -> None:
            arrays = [np.asarray(a, np.int32) for a in (ids, pos, seq, rows)]
            s.native.step(*arrays, np.empty((len(rows), VOCAB), np.float32))

        for args, message in [
            (([260], [0], [0], [0]), r"ids\[0\] is 260, expected 0 to 259"),
            (([1], [100], [0], [0]), r"pos\[0\] is 100, expected 0 to 99"),
            (([1], [-1], [0], [0]), r"pos\[0\] is -1"),
            (([1], [0], [2], [0]), r"seq\[0\] is 2, expected 0 to 1"),
            (([1, 1], [4, 4], [0, 0], [0]), r"pos\[1\] is 4, expected more than 4"),
            (([1], [0], [0], [1]), r"rows\[0\] is 1, expected 0 to 0"),
            (([1] * 17, list(range(17)), [0] * 17, []), "expected 1 to 16 tokens, got 17"),
            (([], [], [], []), "expected 1 to 16 tokens, got 0"),
        ]:
            with pytest.raises(SessionError, match=message):
                call(*args)
        for args2, message in [
            ((0, 0, 1), "two sequences"),
            ((0, 5, 1), "sequence 5"),
            ((0, 1, 101), "length of 0 to 100"),
        ]:
            with pytest.raises(SessionError, match=message):
                s.native.fork(*args2)
        s.close()
        with pytest.raises(SessionError):
            call([1], [0], [0], [0])


def test_more_memory_than_there_is(model: Model) -> None:
    with pytest.raises(SessionError, match="max_sequences: expected 1 to 1048576"):
        model.session(max_sequences=2 << 20)
    with pytest.raises(SessionError, match="threads: expected 0 to 1024, got 5000"):
        model.session(threads=5000)


def test_nothing_is_printed_when_python_exits(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects that live until modules are torn down find those modules' names gone."""
    session = model.session()
    native, library = session.native, model.library
    for name in ("_P", "_I32", "_I64", "_S", "ctypes"):
        monkeypatch.setattr(f"tilewright.runtime.library.{name}", None)
    native.__del__(lambda: True)
    library.__del__(lambda: True)
    assert native.handle.value and library.model.value  # the system frees them
    native.__del__()
    assert native.handle.value is None
    native.__del__()
