"""The operations that an encoding may use in its formulas, on NumPy arrays or in a kernel under construction.

Only protocols are defined here, so that encodings know no builder and Tile IR can name the encoding of a
buffer. The type of a value is `Any`, so that one formula works on tiles and on arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from tilewright.ir.affine import Affine

#: a tile of a kernel that is being built, or a NumPy array
Value = Any


class Arithmetic(Protocol):
    """Elementwise work: `ir.encodings.arrays` does it on arrays, `ir.tile.builder` on tiles."""

    def cast(self, dtype: str, x: Any, /) -> Any: ...

    def bitcast(self, dtype: str, x: Any, /) -> Any: ...

    def iota(self, size: int | str, /) -> Any: ...

    def lookup(self, table: Any, codes: Any, /) -> Any: ...

    def select(self, cond: Any, a: Any, b: Any, /) -> Any: ...

    def op(self, name: str, /, *args: Any) -> Any:
        """A scalar primitive of Tile IR by its name."""


class StoredBuffer(Protocol):
    """A parameter of the kernel that is stored as the encoding says: its name, without `%`, and its
    extents.
    """

    @property
    def name(self) -> str: ...

    @property
    def dims(self) -> tuple[Affine, ...]: ...


class TileWriter(Arithmetic, Protocol):
    """A kernel under construction. Index entries are what `KernelBuilder.load` takes."""

    def const(self, value: float, dtype: str = ..., shape: Sequence[int | str] = ..., /) -> Any: ...

    def index_value(self, at: Any, /) -> Any: ...

    def load(self, buffer: str, /, *index: object) -> Any: ...

    def loop(
        self, var: str, lo: Any, hi: Any, step: int | str, init: Sequence[Any] = ..., /
    ) -> AbstractContextManager[Any]: ...

    def reduce(self, fn: str, x: Any, axis: int, /) -> Any: ...

    def expand(self, x: Any, axis: int, /) -> Any: ...

    def transpose(self, x: Any, /) -> Any: ...

    def reshape(self, x: Any, /, *shape: int | str) -> Any: ...

    def within(self, x: Any, loop: Any, axis: int, other: float, /) -> Any:
        """x where a loop's index lies inside its extent, else `other`."""


class RowWriter(Protocol):
    """One row (the last axis) that a kernel computes and an encoding stores, run by run.

    Values may be requested twice, since a scale is known only after all of them have been read: `open` makes
    room for values that would otherwise be computed again.
    """

    #: elements of the row, and how many are best handled at once
    length: int
    width: int

    @property
    def b(self) -> TileWriter: ...

    def open(self, room: int, width: int, /) -> None:
        """Must be called first: makes room for `room` values, of which `width` are read at once."""

    def loop(self, var: str, step: int, init: Sequence[Any] = ..., /) -> AbstractContextManager[Any]:
        """A loop over the row, `step` elements at a time."""

    def runs(self) -> Sequence[Any]:
        """Spans that cover the row, where each element is stored by itself."""

    def read(self, at: Any, /) -> Any:
        """f32 values of a span of the row."""

    def first(self, at: Any, value: Any, /) -> None:
        """Keep values that will be read again, at a span of the room made by `open`."""

    def again(self, at: Any, room: Any, /) -> Any:
        """Values of a span of the row, which were kept at a span of the room."""

    def store(self, stream: str, at: Any, value: Any, /) -> None:
        """Entries of a stream at an index into the row."""
