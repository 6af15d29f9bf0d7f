"""What the manifest says of a task: read as it was written, refused where it is damaged or hostile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import pytest

from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.json_fields import Node
from tilewright.runtime.task_entry import (
    ImageEntry,
    Preparation,
    Resize,
    TaskEntry,
    TextEntry,
    parse_task,
)

HOW = Preparation(Resize("shortest", 36, 36, "bicubic"), (32, 32), 1 / 255, (0.5,) * 3, (0.25,) * 3)
ENTRY = TaskEntry(
    "image-classification", ("cat", "dog"), "softmax", "mean", True, TextEntry("text", 40, 0),
    ImageEntry("image", 3, 32, 32, HOW),
)  # fmt: skip


def body(entry: TaskEntry = ENTRY) -> dict[str, Any]:
    """As JSON gives it."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(entry)))
    return found


@pytest.mark.parametrize(
    "entry", [ENTRY, TaskEntry("x"), TaskEntry("y", image=ImageEntry("f", 1, 8, 9, None))]
)
def test_round_trip(entry: TaskEntry) -> None:
    assert parse_task(Node.of(body(entry), "manifest.json")) == entry


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b.pop("name"), "field 'name' is missing"),
        (lambda b: b.update(name="x" * 100), "name: expected text of at most 80 characters"),
        (lambda b: b.update(labels="cat"), "labels: expected a list"),
        (lambda b: b.update(labels=["cat", 1]), "labels: expected a list of names"),
        (lambda b: b.update(scores="__import__"), "scores: expected one of softmax, sigmoid, none"),
        (lambda b: b.update(normalized=1), "normalized: expected true or false"),
        (lambda b: b.update(text=[]), "expected an object, got a list of 0"),
        (lambda b: b["text"].update(longest=0), "longest: expected an integer from 1"),
        (lambda b: b["text"].update(pad=-1), "pad: expected an integer from 0"),
        (lambda b: b["image"].update(width=1 << 40), "width: expected an integer from 1 to 16384"),
        (lambda b: b["image"]["prepare"].update(crop=[32]), "crop: expected height and width"),
        (lambda b: b["image"]["prepare"].update(crop=[0.5, 3]), "crop: expected height and width"),
        (lambda b: b["image"]["prepare"].update(crop=[1e9, 1e9]), "crop: expected height and width"),
        (lambda b: b["image"]["prepare"].update(scale=None), "scale: expected a number, got None"),
        (lambda b: b["image"]["prepare"].update(scale=float("nan")), "scale: expected a number, got nan"),
        (lambda b: b["image"]["prepare"].update(std=[1, 0, 1]), "std: expected a number other than 0"),
        (lambda b: b["image"]["prepare"].update(mean=[1]), "std: expected a number other than 0 for each"),
        (lambda b: b["image"]["prepare"]["resize"].update(filter="eval"), "filter: expected one of nearest"),
        (lambda b: b["image"]["prepare"]["resize"].update(to="longest"), "to: expected one of exact,"),
        (lambda b: b["image"]["prepare"]["resize"].update(height=True), "height: expected an integer"),
    ],
)  # fmt: skip
def test_damaged(damage: Callable[[dict[str, Any]], Any], message: str) -> None:
    found = body()
    damage(found)
    with pytest.raises(ArtifactError, match=message):
        parse_task(Node.of(found, "manifest.json"))


ODD = (
    None, True, -1, 0, 1.5, 1 << 70, float("inf"), "", "text", "x" * 9000, [], [1], ["a"], [[]], {}, {"a": 1},
)  # fmt: skip


def places(x: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in an object, as its container and key."""
    for key, value in x.items() if isinstance(x, dict) else enumerate(x):
        yield x, key
        if isinstance(value, dict | list):
            yield from places(value)


def test_any_value_at_any_place_is_read_or_refused() -> None:
    refused = 0
    count = len(list(places(body())))
    for n in range(count):
        for value in ODD:
            found = body()
            container, key = list(places(found))[n]
            container[key] = value
            try:
                parse_task(Node.of(found, "manifest.json"))
            except ArtifactError:
                refused += 1
    assert refused > count * len(ODD) / 2
