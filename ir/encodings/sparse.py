"""`… + sparse(0.5%)`: the largest weights of each row, stored apart from the codes (SpQR, SqueezeLLM).

A row has one outlier per 1 / share elements, in any columns: a u16 column and an f16 (or bf16) value that is
added to what the code stands for. Codes are rounded as if the outliers were zero. A contraction adds the
products of the outliers after the row's dot, for 16 rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.affine import Affine
from tilewright.ir.encoding import Array, EncodingError
from tilewright.ir.encoding_registry import Args, register_side
from tilewright.ir.encodings.fielded import Fielded, Part
from tilewright.ir.encodings.fields import Field
from tilewright.ir.formulas import TileWriter, Value
from tilewright.ir.numbers import hold
from tilewright.ir.tile.core import Span

#: most columns: their numbers are u16
MOST = 1 << 16


@dataclass(frozen=True)
class Outliers(Part):
    """One outlier per `every` elements of a row."""

    name: ClassVar[str] = "sparse"

    every: int
    scale_dtype: str = "f16"

    def __str__(self) -> str:
        more = "" if self.scale_dtype == "f16" else f", scale={self.scale_dtype}"
        return f"sparse({100 / self.every:.6g}%{more})"

    def fields(self) -> tuple[Field, ...]:
        return (
            Field("columns", "u16", "side", every=self.every),
            Field("outliers", self.scale_dtype, "side", every=self.every),
        )

    @property
    def prefetch(self) -> tuple[tuple[str, int], ...]:
        return (("e", 1),)

    def wider(self) -> Outliers | None:
        return replace(self, scale_dtype="bf16") if self.scale_dtype == "f16" else None

    def check(self, shape: Sequence[int]) -> None:
        if shape[-1] > MOST:
            raise EncodingError(f"{self}: K = {shape[-1]} of shape {tuple(shape)} is beyond {MOST} columns")

    # ------------------------------------------------------------ values
    def add(self, values: NDArray[np.float32], streams: Mapping[str, Array]) -> NDArray[np.float32]:
        at = streams["columns"].astype(np.int64)
        kept = np.asarray(streams["outliers"], np.float32)
        np.put_along_axis(values, at, np.take_along_axis(values, at, -1) + kept, -1)
        return values

    def tile_add(
        self, b: TileWriter, values: Value, get: Callable[..., Value], index: Sequence[object], k: int
    ) -> Value:
        last: Any = index[-1]
        run = Span(Affine.of(last.start), last.stop) if isinstance(last, slice) else last
        lane = b.iota(run.size) + b.index_value(run.start) if isinstance(run, Span) else b.index_value(run)
        with b.loop("e", 0, k, self.every, [values]) as loop:
            column = b.cast("i32", get("columns", loop.var))
            value = b.cast("f32", get("outliers", loop.var))
            if column.shape and isinstance(run, Span):
                column, value = b.expand(column, 1), b.expand(value, 1)
            loop.yield_(loop.carried[0] + b.select(b.op("eq", column, lane), value, 0.0))
        return loop.results[0]

    def tile_contract(
        self, b: TileWriter, acc: Value, x: Callable[[Any], Value], get: Callable[[str, Any], Value], k: int
    ) -> Value:
        """Each step of the loop adds one outlier of every row."""
        with b.loop("e", 0, k, self.every, [acc]) as loop:
            columns = get("columns", loop.var)
            value = b.expand(b.cast("f32", get("outliers", loop.var)), 0)
            xs = b.cast("f32", x(b.cast("i32", columns)))
            loop.yield_(b.op("fma", xs, value, loop.carried[0]))
        return loop.results[0]

    # ------------------------------------------------------------ rounding
    def round(self, x: NDArray[np.float32], base: Fielded) -> dict[str, Array]:
        return self.round_with_outliers(x, base, np.abs(x))

    def round_with_outliers(
        self, x: NDArray[np.float32], base: Fielded, score: NDArray[np.float32]
    ) -> dict[str, Array]:
        """With outliers in the columns that score highest, one for every `every` elements of a row."""
        at = self.largest(score)
        dense = x.copy()
        np.put_along_axis(dense, at, np.float32(0), -1)
        found = base.round(dense)
        left = np.take_along_axis(x - base.decode(base.split(found)), at, -1)
        return {**found, "columns": at.astype(np.uint16), "outliers": hold(left, self.scale_dtype)}

    def largest(self, score: NDArray[np.float32]) -> NDArray[np.intp]:
        """Columns of as many outliers as a row has, those that score highest, in ascending order: [.., N,
        count]."""
        k = score.shape[-1]
        count = -(-k // self.every)
        return np.sort(np.argpartition(score, k - count, -1)[..., -count:], -1)


def _make(args: Args) -> Outliers:
    share, scale = str(args.get("0", "")), str(args.get("scale", "f16"))
    if set(args) - {"0", "scale"} or scale not in ("f16", "bf16"):
        raise EncodingError(
            f"sparse: expected a share and scale=f16|bf16, as in sparse(0.5%), got {dict(args)}"
        )
    number = share.removesuffix("%")
    if not share.endswith("%") or not 0.001 <= float(number) <= 25:
        raise EncodingError(
            f"sparse: a share from 0.001% to 25% is expected, as in sparse(0.5%), got {share or 'none'}"
        )
    return Outliers(round(100 / float(number)), scale)


register_side("sparse", _make)
