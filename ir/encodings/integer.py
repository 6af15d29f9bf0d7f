"""Uniform integers as weights store them: `int1` to `int8`.

Codes are unsigned, the unsigned operand of the integer dot. `mode` says what they stand for: `sym` (default):
a fixed zero point 2^(bits-1), scale amax / (2^(bits-1) - 1); `asym`: a u8 zero point per block, scale range /
(2^bits - 1); `min`: instead of a zero point, an offset per block in the scale's dtype (as in q4_1);
`bipolar`: the odd integers 2u - (2^bits - 1), symmetric without a zero, {-1, 1} at one bit, where it is the
only mode ("bipolar INT"). `scale=int8`: a group's scale is an integer times one f32 per row, so that the
row's sum stays an integer (DGQ). `layout=keys` and `layout=values`: rows of a cache, whose integer dots
attention uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.contraction_form import ContractionForm, Get
from tilewright.ir.encoding import Array, Encoding, EncodingError, Scale, SymmetricRounding
from tilewright.ir.encodings.blocked import Blocked, quotient
from tilewright.ir.encodings.fields import Blocks, Field
from tilewright.ir.encodings.made_rows import AROUND_ZERO, LARGEST, RANGE, Extreme, clipped
from tilewright.ir.encodings.made_rows import quotient as tile_quotient
from tilewright.ir.formulas import Arithmetic, TileWriter, Value
from tilewright.ir.numbers import hold, largest

MODES = ("asym", "min", "bipolar")
ORDERS = ("keys", "values")
#: the dtype of scales that the text does not name, by what shares one
SCALE_OF = {"group": "f16", "channel": "f32", "token": "bf16"}
#: largest integer scale of a group
TOP_SCALE = 127


@dataclass(frozen=True)
class IntWeight(Blocked):
    """`bits`-wide codes; one scale per row (`group` 0) or per `group` elements of a row. `scale_dtype` i8:
    the group's scale is an integer multiple of one f32 per row. `order`: the layout field."""

    bits: int
    group: int
    scale_dtype: str = "f16"
    mode: str = "sym"
    order: str = "panel"

    # ------------------------------------------------------------ text
    @property
    def codec(self) -> str:  # type: ignore[override]
        return f"int({self.bits}, {self.mode})"

    @property
    def scales(self) -> tuple[Scale, ...]:  # type: ignore[override]
        first = Scale(self._scope, self.scale_dtype, self.group)
        return (first, Scale("channel", "f32")) if self.two_level else (first,)

    @property
    def layout(self) -> str:  # type: ignore[override]
        return self.order

    @property
    def _scope(self) -> str:
        """What shares a scale: rows of a weight are channels, those of a cache are tokens."""
        return "group" if self.group else "channel" if self.order == "panel" else "token"

    def __str__(self) -> str:
        words = [f"group={self.group}" if self.group else self._scope]
        words += [self.mode] if self.mode != ("sym" if self.bits > 1 else "bipolar") else []
        words += [f"scale={_spoken(self.scale_dtype)}"] if self.scale_dtype != SCALE_OF[self._scope] else []
        words += [f"layout={self.order}"] if self.order != "panel" else []
        return f"int{self.bits}({', '.join(words)})"

    # ------------------------------------------------------------ fields
    @property
    def two_level(self) -> bool:
        return self.scale_dtype == "i8"

    @property
    def blocks(self) -> Blocks:  # type: ignore[override]
        return Blocks(self.group, over_rows=self.order == "values")

    @property
    def centre(self) -> int:
        """The fixed zero point of symmetric codes."""
        return 1 << (self.bits - 1) if self.mode == "sym" else 0

    def fields(self) -> tuple[Field, ...]:
        per = "block" if self.group else "row"
        out = [Field("codes", f"u{self.bits}"), Field("scale", self.scale_dtype, per)]
        out += [Field("row", "f32", "row")] if self.two_level else []
        out += [Field("zero", "u8", per)] if self.mode == "asym" else []
        return (*out, Field("offset", self.scale_dtype, per)) if self.mode == "min" else tuple(out)

    def check(self, shape: Sequence[int]) -> None:
        super().check(shape)
        if self.two_level and self.centre * TOP_SCALE * 127 * shape[-1] >= 1 << 31:
            raise EncodingError(
                f"{self}: K = {shape[-1]} of shape {tuple(shape)} would overflow the row's integer sum"
            )

    def arranged(self, order: str) -> Encoding:
        if order == "panel":
            return self
        if not self.group and self.order == "panel":
            raise EncodingError(
                f"{self}: a cache is stored one token at a time, so its tokens cannot share scales; "
                f"use int{self.bits}(token) or int{self.bits}(group=N)"
            )
        found = replace(self, order=order)
        return self if found.ahead_of_time else found  # else decoded to floats, as other encodings are

    @property
    def cache_form(self) -> ContractionForm | None:
        exact = self.mode in ("sym", "asym") and not self.two_level
        return self if exact and self.order != "panel" else None

    def wider(self) -> IntWeight | None:
        return replace(self, scale_dtype="bf16") if self.scale_dtype == "f16" else None

    # ------------------------------------------------------------ formulas
    def value(self, b: Arithmetic, code: Value) -> Value:
        f = b.cast("f32", code)
        if self.mode == "bipolar":
            return f * 2.0 - float((1 << self.bits) - 1)
        return f - float(self.centre) if self.centre else f

    def units(self, b: Arithmetic, get: Get, dtype: str = "f32", centred: bool = True) -> Value:
        if self.mode != "asym" or not centred:
            return super().units(b, get, dtype)
        return b.cast(dtype, b.cast("f32", self.codes.read(get)) - b.cast("f32", get("zero")))

    def part(self, b: Arithmetic, get: Get) -> Value | None:
        return b.cast("f32", get("scale")) if self.group else None

    def row(self, b: Arithmetic, get: Get) -> Value | None:
        if self.two_level:
            return get("row")
        return None if self.group else b.cast("f32", get("scale"))

    def offset(self, b: Arithmetic, get: Get) -> Value | None:
        return b.cast("f32", get("offset")) if self.mode == "min" else None

    @property
    def has_offset(self) -> bool:  # type: ignore[override]
        return self.mode == "min"

    @property
    def has_zeros(self) -> bool:  # type: ignore[override]
        return self.mode == "asym"

    # ------------------------------------------------------------ integer dot
    @property
    def integer_parts(self) -> bool:  # type: ignore[override]
        return self.two_level

    @property
    def zero(self) -> int:  # type: ignore[override]
        return {"sym": self.centre, "bipolar": (1 << self.bits) - 1}.get(self.mode, 1)

    def integers(self, b: Arithmetic, get: Get) -> Value:
        codes = self.codes.read(get)
        return codes + codes if self.mode == "bipolar" else codes

    def zeros(self, b: Arithmetic, get: Get) -> Value | None:
        return get("zero") if self.mode == "asym" else None

    def whole_part(self, b: Arithmetic, get: Get) -> Value | None:
        return b.cast("i32", get("scale")) if self.two_level else None

    # ------------------------------------------------------------ made inside kernels
    @property
    def extremes(self) -> tuple[Extreme, ...]:  # type: ignore[override]
        if self.two_level or self.bits == 1:
            return ()
        return {"asym": AROUND_ZERO, "min": RANGE}.get(self.mode, LARGEST)

    @property
    def ahead_of_time(self) -> str:
        if self.two_level:
            return "its scales are multiples of one for the whole row"
        return "its scale is a mean of magnitudes" if self.bits == 1 else super().ahead_of_time

    @property
    def codes_above(self) -> tuple[int, int]:
        """The smallest and the largest code, less the fixed zero point of symmetric codes."""
        top = (1 << self.bits) - 1
        return (-self.centre, self.centre - 1) if self.mode == "sym" else (0, top)

    def parameters_of(self, b: TileWriter, extremes: Sequence[Value]) -> Mapping[str, Value]:
        low, high = extremes[0], extremes[-1]
        span = high - low if len(extremes) > 1 else high
        out = {"scale": b.cast(self.scale_dtype, span / float(self.codes_above[1]))}
        if self.mode == "min":
            out["offset"] = b.cast(self.scale_dtype, low)
        if self.mode == "asym":
            zero = b.op("neg", tile_quotient(b, low, b.cast("f32", out["scale"])))
            out["zero"] = b.cast("u8", clipped(b, b.op("round", zero), 0.0, 255.0))
        return out

    def codes_of(self, b: TileWriter, x: Value, get: Get) -> Value:
        scale, (least, top) = b.cast("f32", get("scale")), map(float, self.codes_above)
        if self.mode == "min":
            x = x - b.cast("f32", get("offset"))
        units = tile_quotient(b, x, scale)
        if self.mode == "bipolar":
            return b.cast("u8", clipped(b, b.op("floor", units * 0.5 + (top / 2 + 0.5)), least, top))
        above = b.cast("f32", get("zero")) if self.mode == "asym" else None
        whole = b.op("round", units)
        codes = clipped(b, whole if above is None else whole + above, least, top)
        return b.cast("u8", codes - least if least else codes)

    # ------------------------------------------------------------ rounding
    @property
    def symmetric_rounding(self) -> SymmetricRounding | None:
        if self.mode != "sym" or self.two_level:
            return None
        depth = partial(self.blocks.depth, self.fields())
        return SymmetricRounding(self.bits, self.group, self.scale_dtype, self.codes.planes, depth)

    def round(self, x: NDArray[np.float32]) -> dict[str, Array]:
        w = self.grouped(x)
        return getattr(self, f"_round_{self.mode}")(w, x.shape)  # type: ignore[no-any-return]

    def _round_sym(self, w: NDArray[np.float32], shape: Sequence[int]) -> dict[str, Array]:
        top = self.centre - 1
        out = self._scaled(largest(w) / np.float32(top))
        q = np.clip(np.rint(quotient(w, self._full(out))), -self.centre, top) + self.centre
        return {"codes": q.astype(np.uint8).reshape(shape), **out}

    def _round_bipolar(self, w: NDArray[np.float32], shape: Sequence[int]) -> dict[str, Array]:
        top = (1 << self.bits) - 1
        size = np.abs(w)
        out = self._scaled(
            (size.mean(-1) if self.bits == 1 else size.max(-1) / np.float32(top)).astype(np.float32)
        )
        q = np.clip(np.floor(quotient(w, self._full(out)) / 2 + np.float32(top / 2 + 0.5)), 0, top)
        return {"codes": q.astype(np.uint8).reshape(shape), **out}

    def _round_asym(self, w: NDArray[np.float32], shape: Sequence[int]) -> dict[str, Array]:
        top = (1 << self.bits) - 1
        low, high = np.minimum(w.min(-1), 0), np.maximum(w.max(-1), 0)
        out = self._scaled(((high - low) / np.float32(top)).astype(np.float32))
        scale = self._full(out)
        zero = np.clip(np.rint(-quotient(low, scale[..., 0])), 0, 255)
        q = np.clip(np.rint(quotient(w, scale)) + zero[..., None], 0, top)
        return {"codes": q.astype(np.uint8).reshape(shape), "zero": zero.astype(np.uint8), **out}

    def _round_min(self, w: NDArray[np.float32], shape: Sequence[int]) -> dict[str, Array]:
        top, low = (1 << self.bits) - 1, hold(w.min(-1), self.scale_dtype)
        out = self._scaled(((w.max(-1) - w.min(-1)) / np.float32(top)).astype(np.float32))
        q = np.clip(np.rint(quotient(w - low[..., None], self._full(out))), 0, top)
        return {"codes": q.astype(np.uint8).reshape(shape), "offset": low, **out}

    def _scaled(self, scale: NDArray[np.float32]) -> dict[str, Array]:
        """The fields that store these scales [.., N, blocks]."""
        if not self.two_level:
            return {"scale": hold(scale, self.scale_dtype)}
        row = (scale.max(-1, keepdims=True) / np.float32(TOP_SCALE)).astype(np.float32)
        return {"scale": np.clip(np.rint(quotient(scale, row)), 1, TOP_SCALE).astype(np.int8), "row": row}

    def _full(self, out: Mapping[str, Array]) -> NDArray[np.float32]:
        """f32 scales [.., N, blocks, 1] that the fields stand for; the last axis broadcasts over a block's
        elements."""
        scale = np.asarray(out["scale"], np.float32)
        return (scale * out["row"] if self.two_level else scale)[..., None]


def _spoken(dtype: str) -> str:
    return "int8" if dtype == "i8" else dtype
