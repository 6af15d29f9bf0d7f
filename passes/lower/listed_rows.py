"""How attention reads parts of a cache: runs of rows, each inside one slice, that a list in memory names.

In: the streams `runs` and `list` of a cache, and which tokens they are for. Out: slices with the first and
the end of the rows that are read. Where all rows are listed, the runs are the slices that attention reads
without a list, so that results have the same bits."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.affine import Affine
from tilewright.ir.plan.step import SLICE
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import Buffer
from tilewright.passes.lower.cached_rows import CHUNK


@dataclass(frozen=True)
class Listed:
    """Which rows single tokens read: of those that have a budget in `choices`[T, 3] i32, the `runs`[slots,
    HK] runs of `list`[slots, HK, .., 2] i32, the first row and the end of each inside one slice, in ascending
    order; of other tokens all rows."""

    choices: Buffer
    runs: Buffer
    list: Buffer

    def high(self, b: KernelBuilder, row: Affine, at: tuple[object, ...], slices: Affine) -> Affine:
        """How many runs there are: of all rows, as many as slices."""
        chosen = b.select(self._listed(b, row), b.load(self.runs, *at), b.index_value(slices))
        return b.op("min", chosen, b.const(self.list.dims[2].as_int(), "i32")).index()

    def run(
        self, b: KernelBuilder, row: Affine, at: tuple[object, ...], n: Affine, end: Affine, slices: int
    ) -> tuple[Affine, Affine, Tile]:
        """Of run n: its slice, where it begins inside the slice, and its end, as rows; `end`: of all rows.
        Whatever the list holds, no row outside the cache is read."""
        listed, last = self._listed(b, row), b.index_value(end)
        start = b.select(listed, b.load(self.list, *at, n, 0), b.index_value(n * SLICE))
        stop = b.select(listed, b.op("min", b.load(self.list, *at, n, 1), last), last)
        which = b.op("shr", b.op("max", start, b.const(0, "i32")), b.const(SLICE.bit_length() - 1, "i32"))
        chunk = b.op("shr", start, b.const(CHUNK.bit_length() - 1, "i32"))
        chunk = b.op("and", chunk, b.const(SLICE // CHUNK - 1, "i32"))
        return b.op("min", which, b.const(slices - 1, "i32")).index(), chunk.index() * CHUNK, stop

    def _listed(self, b: KernelBuilder, row: Affine) -> Tile:
        return b.op("lt", b.const(0, "i32"), b.load(self.choices, row, 0))
