"""The byte layout of GGUF blocks: sections of bytes in order, and the bits of each number in a section.

In: rows of blocks as bytes, or numbers by name. Out: the numbers, or the bytes. Only where bits are stored is
known here, not what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Bits:
    """Bits of a section, whose bytes are divided into runs of `run` bytes. Within a run, numbers are ordered
    by shift and then by byte: for each shift, one number per byte. The bits read are bits `to` and up of the
    numbers called `name`."""

    name: str
    run: int
    shifts: tuple[int, ...]
    width: int
    to: int = 0

    def read(self, section: Bytes) -> Bytes:
        runs = section.reshape(*section.shape[:-1], -1, 1, self.run)
        found = (runs >> np.array(self.shifts, np.uint8)[:, None]) & np.uint8((1 << self.width) - 1)
        return np.asarray(found.reshape(*section.shape[:-1], -1) << np.uint8(self.to), np.uint8)

    def write(self, numbers: Bytes) -> Bytes:
        """The bytes of the section with these bits set and all others zero."""
        part = (numbers >> np.uint8(self.to)) & np.uint8((1 << self.width) - 1)
        runs = (
            part.reshape(*part.shape[:-1], -1, len(self.shifts), self.run)
            << np.array(self.shifts, np.uint8)[:, None]
        )
        return np.asarray(np.bitwise_or.reduce(runs, -2).reshape(*part.shape[:-1], -1), np.uint8)


@dataclass(frozen=True)
class Section:
    """`size` bytes of a block: numbers of one dtype (`f16`, `i8`, or `u8` less 128), bits of numbers, or
    packed pairs (`6+6`)."""

    size: int
    name: str = ""
    dtype: str = ""
    bits: tuple[Bits, ...] = ()


_D, _M = Section(2, "d", "f16"), Section(2, "m", "f16")
_NIBBLES, _PAIRS, _SINGLE = (0, 4), (0, 2, 4, 6), tuple(range(8))
_LOW = Section(16, bits=(Bits("codes", 16, _NIBBLES, 4),))
_FIFTH = Section(4, bits=(Bits("codes", 1, _SINGLE, 1, 4),))
_TWO = Section(64, bits=(Bits("codes", 32, _PAIRS, 2),))
_FOUR = Section(128, bits=(Bits("codes", 32, _NIBBLES, 4),))
_SIXES = Section(12, "scale", "6+6")
LAYOUTS: dict[str, tuple[Section, ...]] = {
    "q4_0": (_D, _LOW), "q4_1": (_D, _M, _LOW), "q5_0": (_D, _FIFTH, _LOW), "q5_1": (_D, _M, _FIFTH, _LOW),
    "q8_0": (_D, Section(32, "codes", "u8-128")),
    "q2_k": (Section(16, bits=(Bits("scale", 16, (0,), 4), Bits("least", 16, (4,), 4))), _TWO, _D, _M),
    "q3_k": (
        Section(32, bits=(Bits("codes", 32, _SINGLE, 1, 2),)), _TWO,
        Section(8, bits=(Bits("scale", 8, _NIBBLES, 4),)), Section(4, bits=(Bits("scale", 4, _PAIRS, 2, 4),)),
        _D,
    ),
    "q4_k": (_D, _M, _SIXES, _FOUR),
    "q5_k": (_D, _M, _SIXES, Section(32, bits=(Bits("codes", 32, _SINGLE, 1, 4),)), _FOUR),
    "q6_k": (
        Section(128, bits=(Bits("codes", 64, _NIBBLES, 4),)),
        Section(64, bits=(Bits("codes", 32, _PAIRS, 2, 4),)),
        Section(16, "scale", "i8"), _D,
    ),
}  # fmt: skip


def block_bytes(kind: str) -> int:
    return sum(s.size for s in LAYOUTS[kind])


def opened(kind: str, raw: Bytes) -> dict[str, Array]:
    """Numbers by name, [.., entries], from rows of blocks [.., bytes]."""
    blocks = np.ascontiguousarray(raw, np.uint8).reshape(*raw.shape[:-1], -1, block_bytes(kind))
    out: dict[str, Array] = {}
    at = 0
    for s in LAYOUTS[kind]:
        part = np.ascontiguousarray(blocks[..., at : at + s.size])
        at += s.size
        for name, numbers in _read(s, part).items():
            out[name] = out[name] | numbers if name in out else numbers
    return {name: a.reshape(*raw.shape[:-1], -1) for name, a in out.items()}


def closed(kind: str, numbers: Mapping[str, Array]) -> Bytes:
    """The inverse of `opened`."""
    blocks = numbers["d"].shape
    apart = {n: np.asarray(a).reshape(*blocks, -1) for n, a in numbers.items()}
    return np.concatenate([_write(s, apart) for s in LAYOUTS[kind]], -1).reshape(*blocks[:-1], -1)


def _read(s: Section, part: Bytes) -> dict[str, Array]:
    if s.dtype == "f16":
        return {s.name: part.view(np.float16).astype(np.float32)}
    if s.dtype == "i8":
        return {s.name: part.view(np.int8)}
    if s.dtype == "u8-128":
        return {s.name: part ^ np.uint8(128)}
    if s.dtype == "6+6":
        a, b, c = (part[..., 4 * n : 4 * n + 4] for n in range(3))
        scale = np.concatenate([a & 63, (c & 15) | (a >> 6) << 4], -1)
        return {"scale": scale, "least": np.concatenate([b & 63, (c >> 4) | (b >> 6) << 4], -1)}
    out: dict[str, Array] = {}
    for bits in s.bits:
        out[bits.name] = bits.read(part)
    return out


def _write(s: Section, numbers: Mapping[str, Array]) -> Bytes:
    if s.dtype == "f16":
        return np.ascontiguousarray(numbers[s.name].astype(np.float16)).view(np.uint8)
    if s.dtype == "i8":
        return np.ascontiguousarray(numbers[s.name].astype(np.int8)).view(np.uint8)
    if s.dtype == "u8-128":
        return np.asarray(numbers[s.name] ^ np.uint8(128), np.uint8)
    if s.dtype == "6+6":
        low, high = ((numbers[n][..., :4], numbers[n][..., 4:]) for n in ("scale", "least"))
        tops = [(first & 63) | (second >> 4) << 6 for first, second in (low, high)]
        return np.concatenate([*tops, (low[1] & 15) | (high[1] & 15) << 4], -1).astype(np.uint8)
    out = np.zeros(1, np.uint8)
    for bits in s.bits:
        out = out | bits.write(numbers[bits.name].astype(np.uint8))
    return out
