"""Recall: questions are reproducible, each fact at its exact distance; what counts as an answer."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from tilewright.runtime.errors import SessionError
from tilewright.runtime.recall import (
    FACT,
    QUESTION,
    WORDS,
    Question,
    Recall,
    fitting,
    paired,
    question,
    questions,
    recall,
    sentences,
)

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = Tokenizer.from_file(str(ROOT / "examples" / "models" / "small-llama" / "tokenizer.json"))


def encode(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False).ids)


FILLER = encode((ROOT / "examples" / "heldout.txt").read_text("utf-8"))


@pytest.mark.parametrize(("distance", "others"), [(64, 0), (128, 31), (1024, 31), (3500, 31)])
def test_questions(distance: int, others: int) -> None:
    q = question(encode, FILLER, distance, others, random.Random(7))
    assert q == question(encode, FILLER, distance, others, random.Random(7))
    text, answer = TOKENIZER.decode(list(q.text)), list(q.answer)
    word = TOKENIZER.decode(list(q.asked)).rpartition("what is the code of ")[2].partition("?")[0]
    fact = encode(FACT.format(word)) + answer
    at = [n for n in range(len(q.text)) if list(q.text[n : n + len(fact)]) == fact]
    assert at == [16] and list(q.asked) == encode(QUESTION.format(word))
    assert len(q.text) - at[0] == distance and q.tokens == len(q.text) + len(q.asked) + len(answer)
    assert text.count("The code of") == 1 + q.others and text.count(TOKENIZER.decode(answer)) == 1
    assert q.others == others or (distance < 1024 and q.others > others // 8)


def test_the_seed_chooses_the_questions() -> None:
    def asked(seed: int) -> list[Question]:
        return questions(encode, None, 200, 3, 5, seed)

    assert asked(0) == asked(0) and asked(0) != asked(1) and len(set(asked(0))) == 5


def test_the_default_text_says_no_fact_word() -> None:
    ids = sentences(encode, 20000)
    assert len(ids) >= 20000 and ids[:20000] == sentences(encode, 20100)[:20000]
    said = set(re.findall(r"\w+", TOKENIZER.decode(ids).lower()))
    assert not said & {*WORDS, "code"} and not any(c.isdigit() for w in said for c in w)


@pytest.mark.parametrize(
    ("distance", "others", "filler", "message"),
    [
        (4, 0, FILLER, "a distance of 4 tokens does not fit: the fact has"),
        (400, 0, FILLER[:300], "a distance of 400 tokens does not fit: the text has 300 tokens"),
        (400, 40, FILLER, "others: expected 0 to 39, got 40"),
    ],
)
def test_what_does_not_fit(distance: int, others: int, filler: list[int], message: str) -> None:
    with pytest.raises(SessionError, match=message):
        questions(encode, filler, distance, others, 1)


class Parrot:
    """A session that continues with what it is told to, whatever it reads, and notes what it reads."""

    def __init__(self, says: Sequence[int], context: int = 4096) -> None:
        self.library, self.says, self.read = SimpleNamespace(context=context), list(says), list[list[int]]()
        self.live = 0

    def add(self) -> int:
        self.live += 1
        self.left = iter(self.says)
        return 0

    def drop(self, seq: int) -> None:
        self.live -= 1

    def step(self, work: list[tuple[int, Sequence[int], str]]) -> list[Any]:
        [(_, ids, want)] = work
        self.read.append(list(ids))
        return [None if want == "none" else np.eye(5, dtype=np.float32)[[next(self.left)]]]


Q = Question((9, 8, 7), (6, 5), (1, 2, 3), 0)


def test_every_token_of_the_answer_counts() -> None:
    assert list(recall(Parrot([1, 2, 3]), [Q, Q])) == [True, True]  # type: ignore[arg-type]
    for wrong in ([0, 2, 3], [1, 2, 4]):
        session = Parrot(wrong)
        assert list(recall(session, [Q])) == [False] and session.live == 0  # type: ignore[arg-type]


def test_the_question_is_part_of_the_prompt_or_follows_it() -> None:
    session = Parrot([1, 2, 3])
    assert list(recall(session, [Q])) == [True]  # type: ignore[arg-type]
    assert session.read == [[9, 8, 7, 6, 5], [1], [2]]
    session = Parrot([1, 2, 3])
    assert list(recall(session, [Q], "after")) == [True]  # type: ignore[arg-type]
    assert session.read == [[9, 8, 7], [6, 5], [1], [2]]


def test_a_question_beyond_the_context() -> None:
    with pytest.raises(SessionError, match="a question of 8 tokens does not fit into a context of 7"):
        list(recall(Parrot([1], 7), [Q]))  # type: ignore[arg-type]
    assert (
        fitting(1024) == (128, 512) and fitting(4096) == (128, 512, 1024, 2048, 3500) and fitting(100) == ()
    )


def test_paired_differences() -> None:
    r = Recall(512, 31, (True, True, False, True), (True, False, False, False))
    mean, error = r.difference or (0.0, 0.0)
    assert r.share == 0.75 and mean == 0.5 and np.isclose(error, np.std([0, 1, 0, 1], ddof=1) / 2)
    assert paired([1.0], [0.5]) == (0.5, 0.0) and Recall(1, 0, (True,)).difference is None
