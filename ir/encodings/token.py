"""int8 activations: one f32 scale a token, made on the fly, with the sums that the zero of the weights they meet needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Array, Encoding, EncodingError, Scale
from tilewright.ir.tile import Buffer, RecordSpec, Span, StreamSpec
from tilewright.ir.tilebuild import KernelBuilder, Tile


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
