"""Exact recall over a distance: facts "The code of WORD is DDDDD." in running text, then a question.

In: a model, token ids of text to fill the distance with. Out: prompts and the answers that must follow,
always the same ones. `examples/models/small-llama` was trained on such questions; perplexity hardly notices a
lost fact.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tilewright.runtime.model import Model

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
#: share of the distance that other facts may fill
SHARE = 0.7
Encode = Callable[[str], list[int]]


def recalled(model: Model, filler: Sequence[int], distance: int, others: int, count: int) -> int:
    """How many of `count` questions the model answers to the digit, greedily. `distance`: tokens from the
    fact to its question; `others`: facts of the same form in between."""

    def encode(text: str) -> list[int]:
        return model.codec.encode(text, special=False)

    right = 0
    for n in range(count):
        prompt, answer = question(encode, filler, distance, others, random.Random(f"{distance} {others} {n}"))
        right += model.generate(prompt, max_new_tokens=len(answer), temperature=0).ids == answer  # type: ignore[union-attr]
    return right


def question(
    encode: Encode, filler: Sequence[int], distance: int, others: int, draw: random.Random
) -> tuple[list[int], list[int]]:
    """A prompt and its answer. Fact, number and question are encoded apart, so that the number has the same
    tokens twice."""
    words = draw.sample(WORDS, others + 1)
    codes = [f" {draw.randrange(100000):05d}" for _ in words]
    first, *rest = (
        encode(FACT.format(w)) + encode(c) + encode(".\n") for w, c in zip(words, codes, strict=True)
    )
    gap = distance - len(first)
    while sum(map(len, rest)) > SHARE * gap:
        rest.pop()
    left = gap - sum(map(len, rest))
    start = draw.randrange(len(filler) - left - 16)
    text, before = list(filler[start : start + left]), list(filler[start + left : start + left + 16])
    prompt, at = [*before, *first], 0
    for cut, fact in zip(sorted(draw.randrange(left + 1) for _ in rest), rest, strict=True):
        prompt += text[at:cut] + fact
        at = cut
    return prompt + text[at:] + encode(QUESTION.format(words[0])), encode(codes[0])
