"""What became of a captured graph: how many operators are compiled, which stay in PyTorch, and why.

In: facts of each graph. Out: one line, or all of them as text and plain data. Independent of how graphs are
compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Left:
    """An operator that stays in PyTorch: why, and its lines in the model's source."""

    op: str
    why: str
    places: tuple[str, ...]

    @property
    def text(self) -> str:
        """`aten.foo.default ×2 at model.py:88`."""
        count = f" ×{len(self.places)}" if len(self.places) > 1 else ""
        shown = list(dict.fromkeys(p for p in self.places if p))
        at = f" at {', '.join(shown[:3])}{', …' if len(shown) > 3 else ''}" if shown else ""
        return f"{self.op}{count}{at}"


@dataclass(frozen=True)
class Partition:
    """A part of a graph that became one program: its operators, kernels, bytes of weights that it keeps, and
    seconds that compiling it took."""

    ops: int
    kernels: int
    weight_bytes: int
    seconds: float


@dataclass(frozen=True)
class GraphReport:
    """One captured graph. `kind`: inference, forward or backward."""

    kind: str
    ops: int
    left: tuple[Left, ...]
    partitions: tuple[Partition, ...]

    @property
    def in_pytorch(self) -> int:
        return sum(len(x.places) for x in self.left)

    @property
    def line(self) -> str:
        """`tilewright: 212 of 214 ops compiled, 2 in PyTorch (aten.foo ×2 at model.py:88)`."""
        done = self.ops - self.in_pytorch
        text = f"tilewright: {done} of {self.ops} ops compiled"
        if not self.left:
            return text
        return f"{text}, {self.in_pytorch} in PyTorch ({'; '.join(x.text for x in self.left)})"

    def to_dict(self) -> dict[str, object]:
        """Plain data, as JSON takes it."""
        return {**asdict(self), "compiled": self.ops - self.in_pytorch}


def gathered(found: Sequence[tuple[str, str, str]]) -> tuple[Left, ...]:
    """Operators, reasons and places of single nodes, those with equal operator and reason together."""
    places: dict[tuple[str, str], list[str]] = {}
    for op, why, at in found:
        places.setdefault((op, why), []).append(at)
    return tuple(Left(op, why, tuple(at)) for (op, why), at in places.items())
