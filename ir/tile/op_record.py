"""The record of a tile operation: arity, type inference and NumPy semantics; and broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from tilewright.ir.tile.core import Size, TileType

Array = NDArray[Any]
Attrs = Mapping[str, object]


class TileTypeError(ValueError):
    """A tile operation whose operands or attributes do not fit; the message says expected and got."""


@dataclass(frozen=True)
class TileOp:
    """`infer(operand types, attrs) -> type`; `meaning(operand arrays, attrs, type) -> array`; `attrs`:
    allowed keys."""

    name: str
    arity: int
    infer: Callable[[Sequence[TileType], Attrs], TileType]
    meaning: Callable[[Sequence[Array], Attrs, TileType], Array]
    attrs: tuple[str, ...] = ()
    elementwise: bool = False


def broadcast(shapes: Sequence[tuple[Size, ...]]) -> tuple[Size, ...]:
    """NumPy broadcasting over sizes that may be parameter names (equal names match)."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[Size] = []
    for axis in range(rank):
        sizes: set[Size] = {s[axis - rank + len(s)] for s in shapes if axis - rank + len(s) >= 0} - {1}
        if len(sizes) > 1:
            raise TileTypeError(f"shapes {', '.join(map(str, shapes))} do not broadcast on axis {axis}")
        out.append(sizes.pop() if sizes else 1)
    return tuple(out)
