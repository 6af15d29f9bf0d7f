"""Weights as codes in blocks along K that share a scale and an offset: unit(code) * scale + offset.

A subclass names its fields and writes three formulas (unit, scale, offset) and a rounding; the layout, the
NumPy decoder, tile decode and both contraction forms (`ir.contraction_form`) follow from these. With two more
formulas, one for a block's parameters and one for its codes, kernels can encode too.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.contraction_form import ContractionForm, Get
from tilewright.ir.encoding import Array, EncodingError
from tilewright.ir.encodings.arrays import Arrays
from tilewright.ir.encodings.fielded import Fielded
from tilewright.ir.encodings.fields import Field
from tilewright.ir.encodings.made_rows import Extreme, MadeRows
from tilewright.ir.formulas import Arithmetic, RowWriter, StoredBuffer, TileWriter, Value
from tilewright.ir.tile.core import Span

#: by the dtype that codes become: the most bits of codes that are looked up in a register instead of computed
TABLE_BITS = {"bf16": 6, "f32": 4}


class Blocked(Fielded, ContractionForm):
    """Base of every blocked weight encoding."""

    narrow: ClassVar[bool] = True

    @abstractmethod
    def value(self, b: Arithmetic, code: Value) -> Value:
        """f32 unit of a u8 code."""

    # ------------------------------------------------------------ as contractions see it
    @property
    def contraction_form(self) -> ContractionForm:
        return self

    @property
    def block(self) -> int:  # type: ignore[override]
        return self.blocks.block

    @property
    def outer(self) -> int:  # type: ignore[override]
        return self.blocks.outer

    @property
    def codes(self) -> Field:
        return self.fields()[0]

    @property
    def code_bits(self) -> int:
        return int(self.codes.dtype[1:])

    @property
    def code_streams(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in self.codes.planes)

    def covers(self, stream: str) -> str:
        return self.field_of(stream).per

    def integers(self, b: Arithmetic, get: Get) -> Value:
        return self.codes.read(get)

    def units(self, b: Arithmetic, get: Get, dtype: str = "f32", centred: bool = True) -> Value:
        """Narrow codes are looked up in a table that fits in a register; wide ones are converted by
        arithmetic."""
        codes = self.codes.read(get)
        if self.code_bits > TABLE_BITS[dtype]:
            return b.cast(dtype, self.value(b, codes))
        table = b.cast(dtype, self.value(b, b.cast("u8", b.iota(1 << self.code_bits))))
        return b.lookup(table, codes)

    # ------------------------------------------------------------ made inside kernels
    #: the extremes that determine the parameters of a block; empty: rounding needs more than extremes
    extremes: tuple[Extreme, ...] = ()

    def parameters_of(self, b: TileWriter, extremes: Sequence[Value]) -> Mapping[str, Value]:
        """The fields that `round` would give a block (or a row without blocks), computed from its extremes,
        rank 0."""
        raise EncodingError(f"{self}: its parameters cannot be computed from extremes")

    def codes_of(self, b: TileWriter, x: Value, get: Get) -> Value:
        """u8 codes of values of a block; `get` gives its fields."""
        raise EncodingError(f"{self}: its codes cannot be computed from extremes")

    @property
    def ahead_of_time(self) -> str:
        if not self.extremes:
            return "its parameters cannot be computed from the extremes of a block"
        if self.block and self.step != self.block:
            return f"codes of a group of {self.block} do not fill whole bytes; use a multiple of {self.step}"
        return ""

    def tile_encode(self, row: RowWriter) -> None:
        if why := self.ahead_of_time:
            raise EncodingError(f"{self} cannot be encoded inside kernels: {why}")
        if row.length % self.step:
            raise EncodingError(f"{self}: runs of {self.step} codes do not divide a row of {row.length}")
        MadeCodes(self).store_row(row)

    # ------------------------------------------------------------ values
    def formula(self, b: Arithmetic, get: Get) -> Value:
        """The decoded value."""
        out = self.units(b, get)
        factors = [f for f in (self.part(b, get), self.row(b, get)) if f is not None]
        if factors:
            out = out * (factors[0] * factors[1] if len(factors) == 2 else factors[0])
        offset = self.offset(b, get)
        return out if offset is None else out + offset

    def tile_decode(self, b: TileWriter, buffer: StoredBuffer, index: Sequence[object]) -> Value:
        return self.formula(b, lambda name: b.load(f"{buffer.name}.{name}", *index))

    def decode(self, streams: Mapping[str, Array]) -> NDArray[np.float32]:
        shape = streams[self.codes.planes[0][0]].shape

        def get(name: str) -> Array:
            a = np.asarray(streams[name])
            for axis, size in zip((-2, -1), self.grain(name), strict=True):
                if a.shape[axis] not in (1, shape[axis]):
                    a = np.repeat(a, size, axis=axis).take(range(shape[axis]), axis)
            return a

        return np.asarray(self.formula(Arrays(), get), np.float32)


@dataclass(frozen=True)
class MadeCodes(MadeRows):
    """Codes and parameters of a row, computed by the formulas of a blocked encoding."""

    encoding: Blocked

    @property
    def block(self) -> int:  # type: ignore[override]
        return self.encoding.block

    @property
    def extremes(self) -> tuple[Extreme, ...]:  # type: ignore[override]
        return self.encoding.extremes

    def run(self, length: int, width: int) -> int:
        """The smallest run that ends on a whole byte in every stream."""
        step = self.encoding.step
        return step * math.gcd(length // step, max(width // step, 1))

    def prepared(self, b: TileWriter, extremes: Sequence[Value]) -> Mapping[str, Value]:
        return self.encoding.parameters_of(b, extremes)

    def parameters(
        self, b: TileWriter, extremes: Sequence[Value], prepared: Mapping[str, Value]
    ) -> Mapping[str, Value]:
        return prepared

    def store_codes(self, row: RowWriter, at: Span, x: Value, prepared: Mapping[str, Value]) -> Value:
        codes, planes = self.encoding.codes_of(row.b, x, prepared.__getitem__), self.encoding.codes.planes
        for stream, dtype, shift in planes:
            kept = (1 << int(dtype[1:])) - 1
            row.store(stream, at, codes if len(planes) == 1 else codes >> shift & kept)
        return codes


def quotient(x: Array, scale: Array) -> NDArray[np.float32]:
    """x / scale, where a scale of zero gives zero."""
    scale = np.asarray(scale, np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        out = np.asarray(x / scale, np.float32)
    return out if scale.all() else np.where(scale != 0, out, np.float32(0))
