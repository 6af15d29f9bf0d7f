"""Every tile operation, rendered and compared with the interpreter at every level, on partial registers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.render_help import run_both, runnable
from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.render import render_kernel
from tilewright.ir.affine import Affine
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.numbers import to_bits
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import Pick, TileType
from tilewright.ir.tile.ops import TILE_OPS

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

LEVELS = pytest.mark.parametrize("level", runnable())
BEST = runnable()[-1]
RNG = np.random.default_rng(5)
UNARY = ("neg", "abs", "exp", "log", "sqrt", "rsqrt", "erf", "sin", "cos", "round", "floor")
BINARY = ("add", "sub", "mul", "div", "min", "max")
WHOLE = ("add", "sub", "mul", "div", "rem", "min", "max", "and", "or", "xor", "shl", "shr")


def _floats(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 3).astype(np.float32)


@pytest.mark.parametrize(("level", "size"), [*((level, 24) for level in runnable()), (BEST, 16), (BEST, 3)])
def test_float_primitives(level: str, size: int) -> None:
    b = KernelBuilder(f"floats{size}")
    x, y = b.param("x", "f32", (5, size)), b.param("y", "f32", (size,))
    outs = {n: b.param(n, "f32", (5, size)) for n in (*UNARY, *BINARY, "fma", "select", "cmp")}
    r = b.grid("r", 5)
    u, v = b.load(x, r, slice(0, size)), b.load(y, slice(0, size))
    values: dict[str, Tile] = {
        n: b.op(n, b.op("abs", u) + 0.5 if n in ("log", "sqrt", "rsqrt") else u) for n in UNARY
    }
    values |= {n: b.op(n, u, v) for n in BINARY} | {"fma": b.op("fma", u, v, u)}
    less = b.op("and", b.op("lt", u, v), b.op("not", b.op("eq", u, v)))
    values["select"] = b.select(less, u, v)
    values["cmp"] = b.cast("f32", b.op("or", b.op("le", u, v), b.op("ne", v, v)))
    for n, t in values.items():
        b.store(outs[n], (r, slice(0, size)), t)
    arrays = {"x": _floats(5, size), "y": _floats(size), **{n: np.zeros((5, size), np.float32) for n in outs}}
    run_both(b.build(), arrays, level)


@LEVELS
@pytest.mark.parametrize("dtype", ["i8", "u8", "i16", "i32"])
def test_integer_primitives(level: str, dtype: str) -> None:
    held = {"i8": np.int8, "u8": np.uint8, "i16": np.int16, "i32": np.int32}[dtype]
    b = KernelBuilder(f"ints_{dtype}")
    x, y = b.param("x", dtype, (40,)), b.param("y", dtype, (40,))
    outs = {n: b.param(f"o_{n}", dtype, (40,)) for n in (*WHOLE, "not", "abs", "by2")}
    b.grid("r", 1)
    u, v = b.load(x, slice(0, 40)), b.load(y, slice(0, 40))
    values = {n: b.op(n, u, b.op("and", v, 7) if n in ("shl", "shr") else v) for n in WHOLE}
    values |= {"not": b.op("not", u), "abs": b.op("abs", u), "by2": u >> 2}
    for n, t in values.items():
        b.store(outs[n], (slice(0, 40),), t)
    info = np.iinfo(held)
    data = {n: RNG.integers(info.min // 2, info.max // 2, 40).astype(held) for n in "xy"}
    run_both(b.build(), {**data, **{f"o_{n}": np.zeros(40, held) for n in outs}}, level)


@LEVELS
def test_casts(level: str) -> None:
    kinds = ["f32", "bf16", "f16", "i32", "i8", "u8", "i16", "bool"]
    b = KernelBuilder("casts")
    x = b.param("x", "f32", (48,))
    outs = {(s, d): b.param(f"{s}_{d}", d, (48,)) for s in kinds for d in kinds if s != d}
    b.grid("r", 1)
    u = b.load(x, slice(0, 48))
    sources = {s: b.cast(s, u) for s in kinds}
    for (s, d), o in outs.items():
        b.store(o, (slice(0, 48),), b.cast(d, sources[s]))
    from tilewright.ir.numbers import STORED

    data = (RNG.standard_normal(48) * 200).astype(np.float32)
    data[:4] = (0, -0.0, 1e9, -1e9)
    run_both(b.build(), {"x": data, **{o.name: np.zeros(48, STORED[d]) for (_, d), o in outs.items()}}, level)


@pytest.mark.parametrize(
    ("level", "shape"),
    [*((level, (8, 24)) for level in runnable()), *((BEST, s) for s in ((4, 64), (3, 5), (16, 1), (1, 40)))],
)
def test_reductions_and_scans(level: str, shape: tuple[int, int]) -> None:
    b = KernelBuilder("reduce{}_{}".format(*shape))
    x = b.param("x", "f32", shape)
    m, n = shape
    at = (slice(0, m), slice(0, n))
    b.grid("r", 1)
    u = b.load(x, *at)
    outs = {}
    for fn in ("add", "max", "min"):
        for axis in (0, 1):
            small = (1, n) if axis == 0 else (m, 1)
            outs[f"r{fn}{axis}"] = (b.reduce(fn, u, axis), small)
            outs[f"s{fn}{axis}"] = (b.scan(fn, u, axis), shape)
    outs["centred"] = (
        b.op("exp", u - b.reduce("max", u, 1)) * b.op("exp", b.reduce("max", u, 1) - b.reduce("add", u, 1)),
        shape,
    )
    for name, (t, s) in outs.items():
        o = b.param(name, "f32", s)
        b.store(o, (slice(0, s[0]), slice(0, s[1])), t)
    arrays = {"x": _floats(*shape), **{name: np.zeros(s, np.float32) for name, (_, s) in outs.items()}}
    run_both(b.build(), arrays, level)


@LEVELS
def test_rewritten_requests(level: str) -> None:
    """reshape, transpose, expand, iota, index, bitcast, lookup."""
    b = KernelBuilder("rewrites")
    x, codes = b.param("x", "f32", (4, 8, 6)), b.param("codes", "u8", (3, 32))
    outs = {n: b.param(n, d, s) for n, d, s in (
        ("merged", "f32", (32, 6)), ("split", "f32", (2, 2, 48)), ("turned", "f32", (6, 32)),
        ("counted", "i32", (3, 32)),
        ("bits", "i32", (32, 6)), ("looked", "f32", (3, 32)), ("wide", "f32", (4, 6)),
    )}  # fmt: skip
    r = b.grid("r", 1)
    u = b.load(x, slice(0, 4), slice(0, 8), slice(0, 6))
    c = b.load(codes, slice(0, 3), slice(0, 32))
    merged = b.reshape(u, 32, 6)
    table = b.op("exp", b.cast("f32", b.iota(16)) * 0.25)
    values = {
        "merged": merged, "split": b.reshape(u, 2, 2, 48), "turned": b.transpose(merged),
        "bits": b.bitcast("i32", merged),
        "counted": b.expand(b.iota(3), 1) * 100 + b.iota(32) + b.index_value(r + 7),
        "looked": b.lookup(table, c),
        "wide": b.expand(b.cast("f32", b.iota(4)), 1) + b.expand(b.cast("f32", b.iota(6)), 0),
    }  # fmt: skip
    for n, t in values.items():
        b.store(outs[n], tuple(slice(0, s) for s in t.shape), t)
    arrays = {"x": _floats(4, 8, 6), "codes": RNG.integers(0, 20, (3, 32)).astype(np.uint8)}
    made = {
        n: np.zeros([d.as_int() for d in o.dims], np.int32 if o.dtype == "i32" else np.float32)
        for n, o in outs.items()
    }
    run_both(b.build(), {**arrays, **made}, level)


@LEVELS
def test_loops_tails_and_carries(level: str) -> None:
    """Run-time bounds from a scalar tile, nested loops, vector and integer carries, within, windows from
    before the start."""
    b = KernelBuilder("loops")
    x, length = b.param("x", "f32", ("T", 40)), b.param("length", "i32", ("T",))
    y, count, shifted = (
        b.param("y", "f32", ("T", 16)),
        b.param("count", "i32", ("T",)),
        b.param("shifted", "f32", ("T", 40)),
    )
    t = b.grid("t", "T")
    n = b.load(length, t)
    with b.loop("i", 0, n.index(), 16, [b.const(0, "f32", (16,)), b.const(0, "i32")]) as outer:
        v = b.load(x, t, slice(outer.var, 16), other=9.0)
        v = b.within(v, outer.var, 0, -1.0)
        with b.loop("j", 0, 3, 1, [outer.carried[0]]) as inner:
            inner.yield_(inner.carried[0] * 0.5 + v)
        outer.yield_(inner.results[0], outer.carried[1] + 1)
    b.store(y, (t, slice(0, 16)), outer.results[0])
    b.store(count, (t,), outer.results[1])
    with b.loop("k", 0, 40, 16) as window:
        b.store(shifted, (t, slice(window.var, 16)), b.load(x, t, slice(window.var - 3, 16), other=-5.0))
        window.yield_()
    arrays = {
        "x": _floats(6, 40), "length": np.array([0, 1, 15, 16, 33, 40], np.int32),
        "y": np.full((6, 16), np.nan, np.float32),
        "count": np.zeros(6, np.int32), "shifted": np.zeros((6, 40), np.float32),
    }  # fmt: skip
    run_both(b.build(), arrays, level, {"T": 6})


@LEVELS
@pytest.mark.parametrize(
    "dtypes",
    [
        ("u8", "i8"),
        ("i8", "u8"),
        ("i8", "i8"),
        ("u8", "u8"),
        ("bf16", "bf16"),
        ("f16", "f16"),
        ("f32", "f32"),
    ],
)
def test_dots(level: str, dtypes: tuple[str, str]) -> None:
    """Full-range integers are exact at every level; narrow floats without an instruction are widened."""
    from tilewright.ir.numbers import STORED, to_bits
    from tilewright.ir.tile.ops import DOTS

    acc = DOTS[dtypes]
    b = KernelBuilder("dot_{}_{}".format(*dtypes))
    x, w, y = b.param("x", dtypes[0], (3, 8)), b.param("w", dtypes[1], (32, 8)), b.param("y", acc, (3, 32))
    b.grid("r", 1)
    rows = b.load(x, slice(0, 3), slice(0, 8))
    b.store(
        y, (slice(0, 3), slice(0, 32)), b.dot(b.const(1, acc), rows, b.load(w, slice(0, 32), slice(0, 8)))
    )

    def data(dtype: str, *shape: int) -> np.ndarray:
        if acc == "i32":
            info = np.iinfo(STORED[dtype])
            return RNG.choice([info.min, info.max, 3], shape).astype(STORED[dtype])
        return to_bits(_floats(*shape), dtype)

    arrays = {"x": data(dtypes[0], 3, 8), "w": data(dtypes[1], 32, 8), "y": np.zeros((3, 32), STORED[acc])}
    run_both(b.build(), arrays, level)


@LEVELS
def test_indices_from_memory(level: str) -> None:
    """Rows picked and scattered by tiles, a slot from a scalar tile, places outside left alone."""
    b = KernelBuilder("picks")
    x, ids, slot = b.param("x", "f32", (9, 20)), b.param("ids", "i32", (4,)), b.param("slot", "i32", (1,))
    y, z, p = b.param("y", "f32", (4, 20)), b.param("z", "f32", (9, 20)), b.param("p", "f32", (20,))
    b.grid("r", 1)
    rows = b.load(ids, slice(0, 4))
    picked = b.load(x, Pick(rows.name), slice(0, 20), other=3.0)
    b.store(y, (slice(0, 4), slice(0, 20)), picked)
    b.store(z, (Pick(rows.name), slice(0, 20)), picked, disjoint=True)
    b.store(p, (slice(0, 20),), b.load(x, b.load(slot, Affine()), slice(0, 20), other=4.0))
    for where in (2, 9, -1):
        arrays = {
            "x": _floats(9, 20),
            "ids": np.array([8, -1, 0, 9], np.int32),
            "slot": np.array([where], np.int32),
        }
        outs = {
            "y": np.full((4, 20), np.nan, np.float32),
            "z": np.zeros((9, 20), np.float32),
            "p": np.zeros(20, np.float32),
        }
        run_both(b.build(), {**arrays, **outs}, level)


def test_a_value_loaded_before_a_store_and_used_after_it_is_refused() -> None:
    """Values are computed when requested: a late use would see what the store wrote."""
    b = KernelBuilder("late")
    x, y = b.param("x", "f32", (16,)), b.param("y", "f32", (16,))
    b.grid("r", 1)
    old = b.load(x, slice(0, 16)).named("old")
    b.store(x, (slice(0, 16),), old * 2.0)
    b.store(y, (slice(0, 16),), old)
    with pytest.raises(
        UnsupportedError, match="%old is loaded from %x before a store to it and used after that store"
    ):
        render_kernel(b.build(), TARGETS[BEST])


@LEVELS
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("count", [2, 4, 20])
def test_columns_by_an_index_tile(level: str, dtype: str, count: int) -> None:
    """Lanes of one vector lie wherever the index says, each inside or outside by itself."""
    b = KernelBuilder(f"columns_{dtype}_{count}")
    x, c, y = b.param("x", dtype, ("T", 24)), b.param("c", "i32", (count,)), b.param("y", "f32", ("T", count))
    r = b.grid("r", "T", 4)
    columns = b.load(c, slice(0, count))
    tile = b.load(x, slice(r, 4), columns, other=7.0)
    b.store(y, (slice(r, 4), slice(0, count)), tile if dtype == "f32" else b.cast("f32", tile))
    picked = RNG.integers(0, 24, count).astype(np.int32)
    picked[-1] = 24  # outside
    data = to_bits(_floats(7, 24), "bf16") if dtype == "bf16" else _floats(7, 24)
    run_both(
        b.build(), {"x": data, "c": picked, "y": np.full((7, count), np.nan, np.float32)}, level, {"T": 7}
    )


@LEVELS
@pytest.mark.parametrize(("rows", "columns", "k"), [(1, 32, 64), (3, 16, 16), (2, 5, 32)])
def test_dots_with_bits(level: str, rows: int, columns: int, k: int) -> None:
    """By tables of four activations where there is a permutation, product by product elsewhere: the same sums
    to the bit, of the lowest bit of every operand alone; two planes against the same activations, and a set
    of both."""
    b = KernelBuilder("bits")
    x, w, v = (
        b.param("x", "f32", (rows, k)),
        b.param("w", "u8", (columns, k)),
        b.param("v", "u8", (columns, k)),
    )
    outs = [b.param(f"y{n}", "f32", (rows, columns)) for n in range(3)]
    b.grid("r", 1)
    xs = b.load(x, slice(0, rows), slice(0, k))
    first, second = (b.load(p, slice(0, columns), slice(0, k)) for p in (w, v))
    for y, bits in zip(outs, (first, second & 1, first & second), strict=True):
        b.store(y, (slice(0, rows), slice(0, columns)), b.bit_dot(b.const(0.5, "f32"), xs, bits))
    codes = [RNG.integers(0, 4, (columns, k), dtype=np.uint8) for _ in range(2)]
    zeros = {f"y{n}": np.zeros((rows, columns), np.float32) for n in range(3)}
    arrays = {"x": _floats(rows, k), "w": codes[0], "v": codes[1], **zeros}
    got = run_both(b.build(), arrays, level)
    for n, bits in enumerate((codes[0], codes[1] & 1, codes[0] & codes[1])):
        start, t = np.full((1, 1), 0.5, np.float32), TileType("f32", (rows, columns))
        np.testing.assert_array_equal(
            got[f"y{n}"], TILE_OPS["bit_dot"].meaning([start, arrays["x"], bits], {}, t)
        )
    plain = 0.5 + arrays["x"] @ (codes[0] & codes[1] & 1).T.astype(np.float32)
    np.testing.assert_allclose(got["y2"], plain, rtol=1e-5, atol=1e-5)


@LEVELS
def test_bytes_of_columns(level: str) -> None:
    """Columns of byte codes widened, looked up and halved to bf16, as a dot with the transposed tile asks for
    them."""
    b = KernelBuilder("columns")
    w = b.param("w", "u8", (32, 16))
    b.grid("r", 1)
    codes = b.load(w, slice(0, 32), slice(0, 16))
    table = b.cast("u8", b.iota(16) * 7 + 3)
    wide = {
        "f32": b.cast("f32", codes), "i32": b.cast("i32", codes),
        "bf16": b.cast("bf16", b.cast("f32", codes) - 128.0),
        "rounded": b.cast("bf16", b.cast("f32", codes) * 3.0),
        "looked": b.cast("f32", b.lookup(table, codes & 15)),
        "u16": b.cast("f32", b.cast("u16", codes) & 0x7F),
        "eight": b.lookup(b.cast("f32", b.iota(8)) * 3.0, codes & 7),
        "six": b.lookup(b.cast("f32", b.iota(6)) + 1.0, codes & 5),
    }  # fmt: skip
    x = b.param("x", "f32", (2, 16))
    xs = b.load(x, slice(0, 2), slice(0, 16))
    arrays = {"w": RNG.integers(0, 256, (32, 16), dtype=np.uint8), "x": np.rint(_floats(2, 16))}
    for name, tile in wide.items():
        y = b.param(name, "f32", (2, 32))
        dtype = "bf16" if tile.dtype == "bf16" else "f32"
        b.store(
            y, (slice(0, 2), slice(0, 32)), b.dot(b.const(0, "f32"), b.cast(dtype, xs), b.cast(dtype, tile))
        )
        arrays[name] = np.zeros((2, 32), np.float32)
    run_both(b.build(), arrays, level)
