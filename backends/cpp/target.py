"""What the C++ renderer may ask of an instruction set: vector widths, functions by type, dots, build flags.

A table entry is a loop-free sequence of at most a dozen instructions, together with its scalar semantics; a
generated test compares the two on random lanes. Renderers do not depend on intrinsics, tables not on tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]

#: C type of one element. bf16 and f16 are carried as their bits (`bf16` is a typedef of unsigned short, and
#: so is `f16`); only table functions compute on them.
CTYPE = {
    "u8": "uint8_t", "i8": "int8_t", "u16": "uint16_t", "i16": "int16_t", "bf16": "uint16_t",
    "f16": "uint16_t",
    "i32": "int32_t", "u32": "uint32_t", "f32": "float", "f64": "double", "i64": "int64_t", "bool": "uint8_t",
}  # fmt: skip
BYTES = {
    "u8": 1,
    "i8": 1,
    "bool": 1,
    "u16": 2,
    "i16": 2,
    "bf16": 2,
    "f16": 2,
    "i32": 4,
    "u32": 4,
    "f32": 4,
    "f64": 8,
    "i64": 8,
}


def element(spelled: str) -> str:
    """The dtype in a spelled type: `bf16x8` and `bf16*` give `bf16`."""
    return spelled.rstrip("*").split("x")[0]


def symbol(name: str, args: tuple[str, ...]) -> str:
    """The C++ name of a function. bf16, f16 and bool share a C type with u16 and u8, so overloading cannot
    tell them apart: functions whose last argument is of these dtypes carry it in their name
    (`t_cvt_f32_bf16`)."""
    last = element(args[-1]) if args else ""
    return f"{name}_{last}" if last in ("bf16", "f16", "bool") else name


@dataclass(frozen=True)
class Fn:
    """`name(args) -> result` where types are spelled `f32x16` (vector), `f32` (scalar) or `i64` for plain
    integers.

    `text` is the C++ body after the parameter list, with parameters a, b, c (e.g. `return _mm512_max_ps(a,
    b);`). `meaning` takes and returns NumPy arrays of the lanes. Names: the scalar primitives of Tile IR are
    spelled `t_NAME` (t_max, t_exp, t_fma, …), `t_cvt_bf16` (conversion to that dtype, round to nearest even,
    saturating to integers), `t_load_n(pointer, n, other)` / `t_store_n(pointer, n, value)` (the first n
    lanes, n clamped to 0..lanes), `t_pick(n, a, b)` (lanes below n from a, the others from b), `t_select(m,
    a, b)` with an integer lane mask."""

    name: str
    args: tuple[str, ...]
    result: str
    text: str
    meaning: Callable[..., Array] | None = None

    @property
    def symbol(self) -> str:
        """The name to call in C++ (see `symbol`)."""
        return symbol(self.name, self.args)


@dataclass(frozen=True)
class Dot:
    """acc[lane] += sum over the grain of a[lane, g] * b[lane, g]: `fn(acc, a, b)` on full vectors of the
    target.

    `a_max`, `b_max`: the entry is exact only for unsigned values up to these (maddubs needs b_max 127 or
    less). `pairs`, `total`: the same in two steps, for small values: `acc16 = pairs(acc16, a, b)` adds
    products in i16 for as many steps as fit, `acc = total(acc, acc16)` adds them to the i32 sums."""

    acc: str
    a: str
    b: str
    grain: int
    fn: str
    a_max: int = 255
    b_max: int = 255
    pairs: str = ""
    total: str = ""


@dataclass(frozen=True)
class Target:
    """One level: `bytes` of a vector register, `regs` of them, g++ `flags`, CPU `features` it needs (names as
    in /proc/cpuinfo), dots in order of preference, functions."""

    name: str
    bytes: int
    regs: int
    flags: tuple[str, ...]
    features: tuple[str, ...]
    dots: tuple[Dot, ...]
    fns: tuple[Fn, ...]
    headers: str = ""

    def lanes(self, dtype: str) -> int:
        return self.bytes // BYTES[dtype]

    def dot(self, acc: str, a: str, b: str, a_max: int = 255, b_max: int = 255) -> Dot | None:
        """The first entry for these dtypes whose operand ranges hold; None: the operands must be widened."""
        return next(
            (
                d
                for d in self.dots
                if (d.acc, d.a, d.b) == (acc, a, b) and a_max <= d.a_max and b_max <= d.b_max
            ),
            None,
        )

    def has(self, name: str, *args: str) -> bool:
        """Whether a function of this name takes exactly these types; if not, the renderer splits vectors in
        halves, down to scalars, which every level has."""
        return (name, args) in self._index

    @property
    def _index(self) -> frozenset[tuple[str, tuple[str, ...]]]:
        found: frozenset[tuple[str, tuple[str, ...]]] | None = self.__dict__.get("_cached")
        if found is None:
            found = frozenset((f.name, f.args) for f in self.fns)
            object.__setattr__(self, "_cached", found)
        return found
