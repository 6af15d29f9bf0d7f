"""Dense encodings: every element stored individually, in f32, bf16 or f16, row-major or in a kernel's order.

`bf16` row-major; `bf16(layout=panel)` for the weight of a contraction: 16-row panels, each of which holds,
for 16 rows together, the pair of k (or the single k) that one dot instruction consumes; `layout=keys` and
`layout=values` for caches, in which tokens take the place of rows and of k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.contraction_form import Side
from tilewright.ir.encoding import Array, Encoding, EncodingError
from tilewright.ir.encoding_registry import Args, register_encoding
from tilewright.ir.encodings.values import PanelValues
from tilewright.ir.formulas import RowWriter, StoredBuffer, TileWriter, Value
from tilewright.ir.layout import PANEL, RecordSpec, StreamSpec
from tilewright.ir.numbers import hold

#: how many consecutive k one dot instruction consumes per lane, by dtype
GRAIN = {"f32": 1, "bf16": 2, "f16": 2}
_ORDERS = ("rows", "panel", "keys", "values")


@dataclass(frozen=True)
class Dense(Encoding):
    """Values rounded to `dtype`; `order` is the layout field."""

    dtype: str
    order: str = "rows"

    @property
    def element(self) -> str:  # type: ignore[override]
        return self.dtype

    @property
    def layout(self) -> str:  # type: ignore[override]
        return self.order

    @property
    def codec(self) -> str:  # type: ignore[override]
        return f"dense {self.dtype}"

    def __str__(self) -> str:
        return self.dtype if self.order == "rows" else f"{self.dtype}(layout={self.order})"

    def record(self, shape: Sequence[int | None]) -> RecordSpec:
        prefix, digits = panel_digits(len(shape), self.order, GRAIN[self.dtype])
        return RecordSpec(prefix, (StreamSpec("values", self.dtype, digits),))

    def wider(self) -> Dense | None:
        return replace(self, dtype="bf16") if self.dtype == "f16" else None

    def encode(self, x: NDArray[np.float32]) -> dict[str, Array]:
        return {"values": hold(x, self.dtype)}

    def decode(self, streams: Mapping[str, Array]) -> NDArray[np.float32]:
        return np.asarray(streams["values"], np.float32)

    def tile_decode(self, b: TileWriter, buffer: StoredBuffer, index: Sequence[object]) -> Value:
        return b.cast("f32", self.tile_read(b, buffer, index))

    def tile_read(self, b: TileWriter, buffer: StoredBuffer, index: Sequence[object]) -> Value:
        return b.load(f"{buffer.name}.values", *index)

    def tile_encode(self, row: RowWriter) -> None:
        for at in row.runs():
            row.store("values", at, row.b.cast(self.dtype, row.read(at)))

    def with_side(self, side: Side) -> Encoding:
        """The same values in panels, which can hold side streams. EncodingError if the text chose the
        layout."""
        return super().with_side(side) if self.order != "rows" else PanelValues(self.dtype).with_side(side)

    def arranged(self, order: str) -> Encoding:
        return replace(self, order=order) if self.order == "rows" else self


def panel_digits(rank: int, order: str, grain: int) -> tuple[str, str]:
    """Outer and inner digits of an order. `panel`: [..., N/16, K/g][16 N][g K]; `keys`: the same with tokens
    for N and the head's width for K; `values`: the head's width for N and tokens for K."""
    if order == "rows":
        return " ".join(str(d) for d in range(rank)), ""
    if rank < 2:
        raise EncodingError(f"layout {order} needs at least two dimensions, got {rank}")
    outer = " ".join(str(d) for d in range(rank - 2))
    a, z = rank - 2, rank - 1
    if order == "values":
        prefix, digits = f"{a}/{grain} {z}/{PANEL}", f"{z}.{PANEL} {a}.{grain}"
    else:
        prefix, digits = f"{a}/{PANEL} {z}/{grain}", f"{a}.{PANEL} {z}.{grain}"
    return f"{outer} {prefix}".strip(), digits


def _make(dtype: str, args: Args) -> Encoding:
    order = args.get("layout", "rows")
    if order not in _ORDERS or set(args) - {"layout"}:
        raise EncodingError(f"{dtype}: the only option is layout={'|'.join(_ORDERS)}, got {dict(args)}")
    return Dense(dtype, str(order))


for _dtype in GRAIN:
    register_encoding(_dtype, partial(_make, _dtype))
