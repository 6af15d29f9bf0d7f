"""The position of one tile of a contraction; shared by its integer and float forms."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.affine import Affine
from tilewright.ir.tile.core import Size


@dataclass(frozen=True)
class TilePosition:
    """The position of one contraction tile: index entries for the activations' leading axes (one of them
    `height` long), entries before the weight's rows (an expert), the first output column, K."""

    rows: tuple[object, ...]
    j: Affine
    k: int
    lead: tuple[object, ...] = ()
    height: Size = "BM"

    def x(self, at: object) -> tuple[object, ...]:
        return (*self.rows, at)

    def w(self, offset: int, at: object) -> tuple[object, ...]:
        return (*self.lead, slice(self.j + offset, "BN"), at)
