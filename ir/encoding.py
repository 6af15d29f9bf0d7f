"""Encodings: how numbers are stored. One object serves weights, activations and the KV cache.

Four independent fields (codec, scales, layout, and sides: streams whose values are added to those of the
codes) and six duties: text form, buffers, `encode` and `decode` in NumPy, *tile decode*, and for what is made
inside kernels *tile encode*. What passes and lowering must know of an encoding it says itself, so that
nothing outside `ir.encodings` names one. Registered by short name, so that a user's file can add one.
Independent of graphs, targets or files.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.contraction_form import ContractionForm, OperandForm, Side
from tilewright.ir.formulas import RowWriter, StoredBuffer, TileWriter, Value
from tilewright.ir.layout import Layout, RecordSpec, pack, record, rows_together, unpack
from tilewright.ir.numbers import BITS, STORED, from_bits, to_bits
from tilewright.ir.weights.packing import fast_pack

Array = NDArray[Any]


class EncodingError(ValueError):
    """An encoding whose text, shape or values do not fit; the message says which and what would."""


class RangeError(EncodingError):
    """Finite values that an encoding cannot hold: they would decode to infinity."""


@dataclass(frozen=True)
class Scale:
    """The scales of one scope (`tensor`, `channel`, `token`, or `group` with its size), and the dtype they
    are stored in."""

    scope: str
    dtype: str = "f32"
    group: int = 0


@dataclass(frozen=True)
class SymmetricRounding:
    """Round-to-nearest as symmetric codes: the `scale` of a block (0: of the row) is its largest magnitude
    divided by 2^(bits-1) - 1, and a code is the integer it stands for plus 2^(bits-1). `planes`: (stream,
    dtype, shift) of the codes, low bits first; the scale's stream is `scale`; `depth`: elements of K in one
    record, by the row's length.
    """

    bits: int
    block: int
    scale: str
    planes: tuple[tuple[str, str, int], ...]
    depth: Callable[[int], int]


class Addend(ABC):
    """What may follow a `+` in the text of an encoding."""

    #: its name in the text
    name: ClassVar[str] = ""

    @abstractmethod
    def __str__(self) -> str:
        """The text after the `+`."""

    @abstractmethod
    def beside(self, of: Encoding) -> Encoding:
        """The encoding `of` plus this part. EncodingError if the two cannot be combined."""


@dataclass(frozen=True)
class Factors:
    """A product left [N, rank] times right [rank, K], both stored as `encoding`, added to values stored as
    `base`."""

    base: Encoding
    rank: int
    encoding: Encoding

    def shapes(self, shape: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of left and right for a matrix of this shape."""
        return (shape[0], self.rank), (self.rank, shape[1])


