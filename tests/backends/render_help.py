"""What the renderer's tests share: levels this machine runs, and a kernel compiled beside the interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.jit import Compiled, compile_kernel
from tilewright.ir.interp.tile import dims_of, run_kernel
from tilewright.ir.numbers import from_bits
from tilewright.ir.tile.core import Kernel, bind
from tilewright.ir.tile.memory import poison

Array = NDArray[np.generic]


@cache
def runnable() -> tuple[str, ...]:
    """Levels whose CPU features this machine has, least first."""
    with open("/proc/cpuinfo") as f:
        line = next((x for x in f if x.startswith("flags")), "")
    flags = set(line.split())
    return tuple(name for name, t in TARGETS.items() if set(t.features) <= flags)


def poisoned(kernel: Kernel, symbols: Mapping[str, int]) -> dict[str, Array]:
    """An array for every parameter that the kernel writes, full of values that are never stored."""
    bound = bind(kernel, {**symbols, **dict(kernel.schedules[0].sizes if kernel.schedules else ())})
    return {n: poison(bound.buffer(n), dims_of(bound.buffer(n))) for n in kernel.written()}


def run_both(
    kernel: Kernel,
    arrays: Mapping[str, Array],
    level: str,
    symbols: Mapping[str, int] | None = None,
    threads: int = 2,
) -> Mapping[str, Array]:
    """Runs the kernel on one copy of the arrays and the interpreter on another, and compares what was
    written. Returns what the kernel wrote. Arrays of what is written and not loaded give their size alone:
    they start as poison, and both must write the same elements."""
    fresh = {n: a for n, a in poisoned(kernel, symbols or {}).items() if n not in kernel.loaded()}
    want = {n: a.copy() for n, a in {**arrays, **fresh}.items()}
    got = {n: a.copy() for n, a in {**arrays, **fresh}.items()}
    run_kernel(kernel, want, symbols or {})
    compiled(kernel, level)(got, symbols or {}, threads)
    for name in kernel.written():
        agree(got[name], want[name], kernel.buffer(name).dtype, f"{kernel.name} %{name} at {level}")
    return got


@cache
def compiled(kernel: Kernel, level: str) -> Compiled:
    return compile_kernel(kernel, level)


def agree(got: Array, want: Array, dtype: str, where: str, tolerance: float = 3e-6) -> None:
    """Equal integers; floats equal up to a few roundings, NaN and infinities in the same places."""
    if dtype not in ("f32", "f64", "bf16", "f16"):
        np.testing.assert_array_equal(got, want, err_msg=where)
        return
    a, b = (np.asarray(from_bits(np.ravel(x), dtype), np.float64) for x in (got, want))
    limit = tolerance if dtype in ("f32", "f64") else 1e-2
    np.testing.assert_allclose(a, b, rtol=limit, atol=limit, err_msg=where)
