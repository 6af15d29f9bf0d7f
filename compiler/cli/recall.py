"""`tilewright eval --recall`: exact recall of facts over a distance, as a table and as JSON.

In: an artifact with a tokenizer, and another artifact or a checkpoint directory to compare with on the same
questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tilewright.cli.common import table
from tilewright.runtime.errors import SessionError
from tilewright.runtime.model import Model, load
from tilewright.runtime.recall import Ask, Question, Recall, fitting, questions, recall


@dataclass(frozen=True)
class Asked:
    """What `--recall` asks: `distances` (empty: those that fit), and the ids of a text to fill them with.
    `cache`: the policy that sessions use, instead of the artifact's own."""

    cache: str | None
    distances: tuple[int, ...]
    others: int
    count: int
    seed: int
    ask: Ask
    filler: Sequence[int] | None

    def of(self, model: Model) -> Iterator[tuple[int, list[Question]]]:
        """The questions for each distance."""
        distances = self.distances or fitting(model.library.context)
        if not distances:
            raise SessionError(
                f"the context holds {model.library.context} tokens, less than the smallest default distance",
                "--recall",
                "give --distance",
            )
        for distance in distances:
            yield distance, questions(
                lambda text: model.codec.encode(text, special=False),
                self.filler, distance, self.others, self.count, self.seed,
            )  # fmt: skip


def measure(
    model: Model, asked: Asked, against: str | None, tick: Callable[[int, int], None]
) -> list[Recall]:
    """Answers for each distance; `against`: an artifact, or a checkpoint directory."""
    rows, sets = list[Recall](), list(asked.of(model))
    done, total = iter(range(1, 1 << 60)), sum(len(q) for _, q in sets) * (2 if against else 1)
    with model.session(cache=asked.cache) as session, _other(against, asked.ask, model.threads) as other:
        for distance, questions_ in sets:
            right = tuple(recall(session, questions_, asked.ask, lambda: tick(next(done), total)))
            theirs = None
            if other is not None:
                theirs = tuple(_told(other, q, lambda: tick(next(done), total)) for q in questions_)
            rows.append(Recall(distance, float(np.mean([q.others for q in questions_])), right, theirs))
    return rows


def _told(other: Callable[[Question], bool], q: Question, tick: Callable[[], None]) -> bool:
    right = other(q)
    tick()
    return right


@contextmanager
def _other(against: str | None, ask: Ask, threads: int | None) -> Iterator[Callable[[Question], bool] | None]:
    """Whether another model answers a question: an artifact, or PyTorch's model of a checkpoint directory."""
    if against is None:
        yield None
    elif (Path(against) / "manifest.json").exists():
        with load(against, threads=threads).session() as session:
            yield lambda q: all(recall(session, [q], ask))
    else:
        from tilewright.tools.reference import torch_logits

        forward = torch_logits(against)

        def greedy(q: Question) -> bool:
            """One pass over prompt and answer: each token of it must be the most likely one before it."""
            logits = forward(np.array([*q.text, *q.asked, *q.answer[:-1]], np.int64))
            return bool((logits[-len(q.answer) :].argmax(-1) == q.answer).all())

        yield greedy


def report(rows: Sequence[Recall]) -> list[dict[str, object]]:
    """For JSON."""
    return [
        {
            "distance": r.distance,
            "others": r.others,
            "count": len(r.right),
            "right": sum(r.right),
            "share": round(r.share, 4),
            **({} if r.against is None else _difference(r)),
        }
        for r in rows
    ]


def _difference(r: Recall) -> dict[str, object]:
    mean, error = r.difference or (0.0, 0.0)
    return {"against": sum(r.against or ()), "difference": round(mean, 4), "standard_error": round(error, 4)}


def recall_table(rows: Sequence[Recall]) -> str:
    """As aligned columns."""
    head: tuple[str, ...] = ("distance", "other facts", "exact answers", "share")
    compared = any(r.against is not None for r in rows)
    lines = [(*head, "against", "difference") if compared else head]
    for r in rows:
        cells: tuple[str, ...] = (
            str(r.distance), f"{r.others:.0f}", f"{sum(r.right)} of {len(r.right)}", f"{100 * r.share:.1f}%"
        )  # fmt: skip
        if r.against is not None:
            mean, error = r.difference or (0.0, 0.0)
            cells += (f"{sum(r.against)} of {len(r.against)}", f"{100 * mean:+.1f}% ± {100 * error:.1f}%")
        lines.append(cells)
    return table(lines, "")
