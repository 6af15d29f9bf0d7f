"""Weights as codes in blocks: value = unit(code) * scale + offset, where blocks along K share scale and
offset.

A subclass names its fields and writes three formulas (unit, scale, offset) and a rounding; layout, NumPy
decoder, tile decode and both contraction forms follow. The formulas take a builder and a reader of fields,
and run on tiles and on arrays alike. Scales have two factors: `part` differs from block to block, `row` is
applied once, after the whole row's dot.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Array, Encoding, EncodingError, RangeError
from tilewright.ir.encodings.arrays import Arrays
from tilewright.ir.encodings.fields import Blocks, Field, Get
from tilewright.ir.formulas import Arithmetic, StoredBuffer, TileWriter, Value
from tilewright.ir.layout import RecordSpec
from tilewright.ir.numbers import TAME, hold, largest, unit_rows

#: codes of at most this many bits are looked up in a register rather than computed, by the dtype they become
TABLE_BITS = {"bf16": 6, "f32": 4}


class Blocked(Encoding):
    """Base of every blocked weight encoding. Weights are matrices, or stacks of matrices, [.., N, K]."""

    blocks: Blocks = Blocks()
    #: whether units are exact in bf16, so that bf16 activations may meet them in a bf16 dot
    narrow: ClassVar[bool] = True

    # ------------------------------------------------------------ what a subclass says
    @abstractmethod
    def fields(self) -> tuple[Field, ...]:
        """The fields, codes first."""

    @abstractmethod
    def value(self, b: Arithmetic, code: Value) -> Value:
        """f32 unit of a u8 code."""

    def part(self, b: Arithmetic, get: Get) -> Any:
        """f32 factor of a block; None if there are no blocks."""
        return None

    def row(self, b: Arithmetic, get: Get) -> Value | None:
        """f32 factor of a row."""
        return None

    def offset(self, b: Arithmetic, get: Get) -> Any:
        """f32 number added to every value of a block."""
        return None

    @abstractmethod
    def round(self, x: NDArray[np.float32]) -> dict[str, Array]:
        """Round-to-nearest: fields by name. `x` is finite and of a shape that fits."""

    # ------------------------------------------------------------ the integer dot; None or 0: not this encodi
    #: what the unsigned operand of an integer dot stands above its unit; the dot's accumulator starts at
    #: -zero * sum(x)
    zero: int | None = None

    def integers(self, b: Arithmetic, get: Get) -> Value:
        """u8 operand: (integer - zero) is the unit, times `unit_scale`."""
        return self.codes.read(get)

    unit_scale: ClassVar[float] = 1.0

    def zeros(self, b: Arithmetic, get: Get) -> Value | None:
        """u8 zero of a block, where it differs from block to block (then `zero` is 1: bare sums)."""
        return None

    def whole_part(self, b: Arithmetic, get: Get) -> Any:
        """The block's factor as i32, if it is an integer: then the row's sum stays an integer."""
        return None

    #: how many bits, each under a factor of its own, a value is the sum of beside its offset (binary planes);
    #: 0: codes it is
    terms: int = 0

    def term(self, b: Arithmetic, get: Get, n: int) -> Value:
        """u8 bit of the n-th term."""
        return self.integers(b, get)

    def factor(self, b: Arithmetic, get: Get, n: int) -> Value:
        """f32 factor of the n-th term, of a block or a row."""
        return self.part(b, get)

    #: whether blocks have offsets, zeros of their own, integer factors (`whole_part`)
    has_offset: bool = False
    has_zeros: bool = False
    integer_parts: bool = False

    def sums(self) -> tuple[int, int]:
        """(group, zero) that the `int8(token)` encoding of the other operand must carry; group 0 is the whole
        row."""
        assert self.zero is not None
        return self.blocks.block, self.zero

    # ------------------------------------------------------------ derived
    @property
    def codes(self) -> Field:
        return self.fields()[0]

    @property
    def code_bits(self) -> int:
        return int(self.codes.dtype[1:])

    @property
    def step(self) -> int:
        return self.blocks.step(self.fields())

    def field_of(self, stream: str) -> Field:
        """The field a stream is a plane of."""
        return next(f for f in self.fields() if any(stream == name for name, _, _ in f.planes))

    def units(self, b: Arithmetic, get: Get, dtype: str = "f32", centred: bool = True) -> Value:
        """Units as `dtype`, exactly: narrow codes through a table in a register, wide ones by arithmetic. Not
        `centred`: before the block's zero is taken off."""
        codes = self.codes.read(get)
        if self.code_bits > TABLE_BITS[dtype]:
            return b.cast(dtype, self.value(b, codes))
        table = b.cast(dtype, self.value(b, b.cast("u8", b.iota(1 << self.code_bits))))
        return b.lookup(table, codes)

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

    def record(self, shape: Sequence[int | None]) -> RecordSpec:
        if len(shape) < 2:
            raise EncodingError(f"{self}: needs a matrix, got shape {tuple(shape)}")
        if shape[-1] is None:
            raise EncodingError(f"{self}: K must be a known integer")
        return self.blocks.record(self.fields(), shape, shape[-1])

    def grain(self, stream: str) -> tuple[int, ...]:
        return self.blocks.grain(self.field_of(stream).per)

    def check(self, shape: Sequence[int]) -> None:
        if len(shape) < 2:
            raise EncodingError(f"{self}: needs a matrix, got shape {tuple(shape)}")
        for size, word in (
            (self.blocks.outer, "super-block"),
            (self.blocks.block, "group"),
            (self._run(), "run of codes"),
        ):
            if size and shape[-1] % size:
                raise EncodingError(
                    f"{self}: {word} {size} does not divide K = {shape[-1]} of shape {tuple(shape)}"
                )

    def fitting(self, shape: Sequence[int]) -> Blocked:
        """What stores an array of a shape that this encoding does not fit: itself (`check` then says why), or
        its nearest kin."""
        return self

    def _run(self) -> int:
        return self.step if self.blocks.block else 0

    def encode(self, x: NDArray[np.float32]) -> dict[str, Array]:
        """Raises RangeError for a row that would not decode to numbers."""
        self.check(x.shape)
        x = np.asarray(x, np.float32)
        sizes = largest(x)
        check_finite(str(self), x, sizes)
        wild = ((sizes < TAME[0]) & (sizes > 0)) | (sizes > TAME[1])
        found = self._round_wild(x, sizes, wild) if wild.any() else self.round(x)
        for f in self.fields():
            if f.dtype[0] in "fb" and not np.isfinite(found[f.name]).all():
                raise self._beyond(found[f.name], sizes)
        return self.split(found)

    def _round_wild(
        self, x: NDArray[np.float32], sizes: NDArray[np.float32], wild: NDArray[np.bool_]
    ) -> dict[str, Array]:
        """Rows far from 1 are rounded at magnitude 1, where no sum or product of the formulas leaves the
        range of floats."""
        floats = [f for f in self.fields() if f.dtype in ("f32", "bf16", "f16")]
        if not self.scalable:
            found = self.round(x)
        else:
            units, exponents = unit_rows(x, np.where(wild, sizes, np.float32(0.5)))
            found = dict(self.round(units))
            with np.errstate(over="ignore"):
                for f in floats:
                    found[f.name] = hold(
                        np.ldexp(np.asarray(found[f.name], np.float32), exponents[..., None]), f.dtype
                    )
        with np.errstate(all="ignore"):
            values = self.decode(self.split(found))
        if not np.isfinite(values).all():
            raise self._beyond(values, sizes)
        return found

    def _beyond(self, values: Array, sizes: NDArray[np.float32]) -> RangeError:
        """The error for the first row of which some values are no numbers."""
        bad = np.asarray(~np.isfinite(values).all(-1))
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        return RangeError(f"{self}: row {list(at)} holds {sizes[at]:.4g}, beyond its range")

    def split(self, found: Mapping[str, Array]) -> dict[str, Array]:
        """Streams from fields by name."""
        out: dict[str, Array] = {}
        for f in self.fields():
            out |= f.split(found[f.name])
        return out

    def grouped(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """[.., N, K] as [.., N, K/block, block]."""
        return x.reshape(*x.shape[:-1], -1, self.blocks.block or x.shape[-1])


def check_finite(name: str, x: NDArray[np.float32], sizes: NDArray[np.float32]) -> None:
    """EncodingError with the count if some values are NaN or infinite. `sizes`: the largest magnitude of
    every row."""
    if not np.isfinite(sizes).all():
        bad = x.size - int(np.isfinite(x).sum())
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise EncodingError(f"{name}: {bad} of {x.size} values are NaN or infinite, the first at {list(at)}")


def quotient(x: Array, scale: Array) -> NDArray[np.float32]:
    """x / scale, where a scale of zero gives zero."""
    scale = np.asarray(scale, np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        out = np.asarray(x / scale, np.float32)
    return out if scale.all() else np.where(scale != 0, out, np.float32(0))
