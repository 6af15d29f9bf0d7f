"""`… + sparse(0.5%)`: the largest weights of every row kept beside any blocked encoding (SpQR, SqueezeLLM).

A row has one outlier for every 1 / share elements, wherever they lie: a column and an f16 (or bf16) that is
added to what the codes stand for, which are rounded without the outliers. A contraction adds their products
after the row's dot, 16 rows at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.affine import Affine
from tilewright.ir.encoding import (
    Args,
    Array,
    Encoding,
    EncodingError,
    Scale,
    parse_encoding,
    register_encoding,
)
from tilewright.ir.encodings.blocked import Blocked
from tilewright.ir.encodings.fields import Blocks, Field, Get
from tilewright.ir.formulas import Arithmetic, StoredBuffer, TileWriter, Value
from tilewright.ir.numbers import hold
from tilewright.ir.tile.core import Span

#: columns are u16
MOST = 1 << 16


@dataclass(frozen=True)
class Sparse(Blocked):
    """`inner`, and one outlier of a row for every `every` of its elements."""

    inner: Blocked
    every: int
    scale_dtype: str = "f16"

    side = ("outliers",)

    # ------------------------------------------------------------ text and fields
    def __str__(self) -> str:
        more = "" if self.scale_dtype == "f16" else f", scale={self.scale_dtype}"
        return f"{self.inner} + sparse({100 / self.every:.6g}%{more})"

    @property
    def codec(self) -> str:  # type: ignore[override]
        return self.inner.codec

    @property
    def scales(self) -> tuple[Scale, ...]:  # type: ignore[override]
        return self.inner.scales

    @property
    def blocks(self) -> Blocks:  # type: ignore[override]
        return replace(self.inner.blocks, side=self.every)

    def fields(self) -> tuple[Field, ...]:
        return (
            *self.inner.fields(),
            Field("columns", "u16", "side"),
            Field("outliers", self.scale_dtype, "side"),
        )

    def wider(self) -> Sparse | None:
        inner = self.inner.wider()
        if inner is None and self.scale_dtype != "f16":
            return None
        return replace(self, inner=inner if isinstance(inner, Blocked) else self.inner, scale_dtype="bf16")

    def check(self, shape: Sequence[int]) -> None:
        self.inner.check(shape)
        if shape[-1] > MOST:
            raise EncodingError(f"{self}: K = {shape[-1]} of shape {tuple(shape)} is beyond {MOST} columns")

    def fitting(self, shape: Sequence[int]) -> Blocked:
        return replace(self, inner=self.inner.fitting(shape))

    # ------------------------------------------------------------ what the codes stand for: the inner encodin
    @property
    def scalable(self) -> bool:  # type: ignore[override]
        return self.inner.scalable

    @property
    def narrow(self) -> bool:  # type: ignore[override]
        return self.inner.narrow

    @property
    def zero(self) -> int | None:  # type: ignore[override]
        return self.inner.zero

    @property
    def unit_scale(self) -> float:  # type: ignore[override]
        return self.inner.unit_scale

    @property
    def terms(self) -> int:  # type: ignore[override]
        return self.inner.terms

    @property
    def has_offset(self) -> bool:  # type: ignore[override]
        return self.inner.has_offset

    @property
    def has_zeros(self) -> bool:  # type: ignore[override]
        return self.inner.has_zeros

    @property
    def integer_parts(self) -> bool:  # type: ignore[override]
        return self.inner.integer_parts

    def value(self, b: Arithmetic, code: Value) -> Value:
        return self.inner.value(b, code)

    def units(self, b: Arithmetic, get: Get, dtype: str = "f32", centred: bool = True) -> Value:
        return self.inner.units(b, get, dtype, centred)

    def part(self, b: Arithmetic, get: Get) -> Any:
        return self.inner.part(b, get)

    def row(self, b: Arithmetic, get: Get) -> Value | None:
        return self.inner.row(b, get)

    def offset(self, b: Arithmetic, get: Get) -> Any:
        return self.inner.offset(b, get)

    def integers(self, b: Arithmetic, get: Get) -> Value:
        return self.inner.integers(b, get)

    def zeros(self, b: Arithmetic, get: Get) -> Value | None:
        return self.inner.zeros(b, get)

    def whole_part(self, b: Arithmetic, get: Get) -> Any:
        return self.inner.whole_part(b, get)

    def term(self, b: Arithmetic, get: Get, n: int) -> Value:
        return self.inner.term(b, get, n)

    def factor(self, b: Arithmetic, get: Get, n: int) -> Value:
        return self.inner.factor(b, get, n)

    # ------------------------------------------------------------ values
    def decode(self, streams: Mapping[str, Array]) -> NDArray[np.float32]:
        out = self.inner.decode(streams)
        at = streams["columns"].astype(np.int64)
        np.put_along_axis(
            out, at, np.take_along_axis(out, at, -1) + np.asarray(streams["outliers"], np.float32), -1
        )
        return out

    def tile_decode(self, b: TileWriter, buffer: StoredBuffer, index: Sequence[object]) -> Value:
        out = self.inner.tile_decode(b, buffer, index)
        last, k = index[-1], buffer.dims[-1].as_int()
        run = Span(Affine.of(last.start), last.stop) if isinstance(last, slice) else last
        lane = b.iota(run.size) + b.index_value(run.start) if isinstance(run, Span) else b.index_value(run)  # type: ignore[arg-type]
        with b.loop("e", 0, k, self.every, [out]) as loop:
            column = b.cast("i32", b.load(f"{buffer.name}.columns", *index[:-1], loop.var))
            value = b.cast("f32", b.load(f"{buffer.name}.outliers", *index[:-1], loop.var))
            if column.shape and isinstance(run, Span):
                column, value = b.expand(column, 1), b.expand(value, 1)
            loop.yield_(loop.carried[0] + b.select(b.op("eq", column, lane), value, 0.0))
        return loop.results[0]

    # ------------------------------------------------------------ rounding
    def round(self, x: NDArray[np.float32]) -> dict[str, Array]:
        return self.placed(x, self.largest(np.abs(x)))

    def largest(self, score: NDArray[np.float32]) -> NDArray[np.intp]:
        """Columns of as many outliers as a row has, those that score most, in ascending order: [.., N,
        count]."""
        k = score.shape[-1]
        count = -(-k // self.every)
        return np.sort(np.argpartition(score, k - count, -1)[..., -count:], -1)

    def placed(self, x: NDArray[np.float32], at: NDArray[np.intp]) -> dict[str, Array]:
        """Fields by name, with outliers in columns `at`, one for every `every` elements of a row."""
        dense = x.copy()
        np.put_along_axis(dense, at, np.float32(0), -1)
        found = self.inner.round(dense)
        streams = self.inner.split(found)
        left = np.take_along_axis(x - self.inner.decode(streams), at, -1)
        return {**found, "columns": at.astype(np.uint16), "outliers": hold(left, self.scale_dtype)}


def _make(args: Args) -> Encoding:
    share, of = str(args.get("0", "")), str(args.get("of", ""))
    number = share.removesuffix("%")
    scale = str(args.get("scale", "f16"))
    if not of or set(args) - {"0", "of", "scale"} or scale not in ("f16", "bf16"):
        raise EncodingError("sparse stands behind an encoding, as in int3(group=64) + sparse(0.5%)")
    inner = parse_encoding(of)
    if not isinstance(inner, Blocked) or isinstance(inner, Sparse):
        raise EncodingError(
            f"{inner} + sparse: outliers go beside codes in blocks; {inner} has none to spare"
        )
    if not share.endswith("%") or not 0.001 <= float(number) <= 25:
        raise EncodingError(
            f"sparse: a share from 0.001% to 25% is expected, as in sparse(0.5%), got {share or 'none'}"
        )
    return Sparse(inner, round(100 / float(number)), scale)


register_encoding("sparse", _make)
