"""What an encoding may ask of the place that its formulas are evaluated in: NumPy arrays, or a kernel in the
making.

Only protocols stand here, so that encodings know no builder and Tile IR can name the encoding of a buffer. A
value is whatever the place works on (`Any`): one formula serves tiles and arrays alike.
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

    def iota(self, size: int, /) -> Any: ...

    def lookup(self, table: Any, codes: Any, /) -> Any: ...

    def select(self, cond: Any, a: Any, b: Any, /) -> Any: ...

    def op(self, name: str, /, *args: Any) -> Any:
        """A scalar primitive of Tile IR by its name."""


class StoredBuffer(Protocol):
    """A parameter of the kernel that is stored as the encoding says: its name, without `%`, and its extents."""

    @property
    def name(self) -> str: ...

    @property
    def dims(self) -> tuple[Affine, ...]: ...


class TileWriter(Arithmetic, Protocol):
    """A kernel in the making. Index entries are what `KernelBuilder.load` takes."""

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
