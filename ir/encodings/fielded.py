"""Encodings that store fields in blocks: layout, packing and checks follow from a list of fields.

A subclass names its fields and sizes and writes a rounding. `blocked.Blocked` adds the formulas of codes
under scales; `Composed` is any of these plus a part that adds fields of its own: `int4 + sparse(1%)`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.contraction_form import ContractionForm, Side
from tilewright.ir.encoding import Addend, Array, Encoding, EncodingError, RangeError, Scale
from tilewright.ir.encodings.fields import Blocks, Field
from tilewright.ir.formulas import StoredBuffer, TileWriter, Value
from tilewright.ir.layout import RecordSpec
from tilewright.ir.numbers import TAME, hold, largest, unit_rows


class Fielded(Encoding):
    """Weights are matrices, or stacks of matrices, [.., N, K]."""

    layout = "panel"
    blocks: Blocks = Blocks()

    @abstractmethod
    def fields(self) -> tuple[Field, ...]:
        """The fields, codes first."""

    @abstractmethod
    def round(self, x: NDArray[np.float32]) -> dict[str, Array]:
        """Round-to-nearest: fields by name. `x` [.., N, K] is finite, and its shape has passed `check`."""

    # ------------------------------------------------------------ layout
    @property
    def step(self) -> int:
        return self.blocks.step(self.fields())

    def field_of(self, stream: str) -> Field:
        """The field that this stream is a plane of."""
        return next(f for f in self.fields() if any(stream == name for name, _, _ in f.planes))

    def record(self, shape: Sequence[int | None]) -> RecordSpec:
        if len(shape) < 2:
            raise EncodingError(f"{self}: needs a matrix, got shape {tuple(shape)}")
        if shape[-1] is None:
            raise EncodingError(f"{self}: K must be a known integer")
        return self.blocks.record(self.fields(), shape, shape[-1])

    def grain(self, stream: str) -> tuple[int, ...]:
        return self.blocks.grain(self.field_of(stream))

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

    def _run(self) -> int:
        return self.step if self.blocks.block or self.layout != "panel" else 0

    # ------------------------------------------------------------ rounding
    def encode(self, x: NDArray[np.float32]) -> dict[str, Array]:
        """Raises RangeError for a row that would decode to infinity or NaN."""
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
        """Rows of very large or very small magnitude are scaled to magnitude 1 before rounding, where no sum
        or product in the formulas overflows or underflows."""
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
        """The error for the first row whose decoded `values` are infinite or NaN; `sizes`: the largest
        magnitude per row."""
        bad = np.asarray(~np.isfinite(values).all(-1))
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        return RangeError(f"{self}: row {list(at)} holds {sizes[at]:.4g}, beyond its range")

    def split(self, found: Mapping[str, Array]) -> dict[str, Array]:
        """Streams from fields by name."""
        out: dict[str, Array] = {}
        for f in self.fields():
            out |= f.split(found[f.name])
        return out

    def with_side(self, side: Side) -> Encoding:
        if not isinstance(side, Part):
            raise EncodingError(
                f"{self} + {side.name}: expected a part that is stored in fields, got {type(side).__name__}"
            )
        there = {name for f in self.fields() for name, _, _ in f.planes}
        if twice := sorted(there & set(side.streams)):
            raise EncodingError(f"{self} + {side}: there is a stream {twice[0]} already")
        return Composed(self, side)

    def grouped(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """[.., N, K] as [.., N, K/block, block]."""
        return x.reshape(*x.shape[:-1], -1, self.blocks.block or x.shape[-1])


class Part(Side, Addend):
    """Side streams that are fields, so that they lie in the same records as the codes they are added to."""

    scalable: bool = True

    def beside(self, of: Encoding) -> Encoding:
        return of.with_side(self)

    @abstractmethod
    def fields(self) -> tuple[Field, ...]:
        """Its fields: one entry per `row` or `tensor`, or `side` fields, which state how many elements share
        an entry.
        """

    @abstractmethod
    def round(self, x: NDArray[np.float32], base: Fielded) -> dict[str, Array]:
        """Fields by name, those of `base` included, chosen so that base and part together are nearest to x
        [.., N, K]."""

    @abstractmethod
    def add(self, values: NDArray[np.float32], streams: Mapping[str, Array]) -> NDArray[np.float32]:
        """`values` [.., N, K], decoded by the base, plus this part's own; may change `values` in place."""

    def round_with_outliers(
        self, x: NDArray[np.float32], base: Fielded, score: NDArray[np.float32]
    ) -> dict[str, Array] | None:
        """As `round`, with the elements of each row that score highest stored in this part; None: it does not
        store single elements.
        """
        return None

    def check(self, shape: Sequence[int]) -> None:
        """Raises EncodingError if this part cannot be stored for an array of this shape."""

    def wider(self) -> Part | None:
        """The same with numbers of a wider range; None if there is none."""
        return None

    @property
    def streams(self) -> tuple[str, ...]:
        return tuple(name for f in self.fields() for name, _, _ in f.planes)


