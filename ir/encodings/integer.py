"""Uniform integers: `int8(channel)`, `int8(group=64)`, `int4(group=32)` for weights, `int8(token)` for activations.

Weights are unsigned codes around a fixed zero (128 or 8), so that the integer dot takes them as its unsigned operand; the zero
point enters as the accumulator's first value, made by the activation encoder (`int8(token, sums=32, zero=8)`).
Symmetric round-to-nearest: scale = amax / (2^(bits-1) - 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Args, Array, Encoding, EncodingError, Scale, register_encoding
from tilewright.ir.encodings.dense import PANEL
from tilewright.ir.numbers import hold
from tilewright.ir.tile import Buffer, RecordSpec, Span, StreamSpec
from tilewright.ir.tilebuild import KernelBuilder, Tile

#: k per lane of the integer dot
GRAIN = 4


@dataclass(frozen=True)
class IntWeight(Encoding):
    """`bits`-wide codes with zero 2^(bits-1); one scale per row (`group` 0) or per `group` elements of a row."""

    bits: int
    group: int
    scale_dtype: str = "f16"

    @property
    def codec(self) -> str:  # type: ignore[override]
        return f"int({self.bits}, zero={self.zero})"

    @property
    def scales(self) -> tuple[Scale, ...]:  # type: ignore[override]
        return (Scale("group" if self.group else "channel", self.scale_dtype, self.group),)

    @property
    def zero(self) -> int:
        return 1 << (self.bits - 1)

    def __str__(self) -> str:
        scope = f"group={self.group}" if self.group else "channel"
        default = "f16" if self.group else "f32"
        return f"int{self.bits}({scope}{'' if self.scale_dtype == default else f', scale={self.scale_dtype}'})"

    def check(self, shape: Sequence[int]) -> None:
        if len(shape) < 2:
            raise EncodingError(f"{self}: needs a matrix, got shape {tuple(shape)}")
        if self.group and shape[-1] % self.group:
            raise EncodingError(f"{self}: group {self.group} does not divide K = {shape[-1]} of shape {tuple(shape)}")

    def record(self, shape: Sequence[int | None]) -> RecordSpec:
        n, k = len(shape) - 2, len(shape) - 1
        outer = " ".join(str(d) for d in range(n))
        depth = self.group or shape[-1]
        if depth is None:
            raise EncodingError(f"{self}: K must be a known integer")
        if self.bits == 4 and depth % 8 == 0:  # k-block 2t in the low nibbles, 2t+1 in the high ones
            codes = f"{k}.{depth // 8}:8 {n}.{PANEL} {k}.4 {k}.2:4"
        else:
            codes = f"{k}.{-(-depth // GRAIN)}:{GRAIN} {n}.{PANEL} {k}.{GRAIN}"
        prefix = f"{n}/{PANEL}" + (f" {k}/{self.group}" if self.group else "")
        streams = (StreamSpec("codes", f"u{self.bits}", codes), StreamSpec("scale", self.scale_dtype, f"{n}.{PANEL}"))
        return RecordSpec(f"{outer} {prefix}".strip(), streams)

    def grain(self, stream: str) -> tuple[int, ...]:
        return (1, self.group or 1 << 40) if stream == "scale" else (1, 1)

    def encode(self, x: NDArray[np.float32]) -> dict[str, Array]:
        self.check(x.shape)
        group = self.group or x.shape[-1]
        w = np.asarray(x, np.float32).reshape(*x.shape[:-1], -1, group)
        top = float(self.zero - 1)
        scale = hold(np.abs(w).max(-1) / np.float32(top), self.scale_dtype)
        with np.errstate(divide="ignore", invalid="ignore"):
            q = np.where(scale[..., None] > 0, np.rint(w / scale[..., None].astype(np.float32)), 0)
        codes = (np.clip(q, -self.zero, top) + self.zero).astype(np.uint8)
        return {"codes": codes.reshape(x.shape), "scale": scale}

    def decode(self, streams: Mapping[str, Array]) -> NDArray[np.float32]:
        codes = streams["codes"].astype(np.float32) - np.float32(self.zero)
        scale = np.asarray(streams["scale"], np.float32)
        return codes * np.repeat(scale, codes.shape[-1] // scale.shape[-1], axis=-1)

    def tile_decode(self, b: KernelBuilder, buffer: Buffer, index: Sequence[object]) -> Tile:
        codes = b.cast("f32", b.load(f"{buffer.name}.codes", *index)) - float(self.zero)
        return codes * b.cast("f32", b.load(f"{buffer.name}.scale", *index))

    def sums(self) -> tuple[int, int]:
        """(group, zero) that the `int8(token)` encoding of the other operand must carry; group 0 is the whole row."""
        return self.group, self.zero


@dataclass(frozen=True)
class IntToken(Encoding):
    """int8 activations with one f32 scale per row, made on the fly; `group`/`zero`: also `-zero * sum(codes)` per group of
    the row (whole row if group is 0) as the first value of the consumer's accumulator. zero 0: no sums."""

    group: int = 0
    zero: int = 0

    codec = "int(8)"
    scales = (Scale("token", "f32"),)

    @property
    def side(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("sums",) if self.zero else ()

    def __str__(self) -> str:
        return f"int8(token, sums={self.group}, zero={self.zero})" if self.zero else "int8(token)"

    def check(self, shape: Sequence[int]) -> None:
        if self.group and shape[-1] % self.group:
            raise EncodingError(f"{self}: sums over {self.group} do not divide K = {shape[-1]}")

    def groups(self, k: int) -> int:
        return k // self.group if self.group else 1

    def record(self, shape: Sequence[int | None]) -> RecordSpec:
        k, last = shape[-1], len(shape) - 1
        if k is None:
            raise EncodingError(f"{self}: K must be a known integer")
        streams = [StreamSpec("codes", "i8", f"{last}.{-(-k // 4) * 4}"), StreamSpec("scale", "f32", "")]
        if self.zero:
            streams.append(StreamSpec("sums", "i32", f"{last}.{self.groups(k)}:{self.group}" if self.group else ""))
        return RecordSpec(" ".join(str(d) for d in range(last)), tuple(streams))

    def grain(self, stream: str) -> tuple[int, ...]:
        return {"codes": (1,), "scale": (1 << 40,), "sums": (self.group or 1 << 40,)}[stream]

    def encode(self, x: NDArray[np.float32]) -> dict[str, Array]:
        self.check(x.shape)
        amax = np.abs(x).max(-1, keepdims=True).astype(np.float32)
        inv = np.where(amax > 0, np.float32(127) / np.where(amax > 0, amax, 1), np.float32(0)).astype(np.float32)
        codes = np.rint(x.astype(np.float32) * inv).astype(np.int8)
        out: dict[str, Array] = {"codes": codes, "scale": amax * np.float32(1 / 127)}
        if self.zero:
            parts = codes.astype(np.int32).reshape(*x.shape[:-1], self.groups(x.shape[-1]), -1)
            out["sums"] = (-self.zero * parts.sum(-1)).astype(np.int32)
        return out

    def decode(self, streams: Mapping[str, Array]) -> NDArray[np.float32]:
        return streams["codes"].astype(np.float32) * np.asarray(streams["scale"], np.float32)

    def tile_decode(self, b: KernelBuilder, buffer: Buffer, index: Sequence[object]) -> Tile:
        codes = b.cast("f32", b.load(f"{buffer.name}.codes", *index))
        rows = [*index[:-1], 0]
        scale = b.load(f"{buffer.name}.scale", *rows)
        if not isinstance(index[-1], slice | Span):
            return codes * scale
        return codes * (b.expand(scale, len(scale.shape)) if scale.shape else scale)


def _make_int(bits: int, args: Args) -> Encoding:
    left = dict(args)
    if bits == 8 and left.pop("0", None) == "token":
        group, zero = int(left.pop("sums", 0)), int(left.pop("zero", 0))
        _reject(f"int{bits}(token)", left, "sums, zero")
        return IntToken(group, zero)
    left = dict(args)
    channel = left.pop("0", None) == "channel"
    group = int(left.pop("group", 0 if channel else 32))
    scale = str(left.pop("scale", "f32" if channel else "f16"))
    _reject(f"int{bits}", left, "channel, group=N, scale=f16|bf16|f32")
    if scale not in ("f16", "bf16", "f32") or group < 0 or (group and (group % 4 or group > 1 << 20)):
        raise EncodingError(
            f"int{bits}: group must be a positive multiple of 4 and scale one of f16, bf16, f32; got {dict(args)}"
        )
    return IntWeight(bits, group, scale)


def _reject(name: str, left: Mapping[str, object], known: str) -> None:
    if left:
        raise EncodingError(f"{name}: unknown option {', '.join(map(str, left))}; known: {known}")


register_encoding("int8", lambda args: _make_int(8, args or {"0": "channel"}))
register_encoding("int4", lambda args: _make_int(4, args))
