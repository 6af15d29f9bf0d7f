"""`tilewright run` of encoders and vision models: answers to texts and images, as text or JSON.

In: what the command line gives. Out: lines on standard output. The answers are `Model.run`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from tilewright.cli.common import argument, print_json, table
from tilewright.runtime.tasks.answers import plain
from tilewright.runtime.tasks.runner import TOP
from tilewright.user_files import read_stdin

if TYPE_CHECKING:
    from tilewright.runtime.model import Model

#: numbers of a vector that are shown
SHOWN = 6


@dataclass(frozen=True)
class Asked:
    """The inputs of one call."""

    text: tuple[str, ...] = ()
    text_pair: tuple[str, ...] = ()
    image: tuple[str, ...] = ()
    top: int | None = None
    truncate: bool = False

    @property
    def given(self) -> bool:
        return bool(self.text or self.text_pair or self.image or self.top or self.truncate)


def answer(model: Model, asked: Asked, as_json: bool) -> None:
    """Answer every text or image of the call; without any, a text model reads one from standard input."""
    asked = with_input(model, asked)
    pairs = list(asked.text_pair) or None
    found = model.run(
        list(asked.text) or None,
        text_pair=pairs,
        image=list(asked.image) or None,
        top=asked.top or TOP,
        truncate=asked.truncate,
    )
    named = asked.image or asked.text
    if as_json:
        print_json({"task": model.task, "level": model.level, "answers": json_rows(asked, found)})
        return
    for name, one in zip(named, found, strict=True):
        lines = "\n".join(shown(one))
        click.echo(f"{name}\n{lines}" if len(named) > 1 else lines)


def with_input(model: Model, asked: Asked) -> Asked:
    """The call with its texts as UTF-8, and with standard input if it has no input at all."""
    texts = tuple(argument(t, "--text") for t in asked.text)
    pairs = tuple(argument(t, "--text-pair") for t in asked.text_pair)
    entry = model.manifest.task
    if not texts and not asked.image and not pairs and entry is not None and entry.text is not None:
        texts = (read_stdin("a text").strip("\n"),)
    return Asked(texts, pairs, asked.image, asked.top, asked.truncate)


def json_rows(asked: Asked, found: Sequence[Any]) -> list[dict[str, object]]:
    """What each answer is to, and the answer."""
    kind = "image" if asked.image else "text"
    rows: list[dict[str, object]] = [{kind: x} for x in (asked.image or asked.text)]
    for n, row in enumerate(rows):
        row.update({"text_pair": asked.text_pair[n]} if asked.text_pair else {}, answer=plain(found[n]))
    return rows


# ------------------------------------------------------------------ as text
def shown(found: Any) -> list[str]:
    """One answer as lines."""
    if isinstance(found, np.ndarray):
        return [vector(found)]
    if found and isinstance(found[0], list):  # one list for each mask
        return [line for n, one in enumerate(found) for line in (f"mask {n + 1}", *shown(one))]
    return table([row(x) for x in found], "  ").split("\n") if found else ["  none"]


def row(x: Mapping[str, Any]) -> tuple[str, ...]:
    """A label, an entity, a filling or a span with its probability."""
    score = f"{x['score']:.4f}"
    if "label" in x:
        return score, x["label"]
    if "entity_group" in x:
        return score, x["entity_group"], f"{x['start']} to {x['end']}", x["word"]
    if "token_str" in x:
        return score, x["token_str"], x["sequence"]
    return score, f"{x['start']} to {x['end']}", x["answer"]


def vector(values: Any) -> str:
    """The first numbers of an array, and its shape."""
    flat = values.reshape(-1)
    first = "  ".join(f"{v:.5f}" for v in flat[:SHOWN])
    shape = " x ".join(map(str, values.shape))
    return f"  {shape}: {first}" + ("  …" if flat.size > SHOWN else "")
