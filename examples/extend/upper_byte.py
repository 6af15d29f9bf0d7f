"""A user-defined encoding of caches: keys and values as the upper byte of an f16 (e5m2, without a scale).

`e5m2` stands wherever `bf16` can in a cache: `tilewright compile DIR -o model.tw --plugin
examples/extend/upper_byte.py --kv e5m2`. Every value is stored by itself, so the kernel that appends to the
cache writes the runs that it computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.encoding_registry import Args, register_encoding
from tilewright.ir.encodings.arrays import Arrays
from tilewright.ir.formulas import Arithmetic, RowWriter, StoredBuffer, TileWriter, Value
from tilewright.ir.layout import RecordSpec, StreamSpec

#: the largest e5m2 number
TOP = 57344.0


def value(b: Arithmetic, codes: Value) -> Value:
    return b.cast("f32", b.bitcast("f16", b.cast("u16", codes) << 8))


@dataclass(frozen=True)
class UpperByte(Encoding):
    """u8 codes, row-major."""

    codec = "float(5, 2)"

    def __str__(self) -> str:
        return "e5m2"

    def record(self, shape: Sequence[int | None]) -> RecordSpec:
        return RecordSpec(" ".join(map(str, range(len(shape)))), (StreamSpec("codes", "u8", ""),))

    def encode(self, x: Any) -> dict[str, Any]:
        f32 = np.ascontiguousarray(np.clip(np.asarray(x, np.float32), -TOP, TOP))
        f16 = f32.astype(np.float16).view(np.uint16)
        return {"codes": np.minimum((f16 & 0x7FFF) + 0x80, 0x7BFF).astype(np.uint16) >> 8 | (f16 >> 8 & 0x80)}

    def decode(self, streams: Mapping[str, Any]) -> Any:
        return value(Arrays(), streams["codes"].astype(np.uint8))

    def tile_decode(self, b: TileWriter, buffer: StoredBuffer, index: Sequence[object]) -> Value:
        return value(b, b.load(f"{buffer.name}.codes", *index))

    def tile_encode(self, row: RowWriter) -> None:
        b = row.b
        for at in row.runs():
            x = b.op("min", b.op("max", b.cast("f32", row.read(at)), -TOP), TOP)
            bits = b.bitcast("u16", b.cast("f16", x))
            size = b.op("min", (bits & 0x7FFF) + 0x80, 0x7BFF)
            row.store("codes", at, b.cast("u8", size >> 8 | bits >> 8 & 0x80))


def _make(args: Args) -> UpperByte:
    if args:
        raise EncodingError(f"e5m2 takes no options, got {dict(args)}")
    return UpperByte()


register_encoding("e5m2", _make)
