"""Encoding one row inside a kernel: the extremes of its blocks, then the parameters, then the codes.

In: a row whose values a kernel computes, and the formulas of an encoding. Out: stores of its streams.
Activations, caches and weights encoded on the fly share this; each has its own formulas.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.ir.affine import Affine
from tilewright.ir.formulas import RowWriter, TileWriter, Value
from tilewright.ir.tile.core import At, Span


@dataclass(frozen=True)
class Extreme:
    """The largest (`max`) or smallest (`min`) value of a block; the fold begins with `start`. `magnitude`: of
    absolute values."""

    fn: str
    start: float
    magnitude: bool = False

    def of(self, b: TileWriter, x: Value) -> Value:
        return b.op("abs", x) if self.magnitude else x

    def folded(self, b: TileWriter, x: Value) -> Value:
        """The extreme of a tile, rank 0."""
        return b.reshape(b.reduce(self.fn, x, 0))


LARGEST = (Extreme("max", 0.0, magnitude=True),)
#: over the values and zero
AROUND_ZERO = (Extreme("min", 0.0), Extreme("max", 0.0))
RANGE = (Extreme("min", float("inf")), Extreme("max", -float("inf")))


class MadeRows(ABC):
    """The formulas of an encoding, and the loops that evaluate them: over a row whose elements all share
    parameters, or over the blocks of a row."""

    #: elements that share parameters; 0: all of the row
    block: int = 0
    extremes: tuple[Extreme, ...] = LARGEST
    #: whether the codes of a whole row are summed
    totals: bool = False

    @abstractmethod
    def run(self, length: int, width: int) -> int:
        """How many codes are stored at once: a divisor of the block, or of a row of `length`."""

    @abstractmethod
    def prepared(self, b: TileWriter, extremes: Sequence[Value]) -> Any:
        """What `store_codes` needs of a block: computed once per block, rank 0."""

    @abstractmethod
    def parameters(self, b: TileWriter, extremes: Sequence[Value], prepared: Any) -> Mapping[str, Value]:
        """The numbers to store for a block, rank 0, by stream."""

    @abstractmethod
    def store_codes(self, row: RowWriter, at: Span, x: Value, prepared: Any) -> Value:
        """Store the codes of `x`, the values at `at`, and what else is stored per run; returns the codes."""

    def store_total(self, row: RowWriter, codes: Value) -> None:
        """Store the sum of a row's codes, if the encoding has `totals`; `codes`: their sums over runs of the
        row."""
        raise AssertionError(f"{type(self).__name__} sets `totals` but does not define store_total")

    # ------------------------------------------------------------ loops
    def store_row(self, row: RowWriter) -> None:
        """Read the row, or each block of it, twice: first for the extremes, then for the codes."""
        self._store_blocks(row) if self.block else self._store_whole(row)

    def _store_whole(self, row: RowWriter) -> None:
        b, extremes = row.b, self._over_row(row)
        prepared = self.prepared(b, extremes)
        step = self.run(row.length, row.width)  # packed codes have no masks: runs tile the row exactly
        with row.loop("q", step, [b.const(0, "i32", (step,))] if self.totals else []) as loop:
            at = Span(loop.var, step)
            codes = self.store_codes(row, at, row.again(at, at), prepared)
            loop.yield_(*([loop.carried[0] + codes] if self.totals else []))
        if self.totals:
            self.store_total(row, loop.results[0])
        for stream, value in self.parameters(b, extremes, prepared).items():
            row.store(stream, At(Affine()), value)

    def _over_row(self, row: RowWriter) -> list[Value]:
        """The extremes of the row, rank 0; `width` values are read at once."""
        b, n, width = row.b, row.length, row.width
        row.open(-(-n // width) * width, width)
        init = [b.const(e.start, "f32", (width,)) for e in self.extremes]
        with row.loop("a", width, init) as loop:
            v = row.read(Span(loop.var, width))
            kept = b.within(v, loop.var, 0, 0.0) if n % width else v
            row.first(Span(loop.var, width), kept)
            found = []
            for e, carried in zip(self.extremes, loop.carried, strict=True):
                x = kept if e.start == 0 or not n % width else b.within(v, loop.var, 0, e.start)
                found.append(b.op(e.fn, carried, e.of(b, x)))
            loop.yield_(*found)
        return [e.folded(b, r) for e, r in zip(self.extremes, loop.results, strict=True)]

    def _store_blocks(self, row: RowWriter) -> None:
        """Store block by block; a block may take several runs of codes."""
        b, block = row.b, self.block
        step = self.run(block, block)
        row.open(block, block)
        with row.loop("g", block) as loop:
            v = row.read(Span(loop.var, block))
            row.first(Span(Affine(), block), v)
            extremes = [self._of_block(b, e, v) for e in self.extremes]
            prepared = self.prepared(b, extremes)
            for stream, value in self.parameters(b, extremes, prepared).items():
                row.store(stream, Span(loop.var, 1), b.reshape(value, 1))
            for at in range(0, block, step):
                run = Span(loop.var + at, step)
                self.store_codes(row, run, row.again(run, Span(Affine.of(at), step)), prepared)
            loop.yield_()

    def _of_block(self, b: TileWriter, e: Extreme, x: Value) -> Value:
        found = e.folded(b, e.of(b, x))
        return b.op(e.fn, found, 0.0) if e.start == 0 and not e.magnitude else found


def quotient(b: TileWriter, x: Value, scale: Value) -> Value:
    """x / scale, where a scale of zero gives zero."""
    return b.select(b.op("ne", scale, 0.0), x / scale, 0.0)


def clipped(b: TileWriter, x: Value, low: float, high: float) -> Value:
    return b.op("min", b.op("max", x, low), high)
