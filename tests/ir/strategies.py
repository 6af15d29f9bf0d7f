"""Hypothesis strategies: random well-typed tile programs, written with the builder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis.strategies import DrawFn

from tilewright.ir.affine import Affine
from tilewright.ir.layout import RecordSpec, StreamSpec
from tilewright.ir.tile.builder import KernelBuilder, Loop, Tile
from tilewright.ir.tile.core import Condition, Kernel, Schedule
from tilewright.ir.tile.op_record import TileTypeError

DTYPES = ("f32", "i32", "i8", "u8", "bf16", "f16", "f64", "i64", "i16")
FLOAT_UNARY = ("exp", "log", "sqrt", "rsqrt", "erf", "sin", "cos", "round", "floor", "neg", "abs")
BINARY = ("add", "sub", "mul", "div", "rem", "min", "max")
BITS = ("and", "or", "xor", "shl", "shr")
COMPARE = ("lt", "le", "eq", "ne")
RECORD = RecordSpec(
    "0/4 1/8", (StreamSpec("codes", "u4", "0.4 1.8", 0, 15), StreamSpec("scale", "f16", "0.4"))
)
SYMBOLS = {"M": 9, "N": 21, "L": 5}


@dataclass
class Fuzz:
    """One program being drawn."""

    draw: DrawFn
    b: KernelBuilder
    i: Affine
    j: Affine
    pool: list[Tile] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)

    def pick(self, *options: str) -> str:
        return self.draw(st.sampled_from(options))

    def tile(self, *dtypes: str) -> Tile:
        """A value from the pool, cast to the first of the dtypes wanted if it has none of them."""
        x = self.draw(st.sampled_from(self.pool))
        return x if not dtypes or x.dtype in dtypes else self.b.cast(dtypes[0], x)

    def number(self, dtype: str) -> float:
        if dtype in ("f32", "f64", "bf16", "f16"):
            return self.draw(st.sampled_from([0.0, 1.0, -2.5, 1e-6, math.inf, -math.inf, math.nan, 3e38]))
        return self.draw(st.sampled_from([0, 1, 5, 100] if dtype[0] == "u" else [0, 1, -3, 100]))

    def load(self) -> Tile:
        i, j = slice(self.i, "BM"), slice(self.j, "BN")
        match self.pick(
            "plain", "plain", "else", "row", "pick", "codes", "scale", "scalar", "shifted", "local"
        ):
            case "else":
                return self.b.load(self.pick("x", "q"), i, j, other=self.draw(st.sampled_from([1.0, -1.0])))
            case "row":
                return self.b.load("x", self.i, j)
            case "pick":
                return self.b.load("x", self.b.load("rows", i, other=-1), j)
            case "codes":
                return self.b.load("w.codes", slice(self.j, "BN"), slice(8, 8))
            case "scale":
                return self.b.load("w.scale", slice(self.j, "BN"), 3)
            case "scalar":
                return self.b.load(
                    "x", self.b.load("rows", 2).index() + 1, slice(self.j * 2 - 1, "BN"), other=math.nan
                )
            case "shifted":
                loop = self.draw(st.sampled_from([*(x.var for x in self.loops), self.j]))
                return self.b.load("q", i, slice(loop + Affine.of("N") - 4, 4))
            case "local":
                return self.b.load("keep", slice(0, "BM"), slice(0, "BN"))
            case _:
                return self.b.load(self.pick("x", "q"), i, j)

    def compute(self) -> Tile:
        b, x = self.b, self.tile()
        match self.pick(
            "unary",
            "binary",
            "bits",
            "compare",
            "select",
            "cast",
            "bitcast",
            "reduce",
            "scan",
            "move",
            "make",
            "lookup",
            "dot",
            "fma",
            "within",
        ):
            case "unary":
                return b.op(self.pick(*FLOAT_UNARY), self.tile("f32", "bf16", "f64"))
            case "binary":
                x = x if x.dtype != "bool" else b.cast("i8", x)
                other = self.tile(x.dtype) if self.draw(st.booleans()) else self.number(x.dtype)
                return b.op(self.pick(*BINARY), x, other)
            case "bits":
                return b.op(self.pick(*BITS), self.tile("i32"), self.draw(st.integers(0, 7)))
            case "compare":
                x = x if x.dtype != "bool" else b.cast("f16", x)
                return b.op(self.pick(*COMPARE), x, self.number(x.dtype))
            case "select":
                return b.select(b.op("lt", self.tile("f32"), 0.5), self.tile("f32"), 2.0)
            case "cast":
                return b.op("cast", x, dtype=self.pick(*DTYPES))
            case "bitcast":
                return b.bitcast("i32", self.tile("f32"))
            case "reduce" | "scan" as op:
                x = self.tile("f32", "i32", "i8")
                axis = self.draw(st.integers(0, max(len(x.shape) - 1, 0)))
                fixed = not x.shape or isinstance(x.shape[axis], int) or x.dtype != "f32"
                return b.op(op, x, fn=self.pick(*(["add"] if fixed else []), "max", "min"), axis=axis)
            case "move":
                return self.move(x)
            case "make":
                return self.make()
            case "lookup":
                return b.lookup(b.load("table", slice(0, 16)), self.tile("i32", "u8"))
            case "dot":
                a = b.load("x", slice(self.i, "BM"), slice(0, 8))
                w = b.cast("f32", b.load("w.codes", slice(self.j, "BN"), slice(0, 8)))
                return b.dot(b.const(0.0, "f32"), a, w)
            case "within" if self.loops:
                return b.within(
                    self.b.load("x", slice(self.i, "BM"), slice(self.loops[-1].var, 4)),
                    self.loops[-1].var,
                    1,
                    self.number("f32"),
                )
            case _:
                return b.op("fma", self.tile("f32"), 2.0, 0.5)

    def move(self, x: Tile) -> Tile:
        if self.draw(st.booleans()):
            return self.b.transpose(x)
        if len(x.shape) == 1:
            return self.b.expand(x, self.draw(st.integers(0, 1)))
        return self.b.reshape(x, *reversed(x.shape))

    def make(self) -> Tile:
        b, dtype = self.b, self.pick(*DTYPES)
        made = (b.const(self.number(dtype), dtype, ("BM", 1)), b.iota("BN"), b.index_value(self.i * 3 + 1))
        return self.draw(st.sampled_from(made))

    def grow(self, steps: int, depth: int) -> None:
        for _ in range(steps):
            try:
                x = self.load() if self.draw(st.integers(0, 3)) == 0 else self.compute()
                if len(x.shape) <= 2:
                    self.pool.append(x)
            except TileTypeError:
                continue
            if depth < 2 and self.draw(st.integers(0, 7)) == 0:
                self.loop(depth)

    def loop(self, depth: int) -> None:
        init = [self.tile() for _ in range(self.draw(st.integers(0, 2)))]
        lo = self.draw(st.sampled_from(["0", "count"]))
        outside = len(self.pool)
        start: object = 0 if lo == "0" else self.b.load("rows", 1).index()
        with self.b.loop(
            f"k{self.b.fresh()}", start, self.draw(st.sampled_from([7, "L", "N"])), 4, init
        ) as loop:  # type: ignore[arg-type]
            self.loops.append(loop)
            self.pool += loop.carried
            self.grow(self.draw(st.integers(0, 4)), depth + 1)
            same = [[x for x in self.pool if x.type == i.type] for i in init]
            loop.yield_(*(self.draw(st.sampled_from(options)) for options in same))
            self.loops.pop()
            del self.pool[outside:]
        self.pool += loop.results


def _declare(draw: DrawFn) -> Fuzz:
    b = KernelBuilder("fuzz")
    b.param("x", "f32", ("M", "N"))
    b.param("q", draw(st.sampled_from(DTYPES)), ("M", "N"))
    b.param("rows", "i32", ("M",), lo=0, hi=8)
    b.param("w", "f32", ("N", 16), record=RECORD)
    b.param("table", draw(st.sampled_from(DTYPES)), (16,))
    b.param("y", "f32", ("M", "N"))
    b.local(
        "keep",
        "f32",
        ("BM", "BN"),
        record=draw(st.sampled_from([None, RecordSpec("0 1", (StreamSpec("values", "f32", ""),))])),
    )
    i, j = b.grid("i", "M", "BM", rows=draw(st.booleans())), b.grid("j", "N", "BN")
    f = Fuzz(draw, b, i, j)
    first = b.load("x", slice(i, "BM"), slice(j, "BN")).named("first")
    b.store(b.locals[0], [slice(0, "BM"), slice(0, "BN")], first)
    f.pool.append(first)
    return f


@st.composite
def tile_kernels(draw: DrawFn) -> Kernel:
    """A verified-looking program over the symbols of `SYMBOLS`, with one to three schedules."""
    f = _declare(draw)
    f.grow(draw(st.integers(1, 12)), 0)
    fits = [x for x in f.pool if x.shape in ((), ("BN",), ("BM", "BN"), (1, "BN"), ("BM", 1), (1,), (1, 1))]
    value = f.b.cast("f32", draw(st.sampled_from(fits)))
    f.b.store(f.b.params[-1], [slice(f.i, "BM"), slice(f.j, "BN")], value)
    for k in range(draw(st.integers(1, 3))):
        sizes = (("BM", draw(st.sampled_from([1, 2, 4, 8]))), ("BN", draw(st.sampled_from([1, 2, 4]))))
        order = draw(st.sampled_from([(), ("j", "i")]))
        stages = (("first", order[-1] if order else "j"),) * draw(st.integers(0, 2))
        f.b.schedules.append(
            Schedule(
                draw(st.sampled_from(["*", "triton", "avx512_vnni"])), sizes,
                draw(st.sampled_from([(), (Condition("M", "<=", 4 + k), Condition("N", ">", -1))])),
                order, draw(st.sampled_from(["", "i", "i j"])), stages,
                draw(st.sampled_from([(), (("copy", 4),)])),
                draw(st.sampled_from([(), (("warps", 4), ("stages", 2))])),
            )
        )  # fmt: skip
    return f.b.build()
