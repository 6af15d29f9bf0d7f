"""Buffers of the tile interpreter: values at coordinates, through the same layouts that kernels use.

In: flat bytes, dims, dtypes, layouts. Out: `Stored` streams that read and write at coordinate arrays.
Independent of statements or schedules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.errors import RefusedError
from tilewright.ir.layout import Layout, RecordSpec, record, row_major, unpack
from tilewright.ir.numbers import STORED, from_bits, to_bits
from tilewright.ir.tile.core import Buffer
from tilewright.ir.types import BITS, FLOATS

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Stored:
    """One stream of a buffer: its bytes, its layout, and the dimensions that bound its coordinates."""

    raw: NDArray[np.uint8]
    layout: Layout
    dtype: str
    dims: tuple[int, ...]
    dense: Array | None = None

    def read(self, coords: Sequence[NDArray[np.int64]], other: float) -> Array:
        """Held values (`ir.numbers`) at broadcast coordinates; outside the dims, `other`."""
        inside = self._inside(coords)
        safe = [np.where(inside, c, 0) for c in coords] if not inside.all() else list(coords)
        if 0 in self.dims:
            return from_other(other, self.dtype, inside.shape)
        if self.dense is not None:
            raw = np.asarray(self.dense[tuple(safe)]).reshape(inside.shape)
        else:
            raw = unpack(self.raw, self.layout, BITS[self.dtype], safe, STORED[self.dtype]).reshape(
                inside.shape
            )
        held = from_bits(raw, self.dtype)
        return (
            held
            if inside.all()
            else np.where(inside, held, from_other(other, self.dtype, ())).astype(held.dtype)
        )

    def write(self, coords: Sequence[NDArray[np.int64]], value: Array) -> None:
        """Held values stored at broadcast coordinates; those outside the dims are dropped."""
        inside = self._inside(coords)
        at = tuple(np.broadcast_to(c, inside.shape)[inside] for c in coords)
        bits = to_bits(np.broadcast_to(value, inside.shape)[inside], self.dtype)
        if self.dense is not None:
            self.dense[at] = bits if self.dims else bits.reshape(())
        else:
            _write_packed(self.raw, self.layout.offsets(at), bits, BITS[self.dtype])

    def _inside(self, coords: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
        inside = np.ones(np.broadcast_shapes(*(np.shape(c) for c in coords)), np.bool_)
        for c, n in zip(coords, self.dims, strict=True):
            inside &= (c >= 0) & (c < n)
        return inside


def from_other(other: float, dtype: str, shape: tuple[int, ...]) -> Array:
    """The `else` value of a load as its dtype holds it."""
    from tilewright.ir.numbers import hold

    return hold(np.full(shape, other, np.float64), dtype)


def _write_packed(raw: NDArray[np.uint8], off: NDArray[np.int64], bits: Array, width: int) -> None:
    if width >= 8:
        parts = np.ascontiguousarray(bits).view(np.uint8).reshape(-1, width // 8)
        for b in range(width // 8):
            raw[(off >> 3) + b] = parts[:, b]
        return
    for o, v in zip(off.tolist(), bits.tolist(), strict=True):
        for k in range(width):
            byte, shift = divmod(o + k, 8)
            raw[byte] = (int(raw[byte]) & ~(1 << shift)) | ((v >> k & 1) << shift)


def spec_and_layouts(b: Buffer, dims: Sequence[int]) -> tuple[RecordSpec | None, Mapping[str, Layout]]:
    """The record of a packed buffer and the layout of each stream; (None, {}) if it is dense."""
    if b.encoding is not None:
        return b.encoding.record(dims), b.encoding.layouts(dims)
    if b.record is not None:
        return b.record, record(
            dims, b.record.prefix, {s.name: (BITS[s.dtype], s.digits) for s in b.record.streams}
        )
    return None, {}


def buffer_bytes(b: Buffer, dims: Sequence[int]) -> int:
    """Bytes a buffer takes at these dims, padding included."""
    spec, layouts = spec_and_layouts(b, dims)
    return next(iter(layouts.values())).nbytes if spec else math.prod(dims) * BITS[b.dtype] // 8


def open_buffer(b: Buffer, dims: tuple[int, ...], raw: NDArray[np.uint8]) -> dict[str, Stored]:
    """Streams by the names loads use: `w` for dense buffers and the stream called `values`, else
    `w.codes`."""
    need = buffer_bytes(b, dims)
    if raw.nbytes < need:
        raise RefusedError(
            f"buffer %{b.name}: {need} bytes needed for {b.dtype}{list(dims)}, got {raw.nbytes}",
            hint="pass the stored bits of every parameter",
        )
    spec, layouts = spec_and_layouts(b, dims)
    if spec is None:
        view = raw[:need].view(STORED[b.dtype]).reshape(dims)
        return {b.name: Stored(raw, row_major(dims, BITS[b.dtype]), b.dtype, dims, view)}
    out = {f"{b.name}.{s.name}": Stored(raw, layouts[s.name], s.dtype, dims) for s in spec.streams}
    if f"{b.name}.values" in out and b.encoding is None:
        out[b.name] = out[f"{b.name}.values"]
    return out


def poison(b: Buffer, dims: tuple[int, ...]) -> Array:
    """The initial contents of a buffer in tests and interpreters, chosen so that elements which kernels leave
    unwritten are noticed: see `poisoned`."""
    packed = b.encoding is not None or b.record is not None
    return poisoned_bytes(buffer_bytes(b, dims)) if packed else poisoned(b.dtype, dims)


def poisoned(dtype: str, dims: tuple[int, ...]) -> Array:
    """Stored bits: NaN in floats, 0xA5 in every byte of integers."""
    size = np.dtype(STORED[dtype]).itemsize
    raw = np.full(math.prod(dims) * size, 0xFF if dtype in FLOATS else 0xA5, np.uint8)
    return raw.view(STORED[dtype]).reshape(dims)


def poisoned_bytes(nbytes: int) -> NDArray[np.uint8]:
    """Packed bytes, all 0xFF, so that floating-point scales read from them are NaN."""
    return np.full(nbytes, 0xFF, np.uint8)


def allocate(b: Buffer, dims: tuple[int, ...]) -> dict[str, Stored]:
    """A local, filled with values that must never be read."""
    need = buffer_bytes(b, dims)
    if need > 1 << 32:
        raise RefusedError(f"local %{b.name} takes {need} bytes; at most 2^32 are interpreted")
    return open_buffer(b, dims, poison(b, dims).reshape(-1).view(np.uint8))
