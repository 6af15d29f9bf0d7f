"""A user-defined side stream: `… + mean` stores the mean of every row beside the codes of an encoding.

It works for any encoding in blocks, which then rounds what is left.

Use it as `--weights "int4(group=32) + mean"`; it stands with others: `int4(group=32) + mean + sparse(1%)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tilewright.ir.encoding import EncodingError
from tilewright.ir.encoding_registry import Args, register_side
from tilewright.ir.encodings.fielded import Fielded, Part
from tilewright.ir.encodings.fields import Field
from tilewright.ir.formulas import TileWriter, Value
from tilewright.ir.numbers import hold
from tilewright.ir.tile.core import Span

#: elements of a row of activations that are summed at once
WIDTH = 16


@dataclass(frozen=True)
class RowMean(Part):
    """One f16 a row."""

    name: ClassVar[str] = "mean"

    def __str__(self) -> str:
        return "mean"

    def fields(self) -> tuple[Field, ...]:
        return (Field("mean", "f16", "row"),)

    def round(self, x: Any, base: Fielded) -> dict[str, Any]:
        mean = hold(x.mean(-1, keepdims=True, dtype=np.float32), "f16")
        return {**base.round(x - mean), "mean": mean}

    def add(self, values: Any, streams: Mapping[str, Any]) -> Any:
        return values + np.asarray(streams["mean"], np.float32)

    def tile_add(
        self, b: TileWriter, values: Value, get: Callable[..., Value], index: Sequence[object], k: int
    ) -> Value:
        mean = b.cast("f32", get("mean", 0))
        across = isinstance(index[-1], slice | Span)
        return values + (b.expand(mean, 1) if mean.shape and across else mean)

    def tile_contract(
        self, b: TileWriter, acc: Value, x: Callable[[Any], Value], get: Callable[[str, Any], Value], k: int
    ) -> Value:
        """The sum of a row of activations times the mean of a row of weights."""
        mean = b.cast("f32", b.transpose(get("mean", slice(0, 1))))
        step = math.gcd(k, WIDTH)
        with b.loop("m", 0, k, step, [acc]) as loop:
            total = b.reduce("add", b.cast("f32", x(Span(loop.var, step))), 1)
            loop.yield_(b.op("fma", total, mean, loop.carried[0]))
        return loop.results[0]


def _make(args: Args) -> RowMean:
    if args:
        raise EncodingError(f"mean takes no options, got {dict(args)}")
    return RowMean()


register_side("mean", _make)