class Encoding(ABC):
    """An encoding of arrays of any shape; the last axis (K) is the one along which groups and dots run."""

    # ------------------------------------------------------------ the four fields
    codec: str = ""
    scales: tuple[Scale, ...] = ()
    #: the order in which elements lie: `rows` (row-major), `panel` (16 rows of a contraction's weight
    #: interleaved), `keys` and `values` (of a cache)
    layout: str = "rows"
    #: streams whose values are added to those of the codes
    sides: tuple[Side, ...] = ()
    #: whether a row's values are proportional to its float parameters, so that a power of two may be factored
    #: out of the row
    scalable: bool = True

    @abstractmethod
    def __str__(self) -> str:
        """The text form; `parse_encoding(str(e)) == e`."""

    @abstractmethod
    def record(self, shape: Sequence[int | None]) -> RecordSpec:
        """The layout field: outer digits and streams, for an array of this shape (None: an extent known at
        run time)."""

    @abstractmethod
    def encode(self, x: NDArray[np.float32]) -> dict[str, Array]:
        """Round-to-nearest: values to logical arrays, one per stream, each indexed by *element* coordinates
        divided by the stream's granularity (`grain`). Raises EncodingError naming the shape that does not
        fit."""

    @abstractmethod
    def decode(self, streams: Mapping[str, Array]) -> NDArray[np.float32]:
        """The values that the logical arrays stand for."""

    @abstractmethod
    def tile_decode(self, b: TileWriter, buffer: StoredBuffer, index: Sequence[object]) -> Value:
        """Emit the tile ops that load `index` of `buffer` and decode it to f32, with loads of `buffer.name +
        '.stream'`."""

    def tile_encode(self, row: RowWriter) -> None:
        """Emit the code that stores one row: `row` provides its values and receives the streams. Raises
        EncodingError with the reason `ahead_of_time`, if there is one."""
        raise EncodingError(f"{self} cannot be encoded inside kernels: {self.ahead_of_time}")

    # ------------------------------------------------------------ what passes and lowering ask
    @property
    def ahead_of_time(self) -> str:
        """Why kernels cannot encode values this way, so that only weights can, ahead of time; empty: they
        can."""
        return "" if type(self).tile_encode is not Encoding.tile_encode else "it has no tile_encode"

    #: the element type of an encoding that stores each value by itself, without a scale, in its only stream;
    #: empty for all others. It is what contractions need to know of such weights and activations; for other
    #: encodings, `contraction_form` and `operand_form` say it
    element: str = ""

    @property
    def array_dtype(self) -> str:
        """The dtype, if the bytes are a row-major array of it; empty: they are packed."""
        return self.element if self.layout == "rows" else ""

    def rows_together(self, shape: Sequence[int | None]) -> int:
        """How many rows share a run of bytes: a slice of rows between two multiples of this number is
        contiguous in memory."""
        return rows_together(self.record(shape), len(shape))

    @property
    def contraction_form(self) -> ContractionForm | None:
        """The dots that weights in this encoding support; None: they are decoded first."""
        return None

    @property
    def operand_form(self) -> OperandForm | None:
        """How activations in this encoding enter integer dots; None: contractions read them as floats."""
        return None

    def with_operand(self, form: OperandForm) -> Encoding:
        """The same encoding with the sums that some weights need. EncodingError if it has no integer
        codes."""
        raise EncodingError(f"{self} has no integer codes to carry sums of")

    @property
    def symmetric_rounding(self) -> SymmetricRounding | None:
        """How `encode` rounds, if it does so symmetrically, as compiled code does; else None."""
        return None

    @property
    def factors(self) -> Factors | None:
        """Two matrices, stored separately, whose product is added to the values; None: the streams hold
        everything."""
        return None

    def tile_read(self, b: TileWriter, buffer: StoredBuffer, index: Sequence[object]) -> Value:
        """As `tile_decode`, but values keep the element type if there is one."""
        return self.tile_decode(b, buffer, index)

    def arranged(self, order: str) -> Encoding:
        """The same in the layout that a contraction (`panel`) or a cache (`keys`, `values`) reads fastest,
        where the layout is a choice that the text left open. EncodingError if a cache cannot be stored so.
        """
        return self

    @property
    def cache_form(self) -> ContractionForm | None:
        """The integer dots with which attention reads a cache in this encoding, arranged as `keys` or
        `values`; None: it is decoded to floats."""
        return None

    def fitting(self, shape: Sequence[int]) -> Encoding:
        """This encoding, or the most similar one that can store an array of this shape. If there is none it
        is this encoding, and `check` says why it does not fit."""
        return self

    def with_side(self, side: Side) -> Encoding:
        """This encoding with side streams added. EncodingError if it cannot hold any."""
        raise EncodingError(f"{self} + {side}: only encodings with blocks of codes can have side streams")

    def encode_with_outliers(
        self, x: NDArray[np.float32], score: Callable[[Encoding], NDArray[np.float32]]
    ) -> dict[str, Array] | None:
        """As `encode`, with the elements of each row that score highest stored apart from the codes; `score`
        is given the encoding of the others. None: this encoding does not store single elements apart.
        """
        return None

    # ------------------------------------------------------------ derived
    def grain(self, stream: str) -> tuple[int, ...]:
        """How many elements along each of the last axes share one entry of a stream; (1,) for per-element
        streams."""
        return (1,)

    def check(self, shape: Sequence[int]) -> None:
        """Raises EncodingError if an array of this shape cannot be stored so; by default every shape can."""
        return

    def wider(self) -> Encoding | None:
        """The same with scales of a wider range that take no more bytes; None if there is none."""
        return None

    def layouts(self, shape: Sequence[int | None]) -> dict[str, Layout]:
        """Layout of every stream for an array of this shape, in element coordinates."""
        spec = self.record(shape)
        return record(shape, spec.prefix, {s.name: (BITS[s.dtype], s.digits) for s in spec.streams})

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes that an array of this shape takes, padding and metadata included."""
        return next(iter(self.layouts(shape).values())).nbytes

    def pack(self, streams: Mapping[str, Array], shape: Sequence[int]) -> NDArray[np.uint8]:
        """Logical arrays to the bytes kernels read."""
        coarse, dtypes = (_packing_once if isinstance(self, Hashable) else _packing)(self, tuple(shape))  # type: ignore[redundant-expr]
        bits = {n: BITS[t] for n, t in dtypes.items()}
        raw = {n: a if bits[n] < 8 else to_bits(a, dtypes[n]) for n, a in streams.items()}
        packed = fast_pack(raw, coarse, bits)
        return pack(raw, coarse, bits) if packed is None else packed

    def unpack(self, data: NDArray[np.uint8], shape: Sequence[int]) -> dict[str, Array]:
        """The inverse of `pack`."""
        out: dict[str, Array] = {}
        for s in self.record(shape).streams:
            grain = self._grain(s.name, len(shape))
            extents = [-(-n // g) for n, g in zip(shape, grain, strict=True)]
            index = [
                np.arange(n).reshape([-1 if d == k else 1 for k in range(len(shape))])
                for d, n in enumerate(extents)
            ]
            layout = self.layouts(shape)[s.name].by_entry(grain)
            raw = unpack(data, layout, BITS[s.dtype], index, STORED[s.dtype])
            out[s.name] = raw if BITS[s.dtype] < 8 else from_bits(raw, s.dtype)
        return out

    def bits_per_element(self, shape: Sequence[int]) -> float:
        return 8 * self.nbytes(shape) / max(math.prod(shape), 1)

    def _grain(self, stream: str, rank: int) -> tuple[int, ...]:
        g = self.grain(stream)
        return (1,) * (rank - len(g)) + g if rank >= len(g) else g[-rank:]


def _packing(encoding: Encoding, shape: tuple[int, ...]) -> tuple[dict[str, Layout], dict[str, str]]:
    """Layouts by entry number, and storage dtypes, of the streams of an array of this shape."""
    layouts = encoding.layouts(shape)
    coarse = {n: lay.by_entry(encoding._grain(n, len(shape))) for n, lay in layouts.items()}
    return coarse, {s.name: s.dtype for s in encoding.record(shape).streams}


#: pieces of one tensor are of equal shape
_packing_once = lru_cache(maxsize=64)(_packing)
