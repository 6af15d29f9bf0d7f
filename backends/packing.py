"""Weights as the bytes kernels read, a few rows at a time: compiling never holds more than one tensor.

In: a weight's lazy expression, its encoding. Out: pieces of bytes whose total is the weight's place in
`weights.bin`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

import numpy as np

from tilewright.backends.cpp.round_rows import RoundRows, rounds
from tilewright.ir.encoding import Encoding
from tilewright.ir.graph.core import Weight
from tilewright.ir.numbers import to_bits
from tilewright.ir.ops.base import Array
from tilewright.ir.types import BITS
from tilewright.ir.weights.packing import fast_pack
from tilewright.ir.weights.solved import solver_text
from tilewright.ir.weights.sources import (
    OutOfRange,
    WeightStore,
    check_bits,
    check_values,
    encoded,
)
from tilewright.runtime.cpu import affinity

#: elements encoded at once: they stay in a core's cache
PIECE = 1 << 18
#: arrays below this many bytes are kept for the next piece
_KEPT = 31 << 20
#: how many numbers to round make compiled code worthwhile: NumPy takes as long to round them as building it
#: takes
_MANY = 1 << 25

#: a routine that is being built, or None where NumPy is quicker
Rounding = Future[RoundRows] | None


def compiled_rounding(weights: Iterable[Weight]) -> Rounding:
    """Begin to build the routine that rounds weights, if there is enough for it to do."""
    count = sum(math.prod(int(d) for d in w.type.shape) for w in weights if _rounded(w))
    if count < _MANY:
        return None
    pool = ThreadPoolExecutor(1, "tilewright-round")
    made = pool.submit(RoundRows)
    pool.shutdown(wait=False)
    return made


def _rounded(weight: Weight) -> bool:
    """Whether the weight is stored as `RoundRows` would."""
    return rounds(weight.type.encoding) and solver_text(weight) is None


def weight_bytes(store: WeightStore, weight: Weight, rounding: Rounding = None) -> Iterator[memoryview]:
    """The packed bytes of one weight in order. Rows are encoded in parallel, a few pieces ahead of the
    writer."""
    store.check(weight)
    shape = tuple(int(d) for d in weight.type.shape)
    if not shape:
        return iter([_bytes(_encoded(store, weight, store.load(weight)))])
    return _ahead(lambda rows: _bytes(_piece(store, weight, *rows, rounding)), list(_slices(weight, shape)))


def out_of_range(store: WeightStore, weights: Iterable[Weight]) -> tuple[str, ...]:
    """Names of the weights that need scales of a wider range and could have them. RefusedError for values
    that are NaN or infinite."""
    return tuple(w.name for w in weights if w.type.encoding and w.type.encoding.wider() and _strays(store, w))


def _strays(store: WeightStore, weight: Weight) -> bool:
    encoding, shape = weight.type.encoding, tuple(int(d) for d in weight.type.shape)
    assert encoding is not None
    try:
        for lo, hi in _slices(weight, shape):
            check_values(
                store,
                weight,
                encoding,
                np.asarray(store.rows(weight, lo, hi), np.float32).reshape(-1, shape[-1]),
            )
    except OutOfRange:
        return True
    return False


def _ahead(
    work: Callable[[tuple[int, int]], memoryview], pieces: list[tuple[int, int]]
) -> Iterator[memoryview]:
    """The results of `work` on the pieces, in order; only a few are held at a time."""
    if len(pieces) < 2:
        yield from map(work, pieces)
        return
    pool, waiting = _pool(), deque[Future[memoryview]]()
    for rows in pieces:
        waiting.append(pool.submit(work, rows))
        if len(waiting) > 4 * len(affinity()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@cache
def _pool() -> ThreadPoolExecutor:
    """The threads that encode: made once, as a model has hundreds of weights."""
    # glibc gives every array of this size back to the system when it is freed, and takes it anew a moment
    # later, page by page (a third of the time). Having seen one large array freed, it keeps what is smaller.
    np.empty(_KEPT, np.uint8)
    return ThreadPoolExecutor(len(affinity()), "tilewright-pack")


def _slices(weight: Weight, shape: tuple[int, ...]) -> Iterable[tuple[int, int]]:
    """Runs of axis 0 with bytes of their own: of a matrix, rows that lie together."""
    encoding = weight.type.encoding
    unit = encoding.rows_together(shape) if encoding is not None and len(shape) == 2 else 1
    step = max(PIECE // max(math.prod(shape[1:]), 1) // unit * unit, unit)
    return ((at, min(at + step, shape[0])) for at in range(0, shape[0], step))


def _piece(store: WeightStore, weight: Weight, lo: int, hi: int, rounding: Rounding) -> Array:
    """Packed bytes of some rows; bits that are stored in the right format already are copied, not
    converted."""
    encoding, raw, packed = weight.type.encoding, store.raw_rows(weight, lo, hi), None
    if raw is not None and encoding is not None and raw[1] == encoding.element:
        packed = _moved(store, weight, encoding, raw[0], lo)
    elif (
        raw is not None and rounding is not None
        and encoding is not None and _rounded(weight)
        and weight.type.dtype in ("f32", raw[1])  # not cut to another format first
    ):  # fmt: skip
        packed = rounding.result()(encoding, *raw)
    return _encoded(store, weight, store.rows(weight, lo, hi), lo) if packed is None else packed


def _moved(store: WeightStore, weight: Weight, encoding: Encoding, bits: Array, lo: int) -> Array | None:
    check_bits(store, weight, bits, encoding.element, lo)
    if encoding.layout == "rows":
        return bits
    layouts = encoding.layouts(bits.shape)  # of its only stream
    return fast_pack(dict.fromkeys(layouts, bits), layouts, dict.fromkeys(layouts, BITS[encoding.element]))


def _encoded(store: WeightStore, weight: Weight, values: Array, at: int = 0) -> Array:
    dtype, encoding = weight.type.stored
    if encoding is None:
        bits = to_bits(values, dtype)
        check_bits(store, weight, bits, dtype, at)
        return bits
    return encoding.pack(encoded(store, weight, encoding, np.asarray(values, np.float32), at), values.shape)


def _bytes(x: Array) -> memoryview:
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).data
