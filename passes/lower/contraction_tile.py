"""Where one tile of a contraction sits; shared by the contraction's forms."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.affine import Affine
from tilewright.ir.tile.core import Size


@dataclass(frozen=True)
class TilePosition:
    """Where one contraction tile sits: index entries of the activations' leading axes (one of them `height`
    long), entries before the weight's rows (an expert), first output column, K."""

    rows: tuple[object, ...]
    j: Affine
    k: int
    lead: tuple[object, ...] = ()
    height: Size = "BM"

    def x(self, at: object) -> tuple[object, ...]:
        return (*self.rows, at)

    def w(self, offset: int, at: object) -> tuple[object, ...]:
        return (*self.lead, slice(self.j + offset, "BN"), at)
