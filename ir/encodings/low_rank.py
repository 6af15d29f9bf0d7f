"""`… + lowrank(16)`: a product of two thin matrices plus an encoding of what it leaves (SVDQuant).

The factors are the leading singular vectors, in bf16. They are stored as matrices of their own, not as
streams of the encoding: `encode-weights` rewrites a contraction to y = x W' + (x R) L, with three weights, so
that the kernels of the base encoding are used unchanged. No weight is stored as this encoding itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.contraction_form import Side
from tilewright.ir.encoding import Addend, Array, Encoding, EncodingError, Factors, Scale
from tilewright.ir.encoding_registry import Args, parse_encoding, register_side
from tilewright.ir.formulas import StoredBuffer, TileWriter, Value
from tilewright.ir.layout import RecordSpec
from tilewright.ir.weights.low_rank import FACTOR, factors


@dataclass(frozen=True)
class LowRank(Addend):
    """The rank of the product."""

    name: ClassVar[str] = "lowrank"

    rank: int

    def __str__(self) -> str:
        return f"lowrank({self.rank})"

    def beside(self, of: Encoding) -> Encoding:
        if of.factors is not None:
            raise EncodingError(f"{of} + {self}: there is a low-rank part already")
        return Factored(of, self)


@dataclass(frozen=True)
class Factored(Encoding):
    """The sum of values that `base` stores and a product of two factors. Codec and scales are those of the
    base."""

    base: Encoding
    product: LowRank

    def __str__(self) -> str:
        return f"{self.base} + {self.product}"

    @property
    def codec(self) -> str:  # type: ignore[override]
        return self.base.codec

    @property
    def scales(self) -> tuple[Scale, ...]:  # type: ignore[override]
        return self.base.scales

    @property
    def factors(self) -> Factors:
        return Factors(self.base, self.product.rank, parse_encoding(FACTOR))

    @property
    def ahead_of_time(self) -> str:
        return f"{self.product} is computed from all values of a matrix"

    def with_side(self, side: Side) -> Encoding:
        """Sides belong to the base, in whatever order the text names them."""
        return Factored(self.base.with_side(side), self.product)

    def arranged(self, order: str) -> Encoding:
        return Factored(self.base.arranged(order), self.product)

    def fitting(self, shape: Sequence[int]) -> Encoding:
        return Factored(self.base.fitting(shape), self.product)

    def wider(self) -> Encoding | None:
        base = self.base.wider()
        return None if base is None else Factored(base, self.product)

    def check(self, shape: Sequence[int]) -> None:
        self.base.check(shape)
        if len(shape) != 2 or self.product.rank > min(shape):
            raise EncodingError(
                f"{self}: expected one matrix of at least {self.product.rank} rows and columns, got shape "
                f"{tuple(shape)}"
            )

    def nbytes(self, shape: Sequence[int]) -> int:
        return self.base.nbytes(shape) + sum(
            self.factors.encoding.arranged("panel").nbytes(s) for s in self.factors.shapes(shape)
        )

    # ------------------------------------------------------------ values
    def encode(self, x: NDArray[np.float32]) -> dict[str, Array]:
        """The streams of the base, `left` [N, r] and `right` [r, K]."""
        self.check(x.shape)
        left, right = factors(x, self.product.rank)
        return {**self.base.encode(x - left @ right), "left": left, "right": right}

    def decode(self, streams: Mapping[str, Array]) -> NDArray[np.float32]:
        product = np.asarray(streams["left"], np.float32) @ np.asarray(streams["right"], np.float32)
        return np.asarray(self.base.decode(streams) + product, np.float32)

    # ------------------------------------------------------------ as three weights only
    def record(self, shape: Sequence[int | None]) -> RecordSpec:
        self._apart()

    def tile_decode(self, b: TileWriter, buffer: StoredBuffer, index: Sequence[object]) -> Value:
        self._apart()

    def _apart(self) -> NoReturn:
        raise EncodingError(
            f"{self} is stored as three weights: run encode-weights, which expands the layers that read it"
        )


def _make(args: Args) -> LowRank:
    rank = args.get("0")
    if set(args) != {"0"} or not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise EncodingError(f"lowrank: expected a rank, as in lowrank(16), got {dict(args)}")
    return LowRank(rank)


register_side("lowrank", _make)
