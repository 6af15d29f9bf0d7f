"""`codebook3`: every row has its own table of 2^bits values, f16 or bf16 (SqueezeLLM).

Rounding takes a row's quantiles; the solver `lsq` refines them by k-means. Float activations are multiplied
with the values themselves. For int8 activations a value is written as table entry 0 plus a sum over the
non-empty sets of bits of its code: a set contributes its coefficient, one per row, if all bits of the set are
1 (the table's Moebius transform). Each set is then a plane of bits, and an integer dot.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.contraction_form import Get
from tilewright.ir.encoding import Array, Encoding, EncodingError, Scale
from tilewright.ir.encoding_registry import Args, register_encoding
from tilewright.ir.encodings.blocked import Blocked
from tilewright.ir.encodings.fields import Field
from tilewright.ir.formulas import Arithmetic, Value
from tilewright.ir.numbers import hold


@dataclass(frozen=True)
class RowCodebook(Blocked):
    """`bits`-wide codes into the row's table; each table entry is a field of its own, one number per row."""

    bits: int
    scale_dtype: str = "f16"

    narrow: ClassVar[bool] = False
    zero = 1
    has_offset = True
    ahead_of_time = "a row's table is computed from all its values"

    @property
    def codec(self) -> str:  # type: ignore[override]
        return f"codebook({1 << self.bits}, row)"

    @property
    def scales(self) -> tuple[Scale, ...]:  # type: ignore[override]
        return (Scale("channel", self.scale_dtype),)

    def __str__(self) -> str:
        return (
            f"codebook{self.bits}"
            if self.scale_dtype == "f16"
            else f"codebook{self.bits}(scale={self.scale_dtype})"
        )

    def fields(self) -> tuple[Field, ...]:
        table = (Field(f"t{n}", self.scale_dtype, "row") for n in range(1 << self.bits))
        return (Field("codes", f"u{self.bits}", bitplanes=True), *table)

    def wider(self) -> RowCodebook | None:
        return replace(self, scale_dtype="bf16") if self.scale_dtype == "f16" else None

    # ------------------------------------------------------------ formulas
    def value(self, b: Arithmetic, code: Value) -> Value:
        return b.cast("f32", code)

    def units(self, b: Arithmetic, get: Get, dtype: str = "f32", centred: bool = True) -> Value:
        """Table entries chosen pairwise by the bits of the code, the lowest bit first."""
        codes = b.cast("i32", self.codes.read(get))
        left = self._table(b, get)
        for bit in range(self.bits):
            odd = b.op("ne", codes & (1 << bit), 0)
            left = [b.select(odd, high, low) for low, high in zip(left[::2], left[1::2], strict=True)]
        return b.cast(dtype, left[0])

    def _table(self, b: Arithmetic, get: Get) -> list[Value]:
        return [b.cast("f32", get(f"t{n}")) for n in range(1 << self.bits)]

    def formula(self, b: Arithmetic, get: Get) -> Value:
        return self.units(b, get)

    @property
    def terms(self) -> int:  # type: ignore[override]
        return (1 << self.bits) - 1

    def term(self, b: Arithmetic, get: Get, n: int) -> Value:
        """u8: 1 where the code has all bits that n + 1 has, else 0."""
        return reduce(
            lambda x, y: x & y, [get(f"codesb{bit}") for bit in range(self.bits) if (n + 1) >> bit & 1]
        )

    def factor(self, b: Arithmetic, get: Get, n: int) -> Value:
        """f32 coefficient of set n + 1: the sum of the table entries of its subsets, with alternating
        signs."""
        members = n + 1
        out = b.cast("f32", get("t0"))
        out = b.op("neg", out) if members.bit_count() % 2 else out
        for m in range(1, members + 1):
            if m & members == m:
                entry = b.cast("f32", get(f"t{m}"))
                out = out - entry if (members ^ m).bit_count() % 2 else out + entry
        return out

    def offset(self, b: Arithmetic, get: Get) -> Value:
        return b.cast("f32", get("t0"))

    # ------------------------------------------------------------ rounding
    def round(self, x: NDArray[np.float32]) -> dict[str, Array]:
        count = 1 << self.bits
        table = hold(
            np.quantile(x, (np.arange(count) + 0.5) / count, axis=-1).astype(np.float32), self.scale_dtype
        )
        middles = (table[1:] + table[:-1]) / np.float32(2)
        codes = np.zeros(x.shape, np.uint8)
        for m in middles:
            codes += x > m[..., None]
        return {"codes": codes, **{f"t{n}": t[..., None] for n, t in enumerate(table)}}


def _make(bits: int, args: Args) -> Encoding:
    scale = str(args.get("scale", "f16"))
    if set(args) - {"scale"} or scale not in ("f16", "bf16"):
        raise EncodingError(f"codebook{bits}: the only option is scale=f16|bf16, got {dict(args)}")
    return RowCodebook(bits, scale)


for _bits in range(2, 5):
    register_encoding(f"codebook{_bits}", partial(_make, _bits))
