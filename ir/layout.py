"""Layouts as digit lists: one map from element coordinates to bit offsets for all readers and writers.

A stream is an ordered list of digits `(dim, size, step)`: `index // step % size`, outer to inner; strides
follow from the order. A dimension with no digit (below some step) broadcasts, so tensor, channel, group and
token scales are one rule. Source: the layout spike behind this project; the idea that packing follows from
the consumer's load map is TurboMind's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.affine import Affine

#: rows of a contraction's weight, or tokens of a cache, that lie together in the layouts kernels read
PANEL = 16


@dataclass(frozen=True, slots=True)
class Digit:
    """One factor of a layout. `size` None: the outermost digit of its dimension, as large as the dimension
    requires. `stride` is in bits."""

    dim: int
    size: int | None
    step: int
    stride: int


@dataclass(frozen=True)
class Layout:
    """Element coordinates to a bit offset. `nbytes` is the size of the whole record that holds the stream, 0
    if the outermost digit has no static extent (then the record has `row_bytes` per unit of that digit)."""

    digits: tuple[Digit, ...]
    base: int = 0
    nbytes: int = 0

    def offset(self, index: Sequence[Affine], extents: Mapping[str, int] | None = None) -> Affine:
        """Bit offset of an index, affine in the same names. `extents`: largest value + 1 of each name, where
        known.

        Raises ValueError if names would carry across a digit (then the offset is not affine)."""
        out = Affine((), self.base)
        for d in self.digits:
            at = index[d.dim]
            terms: dict[str, int] = {}
            low = top = 0
            for name, c in at.terms:
                reach = (extents or {}).get(name, 1 << 40) - 1
                c = int(c)
                if d.size is not None and c % (d.step * d.size) == 0:
                    continue
                if c % d.step == 0:
                    terms[name] = c // d.step
                    top += terms[name] * reach
                else:
                    low += c * reach
            const = int(at.const)
            q, r = divmod(const, d.step)
            if d.size is not None:
                q %= d.size
            if (low and r + low >= d.step) or (d.size is not None and terms and q + top >= d.size):
                raise ValueError(f"index {at} carries across layout digit {d}")
            out = out + Affine(tuple(sorted((n, c * d.stride) for n, c in terms.items() if c)), q * d.stride)
        return out

    def offsets(self, index: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Bit offsets of integer coordinate arrays (broadcast against each other)."""
        out = np.int64(self.base) + np.zeros(np.broadcast_shapes(*[np.shape(i) for i in index]), np.int64)
        for d in self.digits:
            q = np.asarray(index[d.dim], np.int64) // d.step
            out = out + (q if d.size is None else q % d.size) * d.stride
        return out

    def atom(self, lanes: int) -> tuple[tuple[int, int], ...]:
        """The innermost `lanes` elements as ((dim, size), ...) outer to inner: what one contiguous vector
        covers."""
        got: list[tuple[int, int]] = []
        count = 1
        for d in sorted(self.digits, key=lambda d: d.stride):
            done = math.prod(s for dim, s in got if dim == d.dim)
            if count >= lanes or d.step != done:
                break
            size = min(d.size or lanes, lanes // count)
            got.insert(0, (d.dim, size))
            count *= size
        return tuple(got)

    def by_entry(self, grain: Sequence[int]) -> Layout:
        """The same stream indexed by entry number, where an entry covers `grain[d]` elements along dim d."""

        def step(d: int, s: int) -> int:
            return max(s // grain[d], 1)

        digits = tuple(
            replace(
                d,
                size=None
                if d.size is None
                else max(-(-d.size * d.step // grain[d.dim]) // step(d.dim, d.step), 1),
                step=step(d.dim, d.step),
            )
            for d in self.digits
        )
        return Layout(digits, self.base, self.nbytes)

    @property
    def packed(self) -> bool:
        """Some dimension is split over several digits or broadcast: tails are covered by padding, not by
        masks."""
        return any(d.size is not None for d in self.digits)


@dataclass(frozen=True)
class StreamSpec:
    """One stream of a record: its storage dtype (`u4`, `f16`, …), inner digits (see `record`) and
    value range."""

    name: str
    dtype: str
    digits: str
    lo: int | None = None
    hi: int | None = None


@dataclass(frozen=True)
class RecordSpec:
    """A packed buffer: outer digits, then the streams that lie one after another in each record."""

    prefix: str
    streams: tuple[StreamSpec, ...]


def rows_together(spec: RecordSpec, rank: int) -> int:
    """How many indices of the last axis but one (of the only axis: 1) share a record."""
    steps = {int(m[1]): int(m[2] or 1) for m in re.finditer(r"(\d+)(?:/(\d+))?", spec.prefix)}
    return steps.get(rank - 2, 1)


def row_major(shape: Sequence[int | None], bits: int) -> Layout:
    """Dense layout; None (only for the outermost dimension, or one whose stride is not needed) means unknown
    extent."""
    digits: list[Digit] = []
    stride = bits
    for dim in reversed(range(len(shape))):
        digits.insert(0, Digit(dim, None, 1, stride))
        stride *= shape[dim] or 1
    return Layout(tuple(digits), 0, -(-stride // 8) if all(shape) else 0)


_TOKEN = re.compile(r"^(\d+)(?:/(\d+)|\.(\d+)(?::(\d+))?)$|^(\d+)$")


def record(
    shape: Sequence[int | None], prefix: str, streams: Mapping[str, tuple[int, str]]
) -> dict[str, Layout]:
    """Layouts of streams that lie one after another inside each record.

    `record((5632, 2048), "0/16 1/32", {"codes": (4, "1.8:4 0.16 1.4 1.2:4"), "scale": (16, "0.16")})`

    The prefix lists outer digits `dim/step` (or `dim`), outermost first; a stream lists inner digits
    `dim.size[:step]`. Dimensions are numbers, outermost first. Each record is padded to whole bytes; extents
    are rounded up to whole records. Raises ValueError on a malformed digit.
    """
    at, inner = 0, {}
    for name, (bits, text) in streams.items():
        digits: list[Digit] = []
        stride = bits
        for token in reversed(text.split()):
            m = _TOKEN.match(token)
            if not m or m[3] is None:
                raise ValueError(
                    f"layout digit {token!r} of stream {name}: expected DIM.SIZE or DIM.SIZE:STEP"
                )
            digits.insert(0, Digit(int(m[1]), int(m[3]), int(m[4] or 1), stride))
            stride *= int(m[3])
        inner[name] = (at, digits)
        at += -(-stride // 8) * 8
    outer: list[Digit] = []
    stride, unknown = at, False
    for token in reversed(prefix.split()):
        m = _TOKEN.match(token)
        if not m or m[3] is not None:
            raise ValueError(f"layout digit {token!r}: expected DIM or DIM/STEP")
        dim, step = int(m[1] or m[5]), int(m[2] or 1)
        outer.insert(0, Digit(dim, None, step, stride))
        extent = shape[dim]
        if unknown:
            raise ValueError(f"dimension {dim} is inside a digit of unknown extent")
        unknown = extent is None
        stride *= -(-(extent or 1) // step)
    # a dimension listed twice in the prefix: all but its outermost digit wrap around
    seen: set[int] = set()
    fixed: list[Digit] = []
    for d in outer:
        if d.dim in seen:
            above = next(e for e in reversed(fixed) if e.dim == d.dim)
            d = Digit(d.dim, above.step // d.step, d.step, d.stride)
            fixed.append(d)
        else:
            seen.add(d.dim)
            fixed.append(d)
    total = 0 if unknown else stride // 8
    return {name: Layout(tuple(fixed + digits), base, total) for name, (base, digits) in inner.items()}


def pack(
    arrays: Mapping[str, NDArray[Any]], layouts: Mapping[str, Layout], bits: Mapping[str, int]
) -> NDArray[np.uint8]:
    """NumPy packer: logical arrays of stored bits (`numbers.to_bits`) through their layouts into one byte
    buffer."""
    out = np.zeros(next(iter(layouts.values())).nbytes, np.uint8)
    for name, a in arrays.items():
        index = [
            np.arange(n).reshape([-1 if d == k else 1 for k in range(a.ndim)]) for d, n in enumerate(a.shape)
        ]
        off = np.broadcast_to(layouts[name].offsets(index), a.shape)
        width = bits[name]
        if width < 8:
            _pack_bits(out, a, off, width)
        else:
            raw = np.ascontiguousarray(a).view(np.uint8).reshape(*a.shape, -1)
            for b in range(width // 8):
                out[(off >> 3) + b] = raw[..., b]
    return out


def _pack_bits(out: NDArray[np.uint8], a: NDArray[Any], off: NDArray[np.int64], width: int) -> None:
    for bit in range(width):
        where = off + bit
        value = ((a.astype(np.uint8) >> np.uint8(bit)) & np.uint8(1)).astype(np.uint8)
        for s in range(8):
            m = (where & 7) == s
            if m.any():
                np.bitwise_or.at(out, where[m] >> 3, value[m] << np.uint8(s))


def unpack(
    raw: NDArray[np.uint8],
    layout: Layout,
    bits: int,
    index: Sequence[NDArray[np.int64]],
    stored: type[np.generic],
) -> NDArray[Any]:
    """Stored bits at the given coordinates (broadcast). For widths under a byte the result is uint8 codes."""
    off = layout.offsets(index)
    if bits < 8:
        out = np.zeros(off.shape, np.uint8)
        for bit in range(bits):
            where = off + bit
            out |= ((raw[where >> 3] >> (where & 7).astype(np.uint8)) & np.uint8(1)) << np.uint8(bit)
        return out
    size = bits // 8
    parts = np.stack([raw[(off >> 3) + b] for b in range(size)], axis=-1)
    return np.ascontiguousarray(parts).view(stored).reshape(off.shape)