@dataclass(frozen=True)
class Composed(Fielded):
    """`base` plus a part, whose values are added to those of the base. Codec, scales and layout are those of
    the base; the part adds to the sides.
    """

    base: Fielded
    part: Part

    def __str__(self) -> str:
        return f"{self.base} + {self.part}"

    @property
    def codec(self) -> str:  # type: ignore[override]
        return self.base.codec

    @property
    def scales(self) -> tuple[Scale, ...]:  # type: ignore[override]
        return self.base.scales

    @property
    def sides(self) -> tuple[Side, ...]:  # type: ignore[override]
        return (*self.base.sides, self.part)

    @property
    def blocks(self) -> Blocks:  # type: ignore[override]
        return self.base.blocks

    @property
    def ahead_of_time(self) -> str:
        return f"{self.part} is chosen from all values of a row"

    @property
    def scalable(self) -> bool:  # type: ignore[override]
        return self.base.scalable and self.part.scalable

    @property
    def contraction_form(self) -> ContractionForm | None:
        return self.base.contraction_form

    def fields(self) -> tuple[Field, ...]:
        return (*self.base.fields(), *self.part.fields())

    def wider(self) -> Composed | None:
        base, part = self.base.wider(), self.part.wider()
        if base is None and part is None:
            return None
        return Composed(base if isinstance(base, Fielded) else self.base, part or self.part)

    def check(self, shape: Sequence[int]) -> None:
        self.base.check(shape)
        self.part.check(shape)

    def fitting(self, shape: Sequence[int]) -> Encoding:
        return self.base.fitting(shape).with_side(self.part)

    # ------------------------------------------------------------ values
    def round(self, x: NDArray[np.float32]) -> dict[str, Array]:
        return self.part.round(x, self.base)

    def decode(self, streams: Mapping[str, Array]) -> NDArray[np.float32]:
        return self.part.add(self.base.decode(streams), streams)

    def tile_decode(self, b: TileWriter, buffer: StoredBuffer, index: Sequence[object]) -> Value:
        def get(stream: str, entry: object) -> Value:
            return b.load(f"{buffer.name}.{stream}", *index[:-1], entry)

        values = self.base.tile_decode(b, buffer, index)
        return self.part.tile_add(b, values, get, index, buffer.dims[-1].as_int())

    def encode_with_outliers(
        self, x: NDArray[np.float32], score: Callable[[Encoding], NDArray[np.float32]]
    ) -> dict[str, Array] | None:
        found = self.part.round_with_outliers(x, self.base, score(self.base))
        return None if found is None else self.split(found)


def check_finite(name: str, x: NDArray[np.float32], sizes: NDArray[np.float32]) -> None:
    """EncodingError with the count if some values are NaN or infinite. `sizes`: the largest magnitude of
    every row."""
    if not np.isfinite(sizes).all():
        bad = x.size - int(np.isfinite(x).sum())
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        raise EncodingError(f"{name}: {bad} of {x.size} values are NaN or infinite, the first at {list(at)}")
