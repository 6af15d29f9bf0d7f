"""The block formats of GGUF files: `q4_0` to `q8_0`, and `q2_k` to `q6_k`, with superblocks of 256 elements.

The numbers of a block are those of the public format, bit for bit, in this project's own order; `from_blocks`
and `to_blocks` convert between the two orders without loss. Rounding is that of llama.cpp's reference
functions for formats with blocks of 32, and round-to-nearest without a search over scales for those of 256.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.contraction_form import Get
from tilewright.ir.encoding import Array, Encoding, EncodingError, Scale
from tilewright.ir.encoding_registry import Args, register_encoding
from tilewright.ir.encodings.blocked import Blocked, quotient
from tilewright.ir.encodings.fields import Blocks, Field
from tilewright.ir.encodings.gguf_bytes import closed, opened
from tilewright.ir.formulas import Arithmetic, Value
from tilewright.ir.numbers import hold

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """A format: bits of a code, elements of a block, what is subtracted from codes; dtypes of a block's scale
    and minimum where these are integer multiples of an f16 per 256 elements; what is subtracted from such a
    scale."""

    bits: int
    block: int
    centre: int = 0
    scale: str = ""
    least: str = ""
    scale_centre: int = 0


KINDS = {
    "q4_0": Kind(4, 32, 8), "q4_1": Kind(4, 32), "q5_0": Kind(5, 32, 16), "q5_1": Kind(5, 32),
    "q8_0": Kind(8, 32, 128),
    "q2_k": Kind(2, 16, 0, "u4", "u4"), "q3_k": Kind(3, 16, 4, "u6", "", 32),
    "q4_k": Kind(4, 32, 0, "u6", "u6"),
    "q5_k": Kind(5, 32, 0, "u6", "u6"), "q6_k": Kind(6, 16, 32, "i8"),
}  # fmt: skip
SUPER = 256
#: the format used instead where 256 does not divide K
SMALLER = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}


@dataclass(frozen=True)
class GgufBlocks(Blocked):
    """One of `KINDS`."""

    kind: str

    ahead_of_time = "its blocks are rounded as those of GGUF files are"

    # ------------------------------------------------------------ text and fields
    def __str__(self) -> str:
        return self.kind

    @property
    def spec(self) -> Kind:
        return KINDS[self.kind]

    @property
    def codec(self) -> str:  # type: ignore[override]
        return f"int({self.spec.bits})"

    @property
    def scales(self) -> tuple[Scale, ...]:  # type: ignore[override]
        s = self.spec
        return (
            (Scale("group", s.scale, s.block), Scale("group", "f16", SUPER))
            if s.scale
            else (Scale("group", "f16", s.block),)
        )

    @property
    def blocks(self) -> Blocks:  # type: ignore[override]
        return Blocks(self.spec.block, SUPER if self.spec.scale else 0)

    def fields(self) -> tuple[Field, ...]:
        s = self.spec
        codes, per = Field("codes", f"u{s.bits}"), "outer" if s.scale else "block"
        scale = (Field("scale", s.scale, "block"),) if s.scale else ()
        least = (Field("least", s.least, "block"),) if s.least else ()
        return (
            codes,
            *scale,
            Field("d", "f16", per),
            *least,
            *((Field("m", "f16", per),) if self.has_offset else ()),
        )

    # ------------------------------------------------------------ formulas
    def value(self, b: Arithmetic, code: Value) -> Value:
        f = b.cast("f32", code)
        return f - float(self.spec.centre) if self.spec.centre else f

    def part(self, b: Arithmetic, get: Get) -> Value:
        d = b.cast("f32", get("d"))
        if not self.spec.scale:
            return d
        scale = b.cast("f32", self._field("scale").read(get))
        return d * (scale - float(self.spec.scale_centre) if self.spec.scale_centre else scale)

    def offset(self, b: Arithmetic, get: Get) -> Value | None:
        if not self.has_offset:
            return None
        m = b.cast("f32", get("m"))
        return b.op("neg", m * b.cast("f32", self._field("least").read(get))) if self.spec.scale else m

    @property
    def has_offset(self) -> bool:  # type: ignore[override]
        return not self.spec.centre

    @property
    def zero(self) -> int:  # type: ignore[override]
        return self.spec.centre or 1

    def _field(self, name: str) -> Field:
        return next(f for f in self.fields() if f.name == name)

    def fitting(self, shape: Sequence[int]) -> Encoding:
        """As llama.cpp does: where 256 does not divide K, a format with blocks of 32."""
        return GgufBlocks(SMALLER[self.kind]) if self.spec.scale and shape[-1] % SUPER else self

    # ------------------------------------------------------------ the public form
    def from_blocks(self, raw: NDArray[np.uint8]) -> dict[str, Array]:
        """Streams from rows of blocks in the bytes of GGUF files, u8[.., bytes]."""
        return self.split(opened(self.kind, raw))

    def to_blocks(self, streams: Mapping[str, Array]) -> NDArray[np.uint8]:
        """Rows of blocks in the bytes of GGUF files, u8[.., bytes]."""
        return closed(self.kind, {f.name: f.join(streams) for f in self.fields()})

    # ------------------------------------------------------------ rounding
    def round(self, x: F32) -> dict[str, Array]:
        w = self.grouped(x)
        if not self.spec.scale:
            out = self._round_32_min(w) if self.has_offset else self._round_32(w)
        else:
            out = self._round_256_min(w) if self.has_offset else self._round_256(w)
        return {**out, "codes": out["codes"].astype(np.uint8).reshape(x.shape)}

    def _round_32(self, w: F32) -> dict[str, Array]:
        """llama.cpp's reference: the value of largest magnitude gets the unit -centre, or 127 with its sign
        where codes are bytes."""
        c = self.spec.centre
        if self.spec.bits == 8:
            d = (np.abs(w).max(-1) / np.float32(127)).astype(np.float32)
            q = w * _inverse(d)
            return {"codes": np.trunc(q + np.copysign(np.float32(0.5), q)) + c, "d": hold(d, "f16")}
        d = (_signed(w) / np.float32(-c)).astype(np.float32)
        return {
            "codes": np.clip(np.trunc(w * _inverse(d) + np.float32(c + 0.5)), 0, 2 * c - 1),
            "d": hold(d, "f16"),
        }

    def _round_32_min(self, w: F32) -> dict[str, Array]:
        top, low = (1 << self.spec.bits) - 1, w.min(-1)
        d = ((w.max(-1) - low) / np.float32(top)).astype(np.float32)
        codes = np.clip(np.trunc((w - low[..., None]) * _inverse(d) + np.float32(0.5)), 0, top)
        return {"codes": codes, "d": hold(d, "f16"), "m": hold(low, "f16")}

    def _round_256(self, w: F32) -> dict[str, Array]:
        """The scales of blocks are signed integers times one f16 per 256 elements."""
        c, most = self.spec.centre, 128 if self.spec.scale == "i8" else 32
        scale = self._supers(_signed(w) / np.float32(-c))
        d = hold((_signed(scale) / np.float32(-most)).astype(np.float32), "f16")
        whole = np.clip(np.rint(quotient(scale, d[..., None])), -most, most - 1)
        full = (whole * d[..., None]).astype(np.float32).reshape(w.shape[:-1])
        codes = np.clip(np.rint(quotient(w, full[..., None])) + c, 0, 2 * c - 1)
        held = (whole + self.spec.scale_centre).reshape(w.shape[:-1])
        return {"codes": codes, "scale": held.astype(np.int8 if most == 128 else np.uint8), "d": d}

    def _supers(self, per_block: Array) -> F32:
        """[.., blocks] as [.., blocks of 256, blocks]."""
        return np.asarray(per_block, np.float32).reshape(*per_block.shape[:-1], -1, SUPER // self.spec.block)

    def _round_256_min(self, w: F32) -> dict[str, Array]:
        top, most = (1 << self.spec.bits) - 1, (1 << int(self.spec.scale[1:])) - 1
        low = np.minimum(w.min(-1), 0)
        parts = [self._supers(((w.max(-1) - low) / np.float32(top)).astype(np.float32)), self._supers(-low)]
        held = [hold((p.max(-1) / np.float32(most)).astype(np.float32), "f16") for p in parts]
        whole = [
            np.clip(np.rint(quotient(p, h[..., None])), 0, most) for p, h in zip(parts, held, strict=True)
        ]
        scale, least = (
            (n * h[..., None]).astype(np.float32).reshape(low.shape) for n, h in zip(whole, held, strict=True)
        )
        codes = np.clip(np.rint(quotient(w + least[..., None], scale[..., None])), 0, top)
        a, b = (n.astype(np.uint8).reshape(low.shape) for n in whole)
        return {"codes": codes, "scale": a, "d": held[0], "least": b, "m": held[1]}


def _signed(w: F32) -> F32:
    """The value of largest magnitude along the last axis, with its sign; of equal magnitudes the first."""
    at = np.abs(w).argmax(-1)
    return np.asarray(np.take_along_axis(w, at[..., None], -1)[..., 0], np.float32)


def _inverse(d: F32) -> F32:
    return quotient(np.ones_like(d), d)[..., None]


def _make(kind: str, args: Args) -> Encoding:
    if args:
        raise EncodingError(f"{kind} takes no options, got {dict(args)}")
    return GgufBlocks(kind)


for _kind in KINDS:
    register_encoding(_kind, partial(_make, _kind))
