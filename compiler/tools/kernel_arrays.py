"""Arrays to run one kernel on: stored bits for every parameter, given or random.

In: a kernel, sizes, arrays of some parameters. Out: one array per parameter, as the kernel's memory holds it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tilewright.ir.errors import RefusedError
from tilewright.ir.interp.tile import bind_symbols as bind_kernel
from tilewright.ir.interp.tile import dims_of
from tilewright.ir.numbers import STORED, hold, int_range, to_bits
from tilewright.ir.ops.base import Array
from tilewright.ir.tile.core import Buffer, Kernel, bind
from tilewright.ir.tile.memory import buffer_bytes, poison
from tilewright.ir.types import FLOATS
from tilewright.tools.ir_inputs import check_room


def kernel_arrays(
    kernel: Kernel, sizes: Mapping[str, int], given: Mapping[str, Array], seed: int
) -> dict[str, Array]:
    """Stored bits for every parameter: as given, else random within the value range; what is only written
    starts as poison."""
    rng = np.random.default_rng(seed)
    unknown = sorted(set(given) - {b.name for b in kernel.params})
    if unknown:
        raise RefusedError(f"no parameter {unknown[0]!r}", f"kernel @{kernel.name}")
    bound = bind(bind_kernel(kernel, sizes), dict(kernel.schedules[0].sizes) if kernel.schedules else {})
    check_room({b.name: dims_of(b) for b in bound.params})
    fresh = set(kernel.written()) - set(kernel.loaded())
    return {b.name: _array(b, dims_of(b), given.get(b.name), b.name in fresh, rng) for b in bound.params}


def _array(
    b: Buffer, dims: tuple[int, ...], given: Array | None, fresh: bool, rng: np.random.Generator
) -> Array:
    if given is not None:
        return to_bits(hold(_shaped(given, b, dims), b.dtype), b.dtype)
    if fresh:
        return poison(b, dims)
    if b.encoding is not None:
        x = rng.standard_normal(dims).astype(np.float32)
        return np.ascontiguousarray(b.encoding.pack(b.encoding.encode(x), dims))
    if b.record is not None:
        return rng.integers(0, 256, buffer_bytes(b, dims), np.uint8)
    if b.dtype in FLOATS:
        return to_bits(hold(rng.standard_normal(dims).astype(np.float32), b.dtype), b.dtype)
    lo, hi = int_range(b.dtype) if b.dtype in ("i8", "u8", "bool") else (0, 3)
    lo, hi = lo if b.lo is None else b.lo, hi if b.hi is None else b.hi
    return rng.integers(lo, hi, dims, endpoint=True).astype(STORED[b.dtype])


def _shaped(x: Array, b: Buffer, dims: tuple[int, ...]) -> Array:
    if x.shape != dims or b.encoding is not None or b.record is not None:
        form = (
            "a dense array"
            if b.encoding is None and b.record is None
            else "no array, because the parameter is packed"
        )
        raise RefusedError(
            f"%{b.name} was given shape {list(x.shape)}", "", f"it takes {form} of {list(dims)}; set symbols"
        )
    return x
