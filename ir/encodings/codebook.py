"""`codebook3`: every row has its own table of 2^bits f16 values (SqueezeLLM).

Rounding takes a row's quantiles; the solver `lsq` makes k-means of them. Values are no integers under a scale, so activations
that meet them stay floats.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Args, Array, Encoding, EncodingError, Scale, register_encoding
from tilewright.ir.encodings.blocked import Blocked
from tilewright.ir.encodings.fields import Field, Get, Value
from tilewright.ir.numbers import hold


@dataclass(frozen=True)
class RowCodebook(Blocked):
    """`bits`-wide codes into the row's table, whose entries are fields of their own."""

    bits: int

    narrow: ClassVar[bool] = False
    scales = (Scale("channel", "f16"),)

    @property
    def codec(self) -> str:  # type: ignore[override]
        return f"codebook({1 << self.bits}, row)"

    def __str__(self) -> str:
        return f"codebook{self.bits}"

    def fields(self) -> tuple[Field, ...]:
        return (Field("codes", f"u{self.bits}"), *(Field(f"t{n}", "f16", "row") for n in range(1 << self.bits)))

    # ------------------------------------------------------------ formulas
    def value(self, b: Any, code: Value) -> Value:
        return b.cast("f32", code)

    def units(self, b: Any, get: Get, dtype: str = "f32", centred: bool = True) -> Value:
        """A tournament on the bits of the code, the lowest first."""
        codes = self.codes.read(get)
        left = [b.cast("f32", get(f"t{n}")) for n in range(1 << self.bits)]
        for bit in range(self.bits):
            odd = b.op("ne", codes & (1 << bit), 0)
            left = [b.select(odd, high, low) for low, high in zip(left[::2], left[1::2], strict=True)]
        return b.cast(dtype, left[0])

    # ------------------------------------------------------------ rounding
    def round(self, x: NDArray[np.float32]) -> dict[str, Array]:
        count = 1 << self.bits
        table = hold(np.quantile(x, (np.arange(count) + 0.5) / count, axis=-1).astype(np.float32), "f16")
        middles = (table[1:] + table[:-1]) / np.float32(2)
        codes = np.zeros(x.shape, np.uint8)
        for m in middles:
            codes += x > m[..., None]
        return {"codes": codes, **{f"t{n}": t[..., None] for n, t in enumerate(table)}}


def _make(bits: int, args: Args) -> Encoding:
    if args:
        raise EncodingError(f"codebook{bits} takes no options, got {dict(args)}")
    return RowCodebook(bits)


for _bits in range(2, 5):
    register_encoding(f"codebook{_bits}", partial(_make, _bits))
