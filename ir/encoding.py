"""Encodings: how numbers are stored. One object serves weights, activations and the KV cache.

Five independent fields (codec, scales, structure, layout, side streams) and five duties: text form, buffers,
`encode`, `decode` in NumPy, and a *tile decode*. Registered by short name, so that a user's file can add one.
Knows nothing of graphs, targets or files.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.formulas import StoredBuffer, TileWriter, Value
from tilewright.ir.layout import Layout, RecordSpec, pack, record, unpack
from tilewright.ir.numbers import BITS, STORED, from_bits, to_bits
from tilewright.ir.weights.packing import fast_pack

Array = NDArray[Any]


class EncodingError(ValueError):
    """An encoding whose text, shape or values do not fit; the message says which and what would."""


class RangeError(EncodingError):
    """Finite values that an encoding cannot hold: they would decode to infinity."""


@dataclass(frozen=True)
class Scale:
    """One level of scales: scope `tensor`, `channel`, `token` or `group` (with its size), and the dtype it is
    kept in."""

    scope: str
    dtype: str = "f32"
    group: int = 0


class Encoding(ABC):
    """An encoding of arrays of any shape; the last axis is the one that groups and dots run along (K)."""

    # ------------------------------------------------------------ the five fields
    codec: str = ""
    scales: tuple[Scale, ...] = ()
    structure: str = "dense"
    side: tuple[str, ...] = ()
    #: whether a row's values are proportional to its float parameters, so that powers of two may be taken out
    #: of it
    scalable: bool = True

    @abstractmethod
    def __str__(self) -> str:
        """The text form; `parse_encoding(str(e)) == e`."""

    @abstractmethod
    def record(self, shape: Sequence[int | None]) -> RecordSpec:
        """The layout field: outer digits and streams, for an array of this shape (None: an extent known at
        run time)."""

    @abstractmethod
    def encode(self, x: NDArray[np.float32]) -> dict[str, Array]:
        """Round-to-nearest: values to logical arrays, one per stream, each indexed by *element* coordinates
        divided by the stream's granularity (`grain`). Raises EncodingError naming the shape that does not
        fit."""

    @abstractmethod
    def decode(self, streams: Mapping[str, Array]) -> NDArray[np.float32]:
        """The values that the logical arrays stand for."""

    @abstractmethod
    def tile_decode(self, b: TileWriter, buffer: StoredBuffer, index: Sequence[object]) -> Value:
        """Emit the tile ops that load `index` of `buffer` and decode it to f32, with loads of `buffer.name +
        '.stream'`."""

    # ------------------------------------------------------------ derived
    def grain(self, stream: str) -> tuple[int, ...]:
        """How many elements along each of the last axes share one entry of a stream; (1,) for per-element
        streams."""
        return (1,)

    def check(self, shape: Sequence[int]) -> None:
        """Raises EncodingError if an array of this shape cannot be stored so; any shape can unless an
        encoding says otherwise."""
        return

    def wider(self) -> Encoding | None:
        """The same under scales of a wider range that take no more bytes; None if there is none."""
        return None

    def layouts(self, shape: Sequence[int | None]) -> dict[str, Layout]:
        """Layout of every stream for an array of this shape, in element coordinates."""
        spec = self.record(shape)
        return record(shape, spec.prefix, {s.name: (BITS[s.dtype], s.digits) for s in spec.streams})

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes that an array of this shape takes, padding and metadata included."""
        return next(iter(self.layouts(shape).values())).nbytes

    def pack(self, streams: Mapping[str, Array], shape: Sequence[int]) -> NDArray[np.uint8]:
        """Logical arrays to the bytes kernels read."""
        coarse, dtypes = (_packing_once if isinstance(self, Hashable) else _packing)(self, tuple(shape))  # type: ignore[redundant-expr]
        bits = {n: BITS[t] for n, t in dtypes.items()}
        raw = {n: a if bits[n] < 8 else to_bits(a, dtypes[n]) for n, a in streams.items()}
        packed = fast_pack(raw, coarse, bits)
        return pack(raw, coarse, bits) if packed is None else packed

    def unpack(self, data: NDArray[np.uint8], shape: Sequence[int]) -> dict[str, Array]:
        """The inverse of `pack`."""
        out: dict[str, Array] = {}
        for s in self.record(shape).streams:
            grain = self._grain(s.name, len(shape))
            extents = [-(-n // g) for n, g in zip(shape, grain, strict=True)]
            index = [
                np.arange(n).reshape([-1 if d == k else 1 for k in range(len(shape))])
                for d, n in enumerate(extents)
            ]
            layout = _coarse(self.layouts(shape)[s.name], grain)
            raw = unpack(data, layout, BITS[s.dtype], index, STORED[s.dtype])
            out[s.name] = raw if BITS[s.dtype] < 8 else from_bits(raw, s.dtype)
        return out

    def bits_per_element(self, shape: Sequence[int]) -> float:
        return 8 * self.nbytes(shape) / max(math.prod(shape), 1)

    def _grain(self, stream: str, rank: int) -> tuple[int, ...]:
        g = self.grain(stream)
        return (1,) * (rank - len(g)) + g if rank >= len(g) else g[-rank:]


def _coarse(layout: Layout, grain: Sequence[int]) -> Layout:
    """The same stream indexed by entry number instead of element coordinate."""

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
        for d in layout.digits
    )
    return Layout(digits, layout.base, layout.nbytes)


def _packing(encoding: Encoding, shape: tuple[int, ...]) -> tuple[dict[str, Layout], dict[str, str]]:
    """Layouts by entry number, and storage dtypes, of the streams of an array of this shape."""
    layouts = encoding.layouts(shape)
    coarse = {n: _coarse(lay, encoding._grain(n, len(shape))) for n, lay in layouts.items()}
    return coarse, {s.name: s.dtype for s in encoding.record(shape).streams}


#: pieces of one tensor are of equal shape
_packing_once = lru_cache(maxsize=64)(_packing)


# ------------------------------------------------------------------ registry and text
Args = Mapping[str, "int | float | str | bool"]
_REGISTRY: dict[str, Callable[[Args], Encoding]] = {}


def register_encoding(name: str, make: Callable[[Args], Encoding]) -> None:
    """Make `name(arg, key=value, …)` parse to `make(args)`; positional arguments arrive under "0", "1", …"""
    given: tuple[object, object] = (name, make)
    if not (isinstance(given[0], str) and callable(given[1])):
        raise EncodingError(f"register_encoding: expected a name and a function, got {name!r} and {make!r}")
    if name in _REGISTRY:
        raise EncodingError(f"encoding {name!r} is registered twice")
    _REGISTRY[name] = make


def known_encodings() -> tuple[str, ...]:
    return tuple(sorted(_REGISTRY))


def parse_encoding(text: str) -> Encoding:
    """`int4(group=32)` and its like, `int4(group=32) + sparse(1%)`. Raises EncodingError with the known
    names."""
    of, plus, text = text.rpartition("+")
    name, _, rest = text.strip().partition("(")
    if rest and not rest.endswith(")"):
        raise EncodingError(f"encoding {text!r}: expected a closing parenthesis")
    args: dict[str, int | float | str | bool] = {"of": of.strip()} if plus else {}
    for n, part in enumerate(p.strip() for p in rest[:-1].split(",") if p.strip()):
        key, eq, value = part.partition("=")
        args[key.strip() if eq else str(n)] = _value(value.strip() if eq else part)
    make = _REGISTRY.get(name.strip())
    if plus and name.strip() != "sparse":
        raise EncodingError(
            f"encoding {of.strip()!r} + {name.strip()!r}: only sparse(P%) stands beside an encoding"
        )
    if make is None:
        raise EncodingError(f"unknown encoding {name.strip()!r}; known: {', '.join(known_encodings())}")
    try:
        return make(args)
    except EncodingError:
        raise
    except (ArithmeticError, TypeError, ValueError) as e:
        raise EncodingError(f"encoding {text[:80]!r}: {str(e)[:200]}") from None


def _value(text: str) -> int | float | str | bool:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
