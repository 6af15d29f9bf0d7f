"""A user's encoding in one file: weights of -1, 0 and 1 with one f32 scale per row, four codes to a byte.

Use it as `tilewright compile DIR -o model.tw --plugin examples/extend/ternary.py --weights ternary
--activations f32`. The threshold is 0.7 of a row's mean magnitude ("Ternary Weight Networks").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.ir.encoding import Encoding, Scale
from tilewright.ir.encoding_registry import Args, register_encoding
from tilewright.ir.layout import RecordSpec, StreamSpec
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import Buffer


@dataclass(frozen=True)
class Ternary(Encoding):
    """Codes 0, 1, 2 stand for -1, 0, 1 times the row's scale."""

    codec, layout = "codebook(3)", "panel"
    scales = (Scale("channel", "f32"),)

    def __str__(self) -> str:
        return "ternary"

    def record(self, shape: Sequence[int | None]) -> RecordSpec:
        n, k = len(shape) - 2, len(shape) - 1
        depth = -(-(shape[k] or 1) // 4)
        outer = " ".join([*map(str, range(n)), f"{n}/16"])
        codes = StreamSpec("codes", "u2", f"{k}.{depth}:4 {n}.16 {k}.4", lo=0, hi=2)
        return RecordSpec(outer, (codes, StreamSpec("scale", "f32", f"{n}.16")))

    def grain(self, stream: str) -> tuple[int, ...]:
        return (1, 1 << 40) if stream == "scale" else (1, 1)

    def encode(self, x: Any) -> dict[str, Any]:
        size = np.abs(x)
        kept = size > 0.7 * size.mean(-1, keepdims=True)
        scale = (size * kept).sum(-1, keepdims=True) / np.maximum(kept.sum(-1, keepdims=True), 1)
        return {"codes": (np.sign(x) * kept + 1).astype(np.uint8), "scale": scale.astype(np.float32)}

    def decode(self, streams: Mapping[str, Any]) -> Any:
        return (streams["codes"].astype(np.float32) - 1) * streams["scale"]

    def tile_decode(self, b: KernelBuilder, buffer: Buffer, index: Sequence[object]) -> Tile:
        codes = b.cast("f32", b.load(f"{buffer.name}.codes", *index)) - 1.0
        return codes * b.load(f"{buffer.name}.scale", *index)


def _make(args: Args) -> Ternary:
    return Ternary()


register_encoding("ternary", _make)
