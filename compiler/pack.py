"""Weights as the bytes kernels read, a few rows at a time: compiling never holds more than one tensor.

In: a weight's lazy expression, its encoding. Out: pieces of bytes whose total is the weight's place in `weights.bin`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Encoding
from tilewright.ir.encodings.dense import PANEL, stored_form
from tilewright.ir.graph import Weight
from tilewright.ir.numbers import to_bits
from tilewright.ir.weights import WeightStore

#: elements encoded at once: small enough to stay in the cache, large enough to feed NumPy
PIECE = 1 << 20


def weight_bytes(store: WeightStore, weight: Weight) -> Iterator[memoryview]:
    """The packed bytes of one weight in order. Rows are encoded in parallel, a few pieces ahead of the writer."""
    values = store.load(weight)
    dtype, encoding = stored_form(weight.type)
    if values.ndim == 0 or encoding is None and values.ndim == 1:
        yield _bytes(to_bits(values, dtype) if encoding is None else _packed(encoding, values))
        return
    pieces = list(_rows(values.shape))
    with ThreadPoolExecutor(_workers()) as pool:
        for ahead in range(0, len(pieces), 4):
            yield from pool.map(lambda at: _piece(values, at, dtype, encoding), pieces[ahead : ahead + 4])


def _workers() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rows(shape: tuple[int, ...]) -> Iterable[slice]:
    """Slices of axis 0: whole panels of a matrix, whole matrices of a stack."""
    width = max(math.prod(shape[1:]), 1)
    step = max(PIECE // width // PANEL * PANEL, PANEL) if len(shape) == 2 else max(PIECE // width, 1)
    return (slice(at, min(at + step, shape[0])) for at in range(0, shape[0], step))


def _piece(values: NDArray[np.generic], at: slice, dtype: str, encoding: Encoding | None) -> memoryview:
    part = values[at]
    return _bytes(to_bits(part, dtype) if encoding is None else _packed(encoding, part))


def _packed(encoding: Encoding, values: NDArray[np.generic]) -> NDArray[np.uint8]:
    return encoding.pack(encoding.encode(np.asarray(values, np.float32)), values.shape)


def _bytes(x: NDArray[np.generic]) -> memoryview:
    return memoryview(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
