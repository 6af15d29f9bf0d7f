"""How the integer dots of attention read a cache: streams of CHUNK rows at a time, as its encoding describes.

In: a cache and the head that is read. Out: tiles of codes, scales and zero points. The encoding's contraction
form gives the formulas; nothing here names an encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tilewright.ir.affine import Affine
from tilewright.ir.contraction_form import ContractionForm
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import Buffer, Span

#: positions that one step of a phase covers
CHUNK = 16


def cache_form(cache: Buffer) -> ContractionForm | None:
    """The integer dots with which this cache can be read."""
    return None if cache.encoding is None else cache.encoding.cache_form


@dataclass(frozen=True)
class CachedRows:
    """The rows of one KV head of one sequence in a cache [.., C, width]: `at`, its leading indices."""

    b: KernelBuilder
    cache: Buffer
    form: ContractionForm
    at: tuple[object, ...]
    width: int

    @property
    def blocks(self) -> list[Span]:
        """The channels that share a scale."""
        block = self.form.block or self.width
        return [Span(Affine.of(d), block) for d in range(0, self.width, block)]

    def reader(self, rows: Span, channels: Span) -> Callable[[str], Tile]:
        """Reads streams for some rows, with the rows as the last axis: entries of `channels`, or the one
        that they share."""
        one = {"element": channels, "block": Span(channels.start, 1), "row": Span(Affine(), 1)}

        def get(stream: str) -> Tile:
            b, name = self.b, f"{self.cache.name}.{stream}"
            return b.transpose(b.load(name, *self.at, rows, one[self.form.covers(stream)]))

        return get

    def scale(self, get: Callable[[str], Tile]) -> Tile:
        """f32 [1, CHUNK]: what a block's integers are multiplied by."""
        part = self.form.part(self.b, get)
        found: Tile | None = self.form.row(self.b, get) if part is None else part
        assert found is not None
        return found

    def zeros(self, get: Callable[[str], Tile]) -> Tile | None:
        """i32 [1, CHUNK]: zero points, where rows have their own."""
        found = self.form.zeros(self.b, get)
        return None if found is None else self.b.cast("i32", found)
