"""Narrow floats: `fp8(e4m3)`, `fp8(e5m2)`, `fp6(e2m3)`, `fp6(e3m2)`, `fp4`, with a scale per row or group.

Also the two block forms of hardware: `mxfp4`, `mxfp6`, `mxfp8` (a power of two per 32 elements, OCP
Microscaling Formats) and `nvfp4` (an e4m3 scale per 16 elements under one f32 of the tensor).

The values of formats with two exponent bits are small integers times a power of two, so these formats have
integer dots with int8 activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.contraction_form import Get
from tilewright.ir.encoding import Array, Encoding, EncodingError, Scale
from tilewright.ir.encoding_registry import Args, register_encoding
from tilewright.ir.encodings.blocked import Blocked, quotient
from tilewright.ir.encodings.fields import Blocks, Field
from tilewright.ir.encodings.float_formats import E2M1, E2M3, E3M2, E4M3, E5M2, Format
from tilewright.ir.encodings.made_rows import LARGEST
from tilewright.ir.encodings.made_rows import quotient as tile_quotient
from tilewright.ir.formulas import Arithmetic, TileWriter, Value
from tilewright.ir.numbers import hold, largest

F32 = NDArray[np.float32]
SCALES = ("f16", "bf16", "f32")


#: formats by name of the encoding; the first is the default
FORMATS = {"fp8": (E4M3, E5M2), "fp6": (E2M3, E3M2), "fp4": (E2M1,)}


@dataclass(frozen=True)
class FloatWeight(Blocked):
    """Narrow floats; one scale per row (`group` 0) or per `group` elements of a row: amax / the format's
    top."""

    format: Format
    group: int = 0
    scale_dtype: str = "f32"

    # ------------------------------------------------------------ text
    @property
    def codec(self) -> str:  # type: ignore[override]
        return f"float({self.format.exponent}, {self.format.mantissa})"

    @property
    def scales(self) -> tuple[Scale, ...]:  # type: ignore[override]
        return (Scale("group" if self.group else "channel", self.scale_dtype, self.group),)

    def __str__(self) -> str:
        words = [self.format.name] if len(FORMATS[f"fp{self.format.bits}"]) > 1 else []
        words += [f"group={self.group}" if self.group else "channel"]
        words += [f"scale={self.scale_dtype}"] if self.scale_dtype != ("f16" if self.group else "f32") else []
        return f"fp{self.format.bits}({', '.join(words)})"

    # ------------------------------------------------------------ fields and formulas
    @property
    def blocks(self) -> Blocks:  # type: ignore[override]
        return Blocks(self.group)

    def fields(self) -> tuple[Field, ...]:
        return Field("codes", f"u{self.format.bits}"), Field(
            "scale", self.scale_dtype, "block" if self.group else "row"
        )

    def wider(self) -> FloatWeight | None:
        return replace(self, scale_dtype="bf16") if self.scale_dtype == "f16" else None

    def value(self, b: Arithmetic, code: Value) -> Value:
        return self.format.value(b, code)

    def part(self, b: Arithmetic, get: Get) -> Value | None:
        return b.cast("f32", get("scale")) if self.group else None

    def row(self, b: Arithmetic, get: Get) -> Value | None:
        return None if self.group else b.cast("f32", get("scale"))

    def units(self, b: Arithmetic, get: Get, dtype: str = "f32", centred: bool = True) -> Value:
        if dtype == "bf16" and self.format.bits == 8:
            return self.format.narrow(b, self.codes.read(get))
        return super().units(b, get, dtype, centred)

    # ------------------------------------------------------------ integer dot
    @property
    def zero(self) -> int | None:  # type: ignore[override]
        return self.format.whole or None

    @property
    def unit_scale(self) -> float:  # type: ignore[override]
        return 2.0 ** (1 - self.format.bias - self.format.mantissa)

    def integers(self, b: Arithmetic, get: Get) -> Value:
        codes = self.codes.read(get)
        if self.format.bits > 4:
            return self.format.integers(b, codes)
        return b.lookup(self.format.integers(b, b.cast("u8", b.iota(1 << self.format.bits))), codes)

    # ------------------------------------------------------------ made inside kernels
    extremes = LARGEST

    def parameters_of(self, b: TileWriter, extremes: Sequence[Value]) -> Mapping[str, Value]:
        return {"scale": b.cast(self.scale_dtype, extremes[0] / self.format.top)}

    def codes_of(self, b: TileWriter, x: Value, get: Get) -> Value:
        scale = self.part(b, get) if self.group else self.row(b, get)
        return self.format.nearest(b, tile_quotient(b, x, scale))

    # ------------------------------------------------------------ rounding
    def round(self, x: F32) -> dict[str, Array]:
        w = self.grouped(x)
        out, scale = self.scaled(largest(w))
        return {"codes": self.format.code(quotient(w, scale[..., None])).reshape(x.shape), **out}

    def scaled(self, amax: F32) -> tuple[dict[str, Array], F32]:
        """Scale fields for blocks of these largest magnitudes [.., N, blocks], and the f32 scales that they
        stand for."""
        scale = hold(amax / np.float32(self.format.top), self.scale_dtype)
        return {"scale": scale}, scale


@dataclass(frozen=True)
class Microscaled(FloatWeight):
    """One scale per 32 elements: a power of two, stored as its exponent: 2^(exponent of amax - exponent of
    the format's top)."""

    group: int = 32
    scale_dtype: str = "u8"

    scalable = False

    def __str__(self) -> str:
        name = f"mxfp{self.format.bits}"
        return name if len(FORMATS[name[2:]]) == 1 else f"{name}({self.format.name})"

    def part(self, b: Arithmetic, get: Get) -> Value:
        return b.bitcast("f32", b.cast("i32", get("scale")) << 23)

    def parameters_of(self, b: TileWriter, extremes: Sequence[Value]) -> Mapping[str, Value]:
        exponent = (b.bitcast("i32", extremes[0]) >> 23) + (1 - int(np.frexp(self.format.top)[1]))
        return {"scale": b.cast("u8", b.op("min", b.op("max", exponent, 1), 254))}

    def scaled(self, amax: F32) -> tuple[dict[str, Array], F32]:
        exponent = np.frexp(amax)[1] - np.frexp(self.format.top)[1]
        code = np.clip(np.where(amax > 0, exponent, -126) + 127, 1, 254)
        return {"scale": code.astype(np.uint8)}, np.ldexp(np.float32(1), code - 127).astype(np.float32)


@dataclass(frozen=True)
class TwoLevel(FloatWeight):
    """e2m1 codes with an e4m3 scale per 16 elements, times one f32 scale of the whole tensor."""

    format: Format = E2M1
    group: int = 16
    scale_dtype: str = "u8"

    scalable = False
    ahead_of_time = "its scales are multiples of one for the whole tensor"

    @property
    def scales(self) -> tuple[Scale, ...]:  # type: ignore[override]
        return Scale("group", "u8", self.group), Scale("tensor", "f32")

    def __str__(self) -> str:
        return "nvfp4"

    def fields(self) -> tuple[Field, ...]:
        return (*super().fields(), Field("tensor", "f32", "tensor"))

    def part(self, b: Arithmetic, get: Get) -> Value:
        return E4M3.value(b, get("scale"))

    def row(self, b: Arithmetic, get: Get) -> Value:
        return get("tensor")

    def scaled(self, amax: F32) -> tuple[dict[str, Array], F32]:
        from tilewright.ir.encodings.arrays import Arrays

        tensor = np.float32(amax.max(initial=0) / np.float32(self.format.top * E4M3.top))
        codes = E4M3.code(quotient(amax / np.float32(self.format.top), np.asarray(tensor)))
        panels = (*amax.shape[:-2], -(-amax.shape[-2] // 16), 1)
        return {"scale": codes, "tensor": np.full(panels, tensor)}, E4M3.value(Arrays(), codes) * tensor


# ------------------------------------------------------------------ text
def _format(name: str, args: Args) -> tuple[Format, dict[str, Any]]:
    """The format named among the arguments, and the other arguments."""
    known = {f.name: f for f in FORMATS[name.removeprefix("mx")]}
    named = [str(v) for k, v in args.items() if k.isdecimal() and v in known]
    left = {k: v for k, v in args.items() if not (k.isdecimal() and v in known)}
    if len(named) > 1:
        raise EncodingError(f"{name}: {named[0]} and {named[1]} exclude each other")
    return known[named[0]] if named else FORMATS[name.removeprefix("mx")][0], left


def _make_float(name: str, args: Args) -> Encoding:
    found, left = _format(name, args)
    flags = [str(v) for k, v in left.items() if k.isdecimal()]
    channel = "channel" in flags or (name == "fp8" and "group" not in left)
    if "channel" in flags and "group" in left:
        raise EncodingError(f"{name}: channel and group={left['group']} exclude each other")
    group, scale = (
        left.get("group", 0 if channel else 32),
        str(left.get("scale", "f32" if channel else "f16")),
    )
    _reject(
        name,
        [
            *(set(left) - {"group", "scale", *(k for k in left if k.isdecimal())}),
            *(f for f in flags if f != "channel"),
        ],
    )
    if not isinstance(group, int) or isinstance(group, bool) or group < 0 or group % 4 or scale not in SCALES:
        raise EncodingError(
            f"{name}: group must be a positive multiple of 4 and scale one of {', '.join(SCALES)}; got "
            f"{dict(args)}"
        )
    return FloatWeight(found, group, scale)


def _make_microscaled(name: str, args: Args) -> Encoding:
    found, left = _format(name, args)
    _reject(name, list(map(str, left.values())))
    return Microscaled(found)


def _make_two_level(args: Mapping[str, object]) -> Encoding:
    _reject("nvfp4", list(map(str, args.values())))
    return TwoLevel()


def _reject(name: str, left: list[str]) -> None:
    if left:
        formats = "|".join(
            f.name
            for f in FORMATS.get(name.removeprefix("mx"), ())
            if len(FORMATS[name.removeprefix("mx")]) > 1
        )
        more = "channel, group=N, scale=f16|bf16|f32" if name in FORMATS else ""
        known = ", ".join(x for x in (formats, more) if x) or "none"
        raise EncodingError(f"{name}: unknown option {', '.join(sorted(left))}; known: {known}")


for _name in FORMATS:
    register_encoding(_name, partial(_make_float, _name))
    register_encoding(f"mx{_name}", partial(_make_microscaled, f"mx{_name}"))
register_encoding("nvfp4", _make_two_level)
