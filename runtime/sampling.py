"""Choosing the next token from logits, in plain NumPy: the same seed and position give the same draw, always.

In: one row of logits, the ids so far. Out: a token id. Filters apply in the order that transformers uses:
repetition penalty, temperature, top-k, top-p, min-p. Independent of sessions or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.errors import SessionError


@dataclass(frozen=True)
class Sampling:
    """temperature 0: the most likely token. top_k 0, top_p 1, min_p 0, repetition_penalty 1: off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0, 1e6),
            "top_k": (0, 1 << 31),
            "top_p": (0, 1),
            "min_p": (0, 1),
            "repetition_penalty": (1e-3, 1e3),
        }
        for name, (lo, hi) in ranges.items():
            if not lo <= getattr(self, name) <= hi:
                raise SessionError(
                    f"{name}: expected {lo:g} to {hi:g}, got {getattr(self, name)}", "sampling"
                )
        if not 0 <= self.seed < 1 << 64:
            raise SessionError(f"seed: expected 0 to 2^64 - 1, got {self.seed}", "sampling")


def choose(logits: NDArray[np.float32], history: Sequence[int], how: Sampling) -> int:
    """The next token after `history` for one row [vocab] of logits. Ties go to the lower id."""
    best = int(logits.argmax())  # a NaN counts as the largest
    if not np.isfinite(logits[best]):
        hint = "run `tilewright inspect --verify`: the weights may be damaged"
        raise SessionError("the logits are not finite", "sampling", hint)
    if how.temperature == 0 and how.repetition_penalty == 1:
        return best
    scores = penalize(logits.astype(np.float64), history, how.repetition_penalty)
    if how.temperature == 0:
        return int(scores.argmax())
    order, probabilities = filtered(scores / how.temperature, how)
    edges = np.cumsum(probabilities)
    draw = uniform(how.seed, len(history)) * edges[-1]
    return int(order[min(int(np.searchsorted(edges, draw, side="right")), len(order) - 1)])


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on these two alone (Philox, counter-based)."""
    bits = np.random.Philox(key=seed, counter=position)
    return float(np.random.Generator(bits).random())


def penalize(scores: NDArray[np.float64], history: Sequence[int], penalty: float) -> NDArray[np.float64]:
    """Tokens seen before become less likely (CTRL: A Conditional Transformer Language Model)."""
    if penalty == 1.0 or not len(history):
        return scores
    seen = np.unique(np.asarray(history, np.int64))
    seen = seen[(seen >= 0) & (seen < len(scores))]
    scores = scores.copy()
    scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    return scores


def filtered(scores: NDArray[np.float64], how: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Tokens that pass the filters, most likely first, and their probabilities (not summing to 1)."""
    k = min(how.top_k, len(scores)) if how.top_k else len(scores)
    if k < len(scores):  # ties at the edge stay in, as a stable order would have it: sort what remains
        edge = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= edge)
    else:
        candidates = np.arange(len(scores))
    order = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    p = np.exp(scores[order] - scores[order[0]])
    p /= p.sum()
    n = len(p)
    if (
        how.top_p < 1
    ):  # the smallest set that holds top_p of the mass (The Curious Case of Neural Text Degeneration)
        n = int(np.searchsorted(np.cumsum(p), how.top_p, side="left")) + 1
    if how.min_p > 0:  # relative to the most likely token (Min-p Sampling)
        n = min(n, int((p >= how.min_p * p[0]).sum()))
    n = max(n, 1)
    return order[:n], p[:n]
