"""`nf4` (QLoRA): sixteen quantiles of the normal distribution, scaled by the largest of 64 magnitudes.

`nf4(group=N, scale=f16|bf16|f32)`; `nf4(group=64, double)` stores the scales in 8 bits, spread evenly between
the row's smallest and largest scale. Zero and both ends are exact under a scale of f32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.contraction_form import Get
from tilewright.ir.encoding import Array, Encoding, EncodingError, Scale
from tilewright.ir.encoding_registry import Args, register_encoding
from tilewright.ir.encodings.blocked import Blocked, quotient
from tilewright.ir.encodings.fields import Blocks, Field
from tilewright.ir.encodings.made_rows import LARGEST
from tilewright.ir.encodings.made_rows import quotient as tile_quotient
from tilewright.ir.formulas import Arithmetic, TileWriter, Value
from tilewright.ir.numbers import hold, largest

SCALES = ("f16", "bf16", "f32")
VALUES = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], np.float32)  # fmt: skip
MIDDLES = (VALUES[1:] + VALUES[:-1]) / np.float32(2)


@dataclass(frozen=True)
class NormalFloat(Blocked):
    """4-bit codes into `VALUES`; a scale per `group` elements, of `scale_dtype`, or a `u8` multiple of the
    row's step (`double`)."""

    group: int = 64
    scale_dtype: str = "f32"

    codec = "codebook(16)"
    #: the values are not bf16 numbers
    narrow: ClassVar[bool] = False

    @property
    def scales(self) -> tuple[Scale, ...]:  # type: ignore[override]
        first = Scale("group", self.scale_dtype, self.group)
        return (first, Scale("channel", "f32")) if self.double else (first,)

    def __str__(self) -> str:
        words = [f"group={self.group}"] + (["double"] if self.double else [])
        words += [f"scale={self.scale_dtype}"] if self.scale_dtype in ("f16", "bf16") else []
        return f"nf4({', '.join(words)})"

    @property
    def double(self) -> bool:
        return self.scale_dtype == "u8"

    @property
    def blocks(self) -> Blocks:  # type: ignore[override]
        return Blocks(self.group)

    def fields(self) -> tuple[Field, ...]:
        out = (Field("codes", "u4"), Field("scale", self.scale_dtype, "block"))
        return (*out, Field("step", "f32", "row"), Field("least", "f32", "row")) if self.double else out

    def wider(self) -> NormalFloat | None:
        return replace(self, scale_dtype="bf16") if self.scale_dtype == "f16" else None

    def value(self, b: Arithmetic, code: Value) -> Value:
        return chosen(b, code, VALUES)

    def part(self, b: Arithmetic, get: Get) -> Value:
        scale = b.cast("f32", get("scale"))
        return scale * get("step") + get("least") if self.double else scale

    # ------------------------------------------------------------ made inside kernels
    extremes = LARGEST

    @property
    def ahead_of_time(self) -> str:
        return (
            "its scales are coded relative to the range of all scales of the row"
            if self.double
            else super().ahead_of_time
        )

    def parameters_of(self, b: TileWriter, extremes: Sequence[Value]) -> Mapping[str, Value]:
        return {"scale": b.cast(self.scale_dtype, extremes[0])}

    def codes_of(self, b: TileWriter, x: Value, get: Get) -> Value:
        """u8 codes: how many of the middles between neighbouring values lie below each unit."""
        units = tile_quotient(b, x, b.cast("f32", get("scale")))
        steps = [
            b.select(b.op("lt", b.const(float(m)), units), b.const(1, "i32"), b.const(0, "i32"))
            for m in MIDDLES
        ]
        return b.cast("u8", reduce(lambda x, y: x + y, steps))

    # ------------------------------------------------------------ rounding
    def round(self, x: NDArray[np.float32]) -> dict[str, Array]:
        w = self.grouped(x)
        out, scale = self._scaled(largest(w))
        return {
            "codes": np.searchsorted(MIDDLES, quotient(w, scale[..., None]))
            .astype(np.uint8)
            .reshape(x.shape),
            **out,
        }

    def _scaled(self, amax: NDArray[np.float32]) -> tuple[dict[str, Array], NDArray[np.float32]]:
        if not self.double:
            held = hold(amax, self.scale_dtype)
            return {"scale": held}, held
        least = amax.min(-1, keepdims=True)
        step = ((amax.max(-1, keepdims=True) - least) / np.float32(255)).astype(np.float32)
        codes = np.clip(np.rint(quotient(amax - least, step)), 0, 255).astype(np.uint8)
        return {"scale": codes, "step": step, "least": least}, (codes * step + least).astype(np.float32)


def chosen(b: Arithmetic, code: Value, values: Sequence[float] | NDArray[np.float32]) -> Value:
    """f32: the value of each code, by comparison with every code; for tables, which are made once."""
    out = b.cast("f32", code) * 0.0 + float(values[0])
    for n, value in enumerate(values):
        if n:
            out = b.select(b.op("eq", code, n), b.cast("f32", code) * 0.0 + float(value), out)
    return out


def _make(args: Args) -> Encoding:
    flags = [str(v) for k, v in args.items() if k.isdecimal()]
    left = {k: v for k, v in args.items() if not k.isdecimal()}
    group, double = left.pop("group", 64), "double" in flags
    scale = str(left.pop("scale", "u8" if double else "f32"))
    if unknown := [*left, *(f for f in flags if f != "double")]:
        raise EncodingError(
            f"nf4: unknown option {', '.join(unknown)}; known: group=N, double, scale=f16|bf16|f32"
        )
    if double and scale != "u8":
        raise EncodingError(f"nf4: double and scale={scale} exclude each other")
    if (
        not isinstance(group, int)
        or isinstance(group, bool)
        or group <= 0
        or group % 4
        or scale not in (*SCALES, "u8")
    ):
        raise EncodingError(
            f"nf4: group must be a positive multiple of 4 and scale one of {', '.join(SCALES)}; got "
            f"{dict(args)}"
        )
    return NormalFloat(group, scale)


register_encoding("nf4", _make)
