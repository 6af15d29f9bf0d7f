"""Every scalar primitive and cast on edge values: NaN, infinities, signed zeros, denormals, ties, limits.

Triton and every CPU level must give what the tile interpreter gives.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.backends.render_help import compiled, poisoned, runnable
from tilewright.backends.triton import interpret
from tilewright.ir.interp.tile import run_kernel
from tilewright.ir.numbers import STORED, from_bits, hold, int_range, to_bits
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.core import Kernel, Schedule
from tilewright.ir.tile.ops import PRIMITIVES, TILE_OPS
from tilewright.ir.tile.statement_checks import DOMAINS
from tilewright.ir.tile.verify import verify_kernel
from tilewright.ir.types import FLOATS

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

Array = NDArray[np.generic]
DTYPES = ("f32", "f64", "bf16", "f16", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "bool")
#: correct to a few places, not to the last bit
APPROXIMATE = ("exp", "log", "sqrt", "rsqrt", "erf", "sin", "cos", "div", "rem")
INF, NAN = float("inf"), float("nan")
_POSITIVE = (
    0.0, 1e-45, 1e-40, 1.1754944e-38, 5.96e-8, 6.1e-5, 0.3, 0.49999997, 0.5, 0.75, 1.0, 1.00390625,
    1.01171875, 1.5, 2.5, 3.14159,
    127.5, 128.0, 255.5, 256.0, 2049.0, 32767.5, 65504.0, 65519.0, 65520.0, 8388607.5, 8388609.0,
    2147483520.0, 2147483648.0, 3e9,
    4294967040.0, 4294967296.0, 9.223372e18, 1e20, 3.3895e38, 3.4028235e38, INF,
)  # fmt: skip
#: what pairs are made of
_FEW = (0.0, 1e-45, 1.1754944e-38, 0.3, 1.0, 2.5, 3e9, 3.4028235e38, INF)


def edges(dtype: str, few: bool = False) -> Array:
    """Held values of a dtype."""
    if dtype == "bool":
        return np.array([False, True])
    if dtype in FLOATS:
        values = [*(_FEW if few else _POSITIVE), NAN]
        return np.unique(to_bits(hold(np.array([*values, *(-x for x in values)]), dtype), dtype))
    lo, hi = int_range(dtype)
    near = (0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 100, *((-1, -2, -100) if lo < 0 else ()))
    return np.array(sorted({x for x in (lo, lo + 1, hi - 1, hi, *near) if lo <= x <= hi}), STORED[dtype])


def operands(dtype: str, arity: int) -> list[Array]:
    """Stored bits, as many arrays as operands: every value, or every pair (and for a third one the pairs
    transposed)."""
    if arity == 1:
        return [_stored(edges(dtype), dtype)]
    few = _stored(edges(dtype, few=True), dtype)
    pairs = np.array(list(itertools.product(few, few)), few.dtype)
    return [np.ascontiguousarray(x) for x in (pairs[:, 0], pairs[:, 1], np.roll(pairs[:, 0], 7))]


def _stored(x: Array, dtype: str) -> Array:
    return x.astype(STORED[dtype])


def primitives_of(dtype: str) -> list[str]:
    letter = "o" if dtype == "bool" else dtype[0]
    return [op for op in PRIMITIVES if letter in DOMAINS.get(op, "iufb")]


def build(what: str, dtype: str) -> tuple[Kernel, dict[str, Array]]:
    """One kernel with an output for each primitive on a dtype, or for each dtype that it is cast to, and its
    inputs."""
    b = KernelBuilder(f"{what}_{dtype}")
    one = operands(dtype, 1)[0]
    many = operands(dtype, 3)
    n, m = len(one), len(many[0])
    inputs = {"x": one, "a": many[0], "b": many[1], "c": many[2]}
    loads = {name: b.param(name, dtype, (len(x),)) for name, x in inputs.items()}
    names = primitives_of(dtype) if what == "primitives" else [d for d in DTYPES if d != dtype]
    wide = [op for op in names if what == "primitives" and TILE_OPS[op].arity > 1]
    outs = {}
    for op in names:
        result = op if what == "casts" else "bool" if op in ("lt", "le", "eq", "ne") else dtype
        outs[op] = b.param(f"o_{op}", result, (m if op in wide else n,))
    i = b.grid("i", max(m, n) if wide else n, 16)
    at = slice(i, 16)
    x, a, c, e = (b.load(loads[k], at) for k in ("x", "a", "b", "c"))
    for op, o in outs.items():
        if what == "casts":
            value = b.cast(op, x)
        elif op == "select":
            value = b.op("select", b.op("le", a, c) if dtype != "bool" else c, a, e)
        else:
            value = b.op(op, *([x] if TILE_OPS[op].arity == 1 else [a, c, e][: TILE_OPS[op].arity]))
        b.store(o, (at,), value)
    b.schedules.extend([Schedule("*", ()), Schedule("triton", ())])
    kernel = b.build()
    verify_kernel(kernel)
    return kernel, inputs


def build_folds(dtype: str) -> tuple[Kernel, dict[str, Array]]:
    """Reductions and scans over rows of 16 mixed edges: the largest and smallest, and sums where their order
    does not show."""
    x = np.resize(_stored(edges(dtype), dtype), 16 * 12)
    x = np.random.default_rng(3).permutation(x).reshape(12, 16)
    b = KernelBuilder(f"folds_{dtype}")
    source = b.param("x", dtype, x.shape)
    names = [
        (fn, kind)
        for fn in ("max", "min", *(() if dtype in FLOATS else ("add",)))
        for kind in ("reduce", "scan")
    ]
    outs = {
        (fn, kind): b.param(f"o_{fn}_{kind}", dtype, (12, 1 if kind == "reduce" else 16))
        for fn, kind in names
    }
    i = b.grid("i", 12, 1)
    u = b.load(source, i, slice(0, 16))
    for (fn, kind), o in outs.items():
        value = b.reduce(fn, u, 0) if kind == "reduce" else b.scan(fn, u, 0)
        b.store(o, (i, slice(0, 1 if kind == "reduce" else 16)), value)
    b.schedules.extend([Schedule("*", ()), Schedule("triton", ())])
    kernel = b.build()
    verify_kernel(kernel)
    return kernel, {"x": x}


def compare(
    kernel: Kernel,
    inputs: Mapping[str, Array],
    got: Mapping[str, Array],
    want: Mapping[str, Array],
    where: str,
) -> None:
    """The same bits; approximate functions within a few places, NaN and infinities in the same places."""
    wrong = []
    for name in kernel.written():
        dtype, op = kernel.buffer(name).dtype, name[2:]
        g, w = from_bits(got[name], dtype), from_bits(want[name], dtype)
        same = (g == w) | (g != g) & (w != w)
        if dtype in FLOATS:
            same &= (np.signbit(g) == np.signbit(w)) | (w != w) | op.startswith(("min", "max"))
            if op in APPROXIMATE or (op, dtype) == ("fma", "f64"):  # which may round once or twice
                near = {"bf16": 1e-2, "f16": 2e-3}.get(dtype, 4e-6)
                with np.errstate(all="ignore"):
                    same |= np.isfinite(g) & np.isfinite(w) & (np.abs(g - w) <= near * np.abs(w) + 4e-7)
        arity = TILE_OPS[op].arity if op in TILE_OPS and op not in DTYPES else 1
        if "_" in op:
            assert same.all(), f"{kernel.name} by {where}: %{name} is {w[~same]}, got {g[~same]}"
            continue
        names = ("x",) if arity == 1 else ("a", "b", "c")[:arity]
        for k in np.flatnonzero(~same)[:6]:
            given = ", ".join(str(from_bits(inputs[n][k : k + 1], kernel.buffer(n).dtype)[0]) for n in names)
            wrong.append(f"{op}({given}) is {w[k]}, got {g[k]}  ({np.sum(~same)} of {len(same)})")
    assert not wrong, f"{kernel.name} by {where}:\n" + "\n".join(wrong)


@cache
def both(what: str, dtype: str) -> tuple[Kernel, dict[str, Array], dict[str, Array]]:
    """A kernel, its inputs, and what the interpreter makes of them; nobody writes to these."""
    kernel, inputs = build_folds(dtype) if what == "folds" else build(what, dtype)
    want = {**inputs, **poisoned(kernel, {})}
    with np.errstate(all="ignore"):
        run_kernel(kernel, want, {})
    return kernel, inputs, want


def run_triton(what: str, dtype: str) -> None:
    kernel, inputs, want = both(what, dtype)
    got = {**inputs, **poisoned(kernel, {})}
    interpret.run_kernel(kernel, got, {})
    compare(kernel, inputs, got, want, "Triton")


#: booleans are not reduced
CASES = [
    (what, d) for what in ("primitives", "casts", "folds") for d in DTYPES if (what, d) != ("folds", "bool")
]


@pytest.mark.parametrize(("what", "dtype"), CASES)
def test_triton(what: str, dtype: str) -> None:
    run_triton(what, dtype)


@pytest.mark.parametrize(("what", "dtype"), CASES)
@pytest.mark.parametrize("level", runnable())
def test_compiled(level: str, what: str, dtype: str) -> None:
    kernel, inputs, want = both(what, dtype)
    if (level, what, dtype) == (
        "baseline",
        "primitives",
        "f32",
    ):  # which has no fused instruction, and rounds twice
        a, b, c = (np.asarray(inputs[n], np.float32) for n in "abc")
        with np.errstate(all="ignore"):
            want = {**want, "o_fma": a * b + c}
    got = {**inputs, **poisoned(kernel, {})}
    compiled(kernel, level)(got, {}, 1)
    compare(kernel, inputs, got, want, level)
