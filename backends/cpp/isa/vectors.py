"""Vector functions without intrinsics: generic text at every width up to a register, and partial accesses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tilewright.backends.cpp.isa import generic, math
from tilewright.backends.cpp.isa.make import ALL, FLOATS, INTS, NARROW, cast, vec
from tilewright.backends.cpp.target import BYTES, Array, Fn
from tilewright.ir.numbers import int_range
from tilewright.ir.tile.ops import tree_reduce

LANES = (2, 4, 8, 16, 32, 64)


def widths(dtype: str, register: int) -> list[int]:
    """Lane counts of `dtype` up to a register."""
    return [n for n in LANES if n * BYTES[dtype] <= register]


def partial(dtype: str, lanes: int) -> list[Fn]:
    """The first n lanes in and out of memory (no byte beyond them is touched), and of two vectors."""
    t, p, size = vec(dtype, lanes), f"{dtype}*", BYTES[dtype]
    count = f"tw_clamp(b, {lanes}) * {size}"
    signed = f"i{8 * size}"
    iota = ", ".join(str(i) for i in range(lanes))
    pick = f"return {signed}x{lanes}{{{iota}}} < tw_splat<{signed}x{lanes}>(tw_clamp(a, {lanes})) ? b : c;"
    return [
        Fn("t_load_n", (p, "i64", t), t, f"__builtin_memcpy(&c, a, {count}); return c;"),
        Fn("t_store_n", (p, "i64", t), "void", f"__builtin_memcpy(a, &c, {count});"),
        Fn("t_pick", ("i64", t, t), t, pick, pick_meaning),
    ]


def pick_meaning(n: Array, a: Array, b: Array) -> Array:
    return np.where(np.arange(len(a)) < n, a, b)


def lookups(bits: int, prefix: str) -> Fn:
    """Bytes of a table of 16, repeated in every 16 lanes, by codes below 128; above, zero."""
    t = vec("u8", bits // 8)
    kind = f"__m{bits}i"
    return Fn("t_lookup", (t, t), t, f"return ({t}){prefix}shuffle_epi8(({kind})a, ({kind})b);", _lookup)


def permutations(bits: int, text: str, dtypes: tuple[str, ...]) -> list[Fn]:
    """Lanes of a register chosen by the low bits of an index: `text` has places for the index (a) and the
    register (b)."""
    out = []
    for d in dtypes:
        index, t = (vec(e, bits // 8 // BYTES[d]) for e in (f"i{8 * BYTES[d]}", d))
        kind = f"__m{bits}i"
        call = text.format(f"({kind})a", f"({kind})b")
        out.append(
            Fn(
                "t_permute",
                (index, t),
                t,
                f"return ({t}){call};",
                lambda a, b: b[a.astype(np.int64) % len(b)],
            )
        )
    return out


def pinned(dtype: str, lanes: int, constraint: str) -> Fn:
    """A value that the C++ compiler must have in a register at this place: it would put off sums and keep
    what they are of."""
    t = vec(dtype, lanes)
    return Fn("t_keep", (t,), t, f'asm("" : "+{constraint}"(a)); return a;', lambda a: a)


def _lookup(a: Array, b: Array) -> Array:
    lanes = np.arange(len(a)) // 16 * 16
    return np.where(b < 128, a[lanes + b % 16], 0).astype(np.uint8)


def halves(dtype: str, lanes: int) -> list[Fn]:
    """The lower and upper half of a vector, and two vectors as one."""
    t, h = vec(dtype, lanes), vec(dtype, lanes // 2)
    lo, hi = (", ".join(str(i) for i in range(k, k + lanes // 2)) for k in (0, lanes // 2))
    return [
        Fn("t_lo", (t,), h, f"return __builtin_shufflevector(a, a, {lo});", lambda a: a[: len(a) // 2]),
        Fn("t_hi", (t,), h, f"return __builtin_shufflevector(a, a, {hi});", lambda a: a[len(a) // 2 :]),
        Fn("t_join", (h, h), t, f"return __builtin_shufflevector(a, b, {lo}, {hi});", _join),
    ]


def _join(a: Array, b: Array) -> Array:
    return np.concatenate([a, b])


def reductions(dtype: str, lanes: int) -> list[Fn]:
    """All lanes as one scalar, the upper half folded onto the lower until one is left: the order
    `tree_reduce` fixes."""
    out = []
    for op in ("add", "max", "min"):
        text, lo, hi = "", "a", lanes
        while hi > 2:
            hi //= 2
            text += f"auto x{hi} = t_{op}(t_lo({lo}), t_hi({lo})); "
            lo = f"x{hi}"
        out.append(
            Fn(
                f"t_reduce_{op}",
                (vec(dtype, lanes),),
                dtype,
                f"{text}return t_{op}({lo}[0], {lo}[1]);",
                _reduction(op, dtype),
            )
        )
    return out


def _reduction(op: str, dtype: str) -> Callable[..., Array]:
    def meaning(a: Array) -> Array:
        return np.asarray(tree_reduce(a, op, 0, dtype)[0])

    return meaning


def shifts(dtype: str, lanes: int) -> list[Fn]:
    """All lanes by one count, which is the scalar second operand."""
    t, bits = vec(dtype, lanes), 8 * BYTES[dtype]
    wide = vec("u" + dtype[1:], lanes) if dtype != "i64" else t
    left = f"return (uint32_t)b < {bits} ? ({t})(({wide})a << b) : {t}{{}};"
    count = f"(uint32_t)b < {bits} ? b : {bits - 1}"
    right = (
        f"return a >> ({count});" if dtype[0] == "i" else f"return (uint32_t)b < {bits} ? a >> b : {t}{{}};"
    )
    return [Fn("t_shl", (t, "i32"), t, left, _shift("shl")), Fn("t_shr", (t, "i32"), t, right, _shift("shr"))]


def _shift(op: str) -> Callable[..., Array]:
    def meaning(a: Array, n: Array) -> Array:
        fn = np.left_shift if op == "shl" else np.right_shift
        return fn(a.astype(np.int64), np.full(len(a), n, np.int64)).astype(a.dtype)

    return meaning


def casts(lanes: int, register: int) -> list[Fn]:
    """Conversions between vectors that fit a register: direct where the generic text does it, else by way of
    f32 or i32, which loses nothing on these pairs."""
    small = ("i8", "u8", "i16", "u16")
    have = {d for d in ALL if lanes in widths(d, register)}
    pairs: dict[tuple[str, str], str] = {}
    if "f32" in have:
        pairs |= {(d, "i32"): f"return tw_to<i32x{lanes}>(a);" for d in (*small, "bool")}
        pairs |= {(d, "f32"): f"return tw_to<f32x{lanes}>(t_cvt_i32{_tail(d)}(a));" for d in (*small, "bool")}
        pairs["i32", "f32"] = f"return tw_to<f32x{lanes}>(a);"
        pairs["f32", "i32"] = _float_to_i32(lanes)
        pairs |= {("f32", d): f"return t_cvt_{d}(t_cvt_i32(a));" for d in small}
        pairs |= {
            ("f32", "bool"): f"return tw_to<u8x{lanes}>((a != 0.f) & 1);",
            ("i32", "bool"): f"return tw_to<u8x{lanes}>((a != 0) & 1);",
        }
        pairs |= {(s, d): f"return t_cvt_{d}(t_cvt_f32_{s}(a));" for s in NARROW for d in (*small, "i32")}
        pairs |= {
            (s, d): f"return t_cvt_{d}(t_cvt_f32{_tail(s)}(a));"
            for s in (*small, "i32", "bool")
            for d in NARROW
        }
        pairs |= {("i32", d): _saturate("i32", d, lanes) for d in small}
        pairs |= {
            ("bf16", "f16"): "return t_cvt_f16(t_cvt_f32_bf16(a));",
            ("f16", "bf16"): "return t_cvt_bf16(t_cvt_f32_f16(a));",
        }
    if "f64" in have:
        pairs |= _wide_casts(lanes)
    pairs |= {(s, d): _saturate(s, d, lanes) for s in small for d in small if s != d}
    pairs |= {("bool", d): f"return tw_to<{d}x{lanes}>(a);" for d in small}
    pairs |= {(d, "bool"): f"return tw_to<u8x{lanes}>((a != 0) & 1);" for d in small}
    return [cast(s, d, lanes, text) for (s, d), text in pairs.items() if {s, d} <= have]


def _wide_casts(lanes: int) -> dict[tuple[str, str], str]:
    """Between types of 8 bytes, and to and from those of 4."""
    direct = [("f32", "f64"), ("f64", "f32"), ("i32", "i64"), ("i32", "f64"), ("i64", "f32"), ("i64", "f64")]
    v, i = f"f64x{lanes}", f"i64x{lanes}"
    top = "9223372036854775808."
    whole = (
        f"a = t_round(a); {v} low = a < -{top} ? tw_splat<{v}>(-{top}) : a; "
        f"{i} r = tw_to<{i}>(a < {top} ? low : tw_splat<{v}>(0)); return a >= {top} ? "
        f"tw_splat<{i}>(INT64_MAX) : r;"
    )
    return {(s, d): f"return tw_to<{d}x{lanes}>(a);" for s, d in direct} | {
        ("f64", "i64"): whole,
        ("f32", "i64"): f"return t_cvt_i64(tw_to<{v}>(a));",
        ("f64", "i32"): "return t_cvt_i32(t_cvt_i64(a));",
        ("i64", "i32"): _saturate("i64", "i32", lanes),
    }


def _tail(dtype: str) -> str:
    return f"_{dtype}" if dtype in (*NARROW, "bool") else ""


def _float_to_i32(lanes: int) -> str:
    v, i = f"f32x{lanes}", f"i32x{lanes}"
    return (
        f"a = t_round(a); {v} low = a < -2147483648.f ? tw_splat<{v}>(-2147483648.f) : a; "
        f"{i} r = tw_to<{i}>(a < 2147483648.f ? low : tw_splat<{v}>(0));"
        f" return a >= 2147483648.f ? tw_splat<{i}>(INT32_MAX) : r;"
    )


def _saturate(source: str, dtype: str, lanes: int) -> str:
    """Clamp in the source type, then keep the low bits."""
    (lo, hi), (slo, shi), v = int_range(dtype), int_range(source), vec(source, lanes)
    clamp = f"a = a > {hi} ? tw_splat<{v}>({hi}) : a; " if shi > hi else ""
    clamp += f"a = a < {lo} ? tw_splat<{v}>({lo}) : a; " if slo < lo else ""
    return f"{clamp}return tw_to<{vec(dtype, lanes)}>(a);"


def vectors(register: int, fused: bool = True) -> list[Fn]:
    """The generic table for all widths up to `register` bytes."""
    out: list[Fn] = []
    for dtype in ALL:
        for lanes in widths(dtype, register):
            out += partial(dtype, lanes) + (
                halves(dtype, lanes) if lanes > 2 and lanes // 2 in widths(dtype, register) else []
            )
            out += generic.bitcasts(lanes) if dtype == "f32" else []
            if dtype in FLOATS:
                out += generic.floats(dtype, lanes)
            if dtype in INTS:
                out += [*generic.integers(dtype, lanes), *shifts(dtype, lanes)]
            if dtype in (*FLOATS, *INTS):
                out += generic.compares(dtype, lanes) + reductions(dtype, lanes)
            if dtype == "f32":
                out += generic.narrow_casts(lanes) + math.functions(lanes, fused)
            if dtype == "bool":
                out += generic.booleans(lanes)
    return out + [f for lanes in LANES for f in casts(lanes, register)]
