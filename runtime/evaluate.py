"""Quality of a language model on a text: perplexity over windows, and distance from other logits.

In: a model, token ids. Out: plain numbers. Every window is read on its own; its first token is context only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.errors import SessionError

Logits = NDArray[np.float32]
#: ids of one window to logits of every position
Forward = Callable[[NDArray[np.int64]], Logits]


@dataclass(frozen=True)
class Quality:
    """`perplexity` over `tokens` predicted tokens in `windows` windows; `tok_s` read per second. With another
    model to compare: mean KL divergence from it in nats, and how often both like the same token best."""

    window: int
    windows: int
    tokens: int
    perplexity: float
    tok_s: float
    kl: float | None = None
    same_top: float | None = None


def windows_of(ids: Sequence[int], window: int, most: int | None = None) -> list[NDArray[np.int64]]:
    """Whole windows without overlap; a text shorter than one window is one window."""
    if window < 2:
        raise SessionError(f"expected a window of at least 2 tokens, got {window}", "eval")
    if len(ids) < 2:
        raise SessionError(
            f"the text has {len(ids)} tokens, and perplexity needs at least 2",
            "eval",
            "pass a longer text",
        )
    a = np.asarray(ids, np.int64)
    count = max(len(a) // window, 1)
    return [a[i * window : (i + 1) * window] for i in range(count)][:most]


def evaluate(
    forward: Forward,
    ids: Sequence[int],
    window: int,
    most: int | None = None,
    other: Forward | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Quality:
    """`most`: at most so many windows. `other`: logits to compare with, on the same windows."""
    loss = kl = same = spent = 0.0
    tokens = positions = 0
    pieces = windows_of(ids, window, most)
    for piece in pieces:
        began = time.perf_counter()
        logits = forward(piece)
        spent += time.perf_counter() - began
        loss += sum(_nll(logits[:-1], piece[1:]))
        tokens += len(piece) - 1
        if other is not None:
            reference = other(piece)
            kl += float(sum(divergences(reference, logits)))
            same += float((reference.argmax(-1) == logits.argmax(-1)).sum())
            positions += len(piece)
        tick()
    read = sum(len(p) for p in pieces)
    distance = (kl / positions, same / positions) if positions else (None, None)
    return Quality(window, len(pieces), tokens, math.exp(min(loss / tokens, 700.0)), read / spent, *distance)


def log_softmax(x: Logits) -> NDArray[np.float64]:
    y = x.astype(np.float64)
    y -= y.max(-1, keepdims=True)
    y -= np.log(np.exp(y).sum(-1, keepdims=True))
    return y


def _nll(logits: Logits, targets: NDArray[np.int64]) -> Iterator[float]:
    for rows in range(0, len(targets), 64):  # 64 rows at a time: float64 copies of all would be large
        p = log_softmax(logits[rows : rows + 64])
        yield float(-p[np.arange(len(p)), targets[rows : rows + 64]].sum())


def divergences(reference: Logits, logits: Logits) -> Iterator[float]:
    """KL(reference || logits) summed over each 64 positions."""
    n = min(reference.shape[-1], logits.shape[-1])  # a padded vocabulary has more columns
    for rows in range(0, len(reference), 64):
        p, q = log_softmax(reference[rows : rows + 64, :n]), log_softmax(logits[rows : rows + 64, :n])
        yield float((np.exp(p) * (p - q)).sum())
