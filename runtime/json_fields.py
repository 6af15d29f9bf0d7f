"""Reads untrusted JSON: every field has a type and a range, and a wrong one is named by its path.

In: parsed JSON. Out: plain Python values, or ArtifactError. Independent of what the fields mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tilewright.runtime.errors import ArtifactError

DAMAGED = "the artifact is damaged or was edited; compile the model again"
MOST = 1 << 62
NAME = 512


@dataclass(frozen=True)
class Node:
    """A JSON object and its location (`manifest.json: weights[3]`)."""

    value: dict[str, object]
    where: str

    @staticmethod
    def of(value: object, where: str) -> Node:
        if not isinstance(value, dict):
            raise ArtifactError(f"expected an object, got {kind(value)}", where, DAMAGED)
        return Node(value, where)

    def raw(self, key: str) -> object:
        if key not in self.value:
            raise ArtifactError(f"field {key!r} is missing", self.where, DAMAGED)
        return self.value[key]

    def integer(self, key: str, lo: int = 0, hi: int = MOST) -> int:
        v = self.raw(key)
        if type(v) is not int or not lo <= v <= hi:
            raise ArtifactError(
                f"{key}: expected an integer from {lo} to {hi}, got {kind(v)}", self.where, DAMAGED
            )
        return v

    def text(self, key: str, longest: int = NAME) -> str:
        v = self.raw(key)
        if not isinstance(v, str) or len(v) > longest:
            raise ArtifactError(
                f"{key}: expected text of at most {longest} characters, got {kind(v)}", self.where, DAMAGED
            )
        return v

    def flag(self, key: str) -> bool:
        v = self.raw(key)
        if not isinstance(v, bool):
            raise ArtifactError(f"{key}: expected true or false, got {kind(v)}", self.where, DAMAGED)
        return v

    def node(self, key: str) -> Node:
        return Node.of(self.raw(key), f"{self.where}.{key}")

    def items(self, key: str, most: int = 1 << 20) -> list[object]:
        v = self.raw(key)
        if not isinstance(v, list) or len(v) > most:
            raise ArtifactError(
                f"{key}: expected a list of at most {most}, got {kind(v)}", self.where, DAMAGED
            )
        return v

    def nodes(self, key: str) -> Iterator[Node]:
        for i, v in enumerate(self.items(key)):
            yield Node.of(v, f"{self.where}.{key}[{i}]")

    def texts(self, key: str) -> tuple[str, ...]:
        out = self.items(key)
        if not all(isinstance(v, str) and len(v) <= NAME for v in out):
            raise ArtifactError(f"{key}: expected a list of names", self.where, DAMAGED)
        return tuple(str(v) for v in out)


def kind(v: object) -> str:
    """A short description of a value for a message."""
    if isinstance(v, dict | list):
        return f"{'an object' if isinstance(v, dict) else 'a list'} of {len(v)}"
    text = repr(v)
    return text if len(text) <= 60 else text[:57] + "..."
