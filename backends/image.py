"""All weights of a program as one run of bytes: what `weights.bin` holds, and what a program in memory reads.

In: a placed program, the bytes of each weight. Out: pieces in order, or writable memory that holds them.
Never holds more than one piece beyond that memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator

from tilewright.backends.packing import compiled_rounding, weight_bytes
from tilewright.backends.storage import HEADER, PlacedWeight, content_id, place_weights
from tilewright.ir.plan.core import Program
from tilewright.ir.weights.sources import WeightStore
from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.manifest import MAGIC

Piece = bytes | memoryview
#: the bytes of one weight, in pieces; their total must be the place's `nbytes`
WeightBytes = Callable[[PlacedWeight], Iterable[Piece]]
#: called after each weight: its name, bytes so far, bytes in all
Told = Callable[[str, int, int], None]


def image(program: Program, weights: WeightBytes, told: Told) -> Iterator[Piece]:
    """The header, every weight at its place, zeros between them. Raises ArtifactError for a weight of the
    wrong size.
    """
    places, total = place_weights(program.weights)
    yield MAGIC + total.to_bytes(8, "little") + content_id(program).encode() + bytes(HEADER - 48)
    at = HEADER
    for p in places:
        yield bytes(p.offset - at)
        at = p.offset
        for piece in weights(p):
            at += memoryview(piece).nbytes
            yield piece
        if at != p.offset + p.nbytes:
            raise ArtifactError(
                f"expected {p.nbytes} bytes, got {at - p.offset}",
                f"weight @{p.name}",
                "report this bug: a weight was packed incorrectly",
            )
        told(p.name, at, total)
    yield bytes(total - at)


def packed(program: Program, store: WeightStore) -> WeightBytes:
    """The bytes of a program's weights, read from where the model keeps them; begins to build the routine
    that rounds them, if they are many.
    """
    weights, rounding = {w.name: w for w in program.weights}, compiled_rounding(program.weights)
    return lambda place: weight_bytes(store, weights[place.name], rounding)


def in_memory(program: Program, weights: WeightBytes) -> memoryview:
    """The image in memory of its own, at a multiple of a page."""
    memory = mmap.mmap(-1, place_weights(program.weights)[1])
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    view, at = memoryview(memory), 0
    for piece in image(program, weights, lambda name, done, total: None):
        data = memoryview(piece).cast("B")
        view[at : at + data.nbytes] = data
        at += data.nbytes
    return view
