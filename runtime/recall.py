"""Exact recall over a distance: facts "The code of WORD is DDDDD." in running text, then a question.

In: a model with a tokenizer, distances in tokens. Out: which questions it answers to the digit, greedily;
always the same ones. Perplexity hardly notices a lost fact, so this is what shows a damaged KV cache.
`examples/models/small-llama` was trained on such questions.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tilewright.runtime.errors import SessionError
from tilewright.runtime.session import Session

FACT, QUESTION = "\nThe code of {} is", "\nQuestion: what is the code of {}? Answer:"
WORDS = (
    "river", "lamp", "stone", "cloud", "apple", "table", "horse", "music", "paper", "glass", "wood", "metal",
    "forest", "garden",
    "window", "market", "doctor", "letter", "winter", "summer", "bridge", "castle", "island", "mountain",
    "valley", "harbor",
    "silver", "copper", "button", "ladder", "pocket", "basket", "engine", "signal", "mirror", "pencil",
    "camera", "tunnel",
    "station", "village",
)  # fmt: skip
#: tokens of text before the fact
BEFORE = 16
#: share of the distance that other facts may fill
SHARE = 0.7
#: distances that are asked about by default, as far as the context allows
DISTANCES = (128, 512, 1024, 2048, 3500)
Encode = Callable[[str], list[int]]
#: whether the question is part of the prompt, or follows when the prompt is complete
Ask = Literal["with", "after"]


@dataclass(frozen=True)
class Question:
    """Token ids: `text` with the facts, the question, and the answer that must follow. `others`: facts
    between the one asked for and the question."""

    text: tuple[int, ...]
    asked: tuple[int, ...]
    answer: tuple[int, ...]
    others: int

    @property
    def tokens(self) -> int:
        return len(self.text) + len(self.asked) + len(self.answer)


@dataclass(frozen=True)
class Recall:
    """Of one distance: whether each question was answered rightly, and by another model if there is one.
    `others`: the mean number of other facts."""

    distance: int
    others: float
    right: tuple[bool, ...]
    against: tuple[bool, ...] | None = None

    @property
    def share(self) -> float:
        return float(np.mean(self.right))

    @property
    def difference(self) -> tuple[float, float] | None:
        """(the share less the other model's on the same questions, its standard error)."""
        return None if self.against is None else paired(self.right, self.against)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The mean of the differences, and its standard error; 0 for one sample."""
    d = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    return float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d))) if len(d) > 1 else 0.0


# ---------------------------------------------------------------- questions
def questions(
    encode: Encode, filler: Sequence[int] | None, distance: int, others: int, count: int, seed: int = 0
) -> list[Question]:
    """`count` questions about a fact `distance` tokens back, with `others` facts of the same form in between
    (fewer where they would fill more than 70% of the distance). `filler`: ids of the text between facts; by
    default sentences of common words. SessionError if something does not fit."""
    if not 0 <= others < len(WORDS):
        raise SessionError(f"others: expected 0 to {len(WORDS) - 1}, got {others}", "recall")
    filler = sentences(encode, distance + 2 * BEFORE) if filler is None else filler
    name = f"{distance} {others}" if not seed else f"{seed} {distance} {others}"
    return [question(encode, filler, distance, others, random.Random(f"{name} {n}")) for n in range(count)]


def question(
    encode: Encode, filler: Sequence[int], distance: int, others: int, draw: random.Random
) -> Question:
    """Fact, number and question are encoded apart, so that the number has the same tokens twice."""
    words = draw.sample(WORDS, others + 1)
    codes = [f" {draw.randrange(100000):05d}" for _ in words]
    first, *rest = (
        encode(FACT.format(w)) + encode(c) + encode(".\n") for w, c in zip(words, codes, strict=True)
    )
    gap = distance - len(first)
    while sum(map(len, rest)) > SHARE * gap and rest:
        rest.pop()
    left = gap - sum(map(len, rest))
    if left < 0 or len(filler) <= left + BEFORE:
        what = f"the fact has {len(first)} tokens" if left < 0 else f"the text has {len(filler)} tokens"
        raise SessionError(
            f"a distance of {distance} tokens does not fit: {what}",
            "recall",
            "choose another distance or text",
        )
    start = draw.randrange(len(filler) - left - BEFORE)
    between, before = filler[start : start + left], filler[start + left : start + left + BEFORE]
    text, at = [*before, *first], 0
    for cut, fact in zip(sorted(draw.randrange(left + 1) for _ in rest), rest, strict=True):
        text += [*between[at:cut], *fact]
        at = cut
    asked = encode(QUESTION.format(words[0]))
    return Question((*text, *between[at:]), tuple(asked), tuple(encode(codes[0])), len(rest))


def sentences(encode: Encode, least: int) -> list[int]:
    """At least so many tokens of plain sentences, always the same ones, without any word of a fact."""
    draw, ids = random.Random(0), list[int]()
    people = (
        "The teacher",
        "A farmer",
        "The old sailor",
        "My sister",
        "The guard",
        "A young clerk",
        "The cook",
    )
    acts = ("watched", "painted", "carried", "described", "followed", "repaired", "counted", "remembered")
    things = (
        "a green boat",
        "the long road",
        "some fresh bread",
        "two white birds",
        "the open field",
        "an old coat",
    )
    ends = (
        "before noon",
        "in the rain",
        "without a word",
        "near the water",
        "for many years",
        "after dinner",
    )
    while len(ids) < least:
        ids += encode(" " + " ".join(draw.choice(part) for part in (people, acts, things, ends)) + ".")
    return ids


# ---------------------------------------------------------------- answers
def answered(session: Session, q: Question, ask: Ask = "with") -> bool:
    """Whether the session's greedy continuation is the answer. `ask`: with the prompt, or as a second item
    when the text is complete, so that a cache policy acts before it knows the question."""
    seq = session.add()
    try:
        if ask == "after":
            session.step([(seq, q.text, "none")])
        items: Sequence[int] = q.asked if ask == "after" else (*q.text, *q.asked)
        for token in q.answer:
            [logits] = session.step([(seq, items, "last")])
            assert logits is not None
            if int(logits[-1].argmax()) != token:
                return False
            items = (token,)
        return True
    finally:
        session.drop(seq)


def fitting(context: int, distances: Sequence[int] = DISTANCES, room: int = 64) -> tuple[int, ...]:
    """The distances for which a context has room, with `room` tokens for text before, question and answer."""
    return tuple(d for d in distances if d + room <= context)


def recall(
    session: Session, asked: Sequence[Question], ask: Ask = "with", tick: Callable[[], None] = lambda: None
) -> Iterator[bool]:
    """Whether each question is answered rightly."""
    for q in asked:
        if q.tokens > session.library.context:
            raise SessionError(
                f"a question of {q.tokens} tokens does not fit into a context of {session.library.context}",
                "recall",
                "choose a smaller distance",
            )
        yield answered(session, q, ask)
        tick()
