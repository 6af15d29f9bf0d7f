"""What a blocked encoding stores, as fields; from them the layout: panels of 16 rows, narrow codes in planes.

The values of a cache have another order, `values`: the dots that read them sum over tokens, which are their
rows. Four rows then take the place of four k, and codes that share a byte belong to one row, 16 elements
apart, so that a row is stored without reading what other rows hold.

In: fields (name, dtype, what one entry covers), block sizes, a shape. Out: the record of streams in the order
in which kernels read them. A width that is not a power of two is split into planes whose widths are (5 bits:
a stream of 4 and one of 1), so that the codes in one byte always belong to the same rows, and one shift and
one mask extract a whole register of them. Independent of any particular encoding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.contraction_form import Get
from tilewright.ir.formulas import Value
from tilewright.ir.layout import PANEL, RecordSpec, StreamSpec

Array = NDArray[Any]
#: k per lane of the integer dot
GRAIN = 4
#: the grain of an entry that all elements of an axis share
ALL = 1 << 40
_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


@dataclass(frozen=True)
class Field:
    """One kind of number that an encoding stores. `per` is what one entry covers: an `element`, a `block`, an
    `outer` block (of blocks), a `row`, or the `tensor` (repeated in each panel, so that kernels read it
    together with the rows); `side`: one entry for every `every` elements of a row, wherever they lie."""

    name: str
    dtype: str
    per: str = "element"
    #: whether every bit is a plane of its own, for table lookups by four bits of one plane
    bitplanes: bool = False
    #: of a `side` field: how many elements of the row there are for each of its entries
    every: int = 0

    @property
    def planes(self) -> tuple[tuple[str, str, int], ...]:
        """(stream, dtype, shift) of every plane, low bits first."""
        if self.bitplanes:
            return tuple((f"{self.name}b{n}", "u1", n) for n in range(int(self.dtype[1:])))
        widths = _PLANES[int(self.dtype[1:])] if self.dtype[0] == "u" and self.dtype != "u16" else ()
        if len(widths) < 2:
            return ((self.name, self.dtype, 0),)
        return tuple((f"{self.name}{w}", f"u{w}", sum(widths[:n])) for n, w in enumerate(widths))

    @property
    def per_byte(self) -> int:
        """How many entries of the narrowest plane share a byte."""
        return max(8 // int(d[1:]) if d[0] == "u" and len(d) == 2 else 1 for _, d, _ in self.planes)

    def read(self, get: Get) -> Value:
        """The field's codes from its planes."""
        (first, _, _), *rest = self.planes
        out = get(first)
        for name, _, shift in rest:
            out = out | (get(name) << shift)
        return out

    def split(self, codes: Array) -> dict[str, Array]:
        """Codes to planes; other values as they are."""
        if len(self.planes) == 1:
            return {self.planes[0][0]: codes}
        return {n: (codes >> np.uint8(s)) & np.uint8((1 << int(d[1:])) - 1) for n, d, s in self.planes}

    def join(self, streams: Mapping[str, Array]) -> Array:
        """The inverse of `split`."""
        return np.asarray(self.read(lambda name: streams[name]))


@dataclass(frozen=True)
class Blocks:
    """Sizes along K: `block` elements share a scale (0: the whole row), `outer` elements a scale of scales
    (0: none). `over_rows`: the dots that read the elements sum over rows, not along K."""

    block: int = 0
    outer: int = 0
    over_rows: bool = False

    def step(self, fields: Sequence[Field]) -> int:
        """The smallest run of elements along K that starts and ends on whole bytes of every stream and on
        whole blocks."""
        together = PANEL if self.over_rows else GRAIN
        quanta = [together * f.per_byte for f in fields if f.per == "element"]
        quanta += [self.block * f.per_byte for f in fields if f.per == "block"]
        return math.lcm(*quanta, max(self.block, 1))

    def depth(self, fields: Sequence[Field], k: int) -> int:
        """Elements of K in one record: the streams of one step lie together, unless some field has one entry
        per row."""
        wide = any(f.per in ("row", "tensor", "side") for f in fields)
        if not self.block or wide:
            return k
        if self.outer:
            return self.outer
        return self.block if self.step(fields) == self.block else k

    def record(self, fields: Sequence[Field], shape: Sequence[int | None], k: int) -> RecordSpec:
        """Outer digits and streams for an array of this shape, whose last extent is k."""
        n, last, depth = len(shape) - 2, len(shape) - 1, self.depth(fields, k)
        outer = [str(d) for d in range(n)] + [f"{n}/{PANEL}"]
        if depth != k:
            outer.append(f"{last}/{depth}")
        streams = []
        for f in fields:
            streams += [StreamSpec(name, d, self._digits(f, d, n, last, depth)) for name, d, _ in f.planes]
        return RecordSpec(" ".join(outer), tuple(streams))

    def _digits(self, field: Field, dtype: str, n: int, k: int, depth: int) -> str:
        share = 8 // int(dtype[1:]) if dtype[0] == "u" and len(dtype) == 2 else 1
        rows, more, per = f"{n}.{PANEL}", share > 1, field.per
        if per == "element":
            across = PANEL if self.over_rows else GRAIN
            size = across * share
            runs = f"{k}.{-(-depth // size)}:{size}"
            order = f"{runs} {rows} {k}.{GRAIN}"
            if self.over_rows:
                order = f"{n}.{PANEL // GRAIN}:{GRAIN} {runs} {k}.{PANEL} {n}.{GRAIN}"
            return order + (f" {k}.{share}:{across}" if more else "")
        if per in ("row", "tensor"):
            return rows if per == "row" else ""
        unit = {"block": self.block, "outer": self.outer, "side": field.every}[per]
        count = -(-depth // unit)
        if count == 1:
            return rows
        head = f"{k}.{-(-count // share)}:{unit * share} {rows}"
        return head + (f" {k}.{share}:{unit}" if more else "")

    def grain(self, field: Field) -> tuple[int, int]:
        """Elements along the last two axes that share an entry."""
        sizes = {"element": 1, "block": self.block, "outer": self.outer, "side": field.every}
        return (PANEL if field.per == "tensor" else 1, sizes.get(field.per) or ALL)
