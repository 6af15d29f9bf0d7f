"""Where data is stored: weights in `weights.bin`, the positions of a state inside its slot.

In: a program. Out: byte offsets that the generated code holds as constants and the artifact writer follows.
Independent of files, kernels or sessions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.ir.encoding import Encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import CacheStream, State, Weight
from tilewright.ir.layout import Digit, Layout
from tilewright.ir.plan.core import Program
from tilewright.ir.plan.step import RECENT_STEP
from tilewright.ir.text.plan_printer import print_program
from tilewright.ir.types import BITS, TensorType, type_text

#: exact rows that a sequence may keep beyond those that it reads: `tw_recent.h` keeps the last 32, and gives
#: back 32 at once
RECENT_SPARE = 32 + 31
#: bytes before the first weight: magic, size of the file, content id
HEADER = 64
ALIGN = 64


class PlacementError(RefusedError):
    """Something that cannot be placed in memory; the message names it."""


@dataclass(frozen=True)
class PlacedWeight:
    """One weight in `weights.bin`: `offset` is a multiple of 64."""

    name: str
    offset: int
    nbytes: int
    type: TensorType


@dataclass(frozen=True)
class Part:
    """One stream of an encoding inside the memory of one sequence, in bits: an element lies at the sum of
    `base`, its head times `head`, `row // step % size * stride` over `digits` (step, size, stride; size 0: no
    limit), and the places of its channel. `pieces`: (first, bits) of all channels of a row, joined where they
    follow each other."""

    base: int
    head: int
    digits: tuple[tuple[int, int, int], ...]
    pieces: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Stream:
    """A tensor of a state. One sequence takes `slot` bytes; each of `heads` parts keeps every `block`
    positions in `block_bytes` from its start on, so the first n positions are a prefix of each part. `rows`:
    where single rows lie; empty if it holds none."""

    name: str
    slot: int
    heads: int
    head_bytes: int
    block: int
    block_bytes: int
    rows: tuple[Part, ...] = ()


def type_bytes(t: TensorType) -> int:
    """Bytes of a tensor of static shape, padding and metadata of its encoding included."""
    shape = [_static(d, t) for d in t.shape]
    if t.encoding is not None:
        return t.encoding.nbytes(shape)
    return -(-math.prod(shape) * BITS[t.dtype] // 8)


def _static(d: object, t: TensorType) -> int:
    if not isinstance(d, int):
        raise PlacementError(f"expected a static shape, got {d} in {type_text(t)}")
    return d


def place_weights(weights: Sequence[Weight]) -> tuple[tuple[PlacedWeight, ...], int]:
    """Every weight in order, and the size of the whole file (a last 64 bytes of padding included)."""
    at, places = HEADER, []
    for w in weights:
        n = type_bytes(w.type)
        places.append(PlacedWeight(w.name, at, n, w.type))
        at = -(-(at + n) // ALIGN) * ALIGN
    return tuple(places), at + ALIGN


def content_id(program: Program) -> str:
    """32 hexadecimal digits that tell this program and its weight placement from any other; its text decides,
    so a program read back from its artifact has the same."""
    places, total = place_weights(program.weights)
    lines = [f"{p.name} {p.offset} {p.nbytes} {type_text(p.type)}" for p in places]
    return hashlib.sha256("\n".join([print_program(program), *lines, str(total)]).encode()).hexdigest()[:32]


def state_streams(state: State) -> tuple[Stream, ...]:
    """How the tensors of one state are stored in memory: keys, values, and what eviction needs."""
    return tuple(_stream(state, c) for c in state.streams)


def recent_bytes(state: State) -> int:
    """At most so many bytes of exact rows does a sequence keep: see `tw_recent.h`."""
    rows = min(state.recent + RECENT_STEP - 1 + RECENT_SPARE, state.context)
    held = zip(state.streams, state_streams(state), strict=True)
    return sum(-(-rows // s.block) * s.block_bytes * s.heads for c, s in held if c.recent)


def sequence_bytes(state: State) -> int:
    """Bytes of a sequence at full context."""
    held = zip(state.streams, state_streams(state), strict=True)
    return sum(s.slot for c, s in held if not c.recent) + recent_bytes(state)


def _stream(state: State, c: CacheStream) -> Stream:
    name = f"{state.name}.{c.name}"
    if c.encoding is not None:
        packed = _packed_stream(name, c.encoding, *c.shape)
        return packed if c.rows else Stream(name, packed.slot, 1, packed.slot, state.context, packed.slot)
    row = BITS[c.dtype] // 8
    slot = row * math.prod(c.shape)
    if not c.rows:
        return Stream(name, slot, 1, slot, state.context, slot)
    head = slot // state.heads
    part = Part(0, 8 * head, ((1, 0, 8 * row),), ((0, 8 * row),))
    return Stream(name, slot, state.heads, head, 1, row, (part,))


def _packed_stream(name: str, encoding: Encoding, heads: int, context: int, dim: int) -> Stream:
    slot = encoding.nbytes((1, heads, context, dim))
    if encoding.nbytes((2, heads, context, dim)) != 2 * slot:
        raise PlacementError(
            f"@{name}: encoding {encoding} does not store each sequence in separate bytes (slots must be "
            "the outermost dimension)"
        )
    shape = (1, heads, context, dim)
    parts = [_prefix(lay, slot, dim) for lay in encoding.layouts(shape).values()]
    rows = tuple(
        _part(lay, BITS[s.dtype], dim)
        for s, lay in zip(encoding.record(shape).streams, encoding.layouts(shape).values(), strict=True)
    )
    if all(p is not None and p == parts[0] for p in parts) and parts[0] is not None:
        return Stream(name, slot, *parts[0], rows)
    return Stream(name, slot, 1, slot, context, slot, rows)  # no prefix: copied whole


def _part(layout: Layout, bits: int, dim: int) -> Part:
    head = sum(d.stride for d in layout.digits if d.dim == 1 and d.step == 1)
    digits = tuple((d.step, d.size or 0, d.stride) for d in layout.digits if d.dim == 2)
    channels = Layout(tuple(d for d in layout.digits if d.dim == 3))
    none = np.zeros(1, np.int64)
    places = np.unique(channels.offsets([none, none, none, np.arange(dim, dtype=np.int64)]))
    pieces: list[tuple[int, int]] = []
    for at in places.tolist():
        if pieces and sum(pieces[-1]) == at:
            pieces[-1] = pieces[-1][0], pieces[-1][1] + bits
        else:
            pieces.append((at, bits))
    return Part(layout.base, head, digits, tuple(pieces))


def _prefix(layout: Layout, slot: int, dim: int) -> tuple[int, int, int, int] | None:
    """(parts, bytes of a part, positions of a block, bytes of a block) if positions are a prefix of each
    head's part."""
    head = [d for d in layout.digits if d.dim == 1]
    outer = [d for d in layout.digits if d.dim == 2 and d.size is None]
    if len(head) != 1 or head[0].size is not None or head[0].step != 1 or len(outer) != 1:
        return None
    block, block_bits, head_bits = outer[0].step, outer[0].stride, head[0].stride
    inside = [d for d in layout.digits if d.dim > 1 and d is not outer[0] and not _unused(d, dim)]
    if (
        block_bits % 8
        or head_bits % 8
        or block_bits > head_bits
        or any(d.stride >= block_bits for d in inside)
    ):
        return None
    return (slot * 8 // head_bits, head_bits // 8, block, block_bits // 8)


def _unused(d: Digit, dim: int) -> bool:
    """Whether a digit of the channels is always 0."""
    return d.dim == 3 and d.size is None and d.step >= dim
