"""Dot products of every level, `acc[lane] += sum of a[lane, g] * b[lane, g]`, with their scalar meanings.

Integer entries are exact on all values their ranges admit. Float entries give the sum in the order their
comment states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tilewright.backends.cpp.target import BYTES, Array, Dot, Fn
from tilewright.ir.numbers import fma32


@dataclass(frozen=True)
class Dots:
    """Entries in order of preference, and their functions."""

    dots: tuple[Dot, ...]
    fns: tuple[Fn, ...]


def _meaning(acc: str, grain: int) -> Callable[..., Array]:
    def meaning(c: Array, a: Array, b: Array) -> Array:
        wide = np.int64 if acc == "i32" else np.float64
        with np.errstate(all="ignore"):
            total = c.astype(wide) + (a.astype(wide) * b.astype(wide)).reshape(len(c), grain).sum(1)
            return np.asarray(total.astype({"i32": np.int32, "f32": np.float32, "f64": np.float64}[acc]))

    return meaning


def _dpbf16(c: Array, a: Array, b: Array) -> Array:
    """Odd elements first, then even ones, one fused multiply-add each; denormals count as zero."""
    with np.errstate(all="ignore"):
        x, y = _flush(a).reshape(-1, 2), _flush(b).reshape(-1, 2)
        odd = _flush(fma32(x[:, 1], y[:, 1], _flush(c)))
        return _flush(fma32(x[:, 0], y[:, 0], odd))


def _flush(x: Array) -> Array:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x).astype(
        np.float32
    )


def _fused(c: Array, a: Array, b: Array) -> Array:
    with np.errstate(all="ignore"):
        return fma32(a, b, c) if c.dtype == np.float32 else a * b + c


def _entry(
    register: int, acc: str, a: str, b: str, text: str, a_max: int = 255, b_max: int = 255
) -> tuple[Dot, Fn]:
    grain = BYTES[acc] // BYTES[a]
    lanes = register // BYTES[acc]
    name = f"t_dot_{a}_{b}" + ("_small" if (a_max, b_max) != (255, 255) else "")
    fn = Fn(
        name,
        (f"{acc}x{lanes}", f"{a}x{lanes * grain}", f"{b}x{lanes * grain}"),
        f"{acc}x{lanes}",
        text,
        _MEANINGS.get(a) or _meaning(acc, grain),
    )
    return Dot(acc, a, b, grain, fn.symbol, a_max, b_max), fn


_MEANINGS = {"bf16": _dpbf16, "f32": _fused, "f64": _fused}


def _dots(*entries: tuple[Dot, Fn], also: tuple[Fn, ...] = ()) -> Dots:
    return Dots(tuple(d for d, _ in entries), (*(f for _, f in entries), *also))


def _fma(register: int, meaning: Callable[..., Array] | None = None) -> list[tuple[Dot, Fn]]:
    entries = [_entry(register, d, d, d, "return t_fma(b, c, a);") for d in ("f32", "f64")]
    return [(d, replace(f, meaning=meaning or f.meaning)) for d, f in entries]


def _twice_rounded(c: Array, a: Array, b: Array) -> Array:
    with np.errstate(all="ignore"):
        return a * b + c


# Parameters are a: accumulator, b: left operand, c: right operand.
def _widened(register: int, p: str, i: str) -> list[tuple[Dot, Fn]]:
    """Even and odd bytes as 16-bit lanes, then multiply-add of pairs: exact for all values, ten instructions
    at most."""
    bits = 8 * register
    even = {
        "u8": f"{p}and_si{bits}({{0}}, {p}set1_epi16(255))",
        "i8": f"{p}srai_epi16({p}slli_epi16({{0}}, 8), 8)",
    }
    odd = {"u8": f"{p}srli_epi16({{0}}, 8)", "i8": f"{p}srai_epi16({{0}}, 8)"}
    lanes = register // 4
    out = []
    for a, b in (("u8", "i8"), ("i8", "u8"), ("i8", "i8"), ("u8", "u8")):
        x, y = f"({i})b", f"({i})c"
        text = (
            f"{i} e = {p}madd_epi16({even[a].format(x)}, {even[b].format(y)}); "
            f"{i} o = {p}madd_epi16({odd[a].format(x)}, {odd[b].format(y)}); "
            f"return a + (i32x{lanes}){p}add_epi32(e, o);"
        )
        out.append(_entry(register, "i32", a, b, text))
    return out


def _maddubs(register: int, p: str, i: str) -> list[tuple[Dot, Fn]]:
    """Unsigned values up to 127: sums of two products stay below 32768, so nothing saturates. Small ones can
    take `_pairs`."""
    text = (
        f"return a + (i32x{register // 4}){p}madd_epi16({p}maddubs_epi16(({i}){{}}, ({i}){{}}), "
        f"{p}set1_epi16(1));"
    )
    entries = [
        _entry(register, "i32", "u8", "i8", text.format("b", "c"), a_max=127),
        _entry(register, "i32", "i8", "u8", text.format("c", "b"), b_max=127),
    ]
    return [(replace(d, pairs=f"t_pairs_{d.a}_{d.b}_small", total="t_pairs_total"), f) for d, f in entries]


def _pairs(register: int, p: str, i: str) -> tuple[Fn, ...]:
    """The two steps of `_maddubs`: sums of two products added in 16 bits, and those taken over into 32."""
    wide, half, full = f"i32x{register // 4}", f"i16x{register // 2}", (f"u8x{register}", f"i8x{register}")
    text = f"return a + ({half}){p}maddubs_epi16(({i}){{}}, ({i}){{}});"
    total = f"return a + ({wide}){p}madd_epi16(({i})b, {p}set1_epi16(1));"
    return (
        Fn("t_pairs_u8_i8_small", (half, *full), half, text.format("b", "c"), _sums_of_pairs),
        Fn("t_pairs_i8_u8_small", (half, *full[::-1]), half, text.format("c", "b"), _sums_of_pairs),
        Fn("t_pairs_total", (wide, half), wide, total, _total_of_pairs),
    )


def _sums_of_pairs(c: Array, a: Array, b: Array) -> Array:
    products = (a.astype(np.int64) * b.astype(np.int64)).reshape(-1, 2).sum(1)
    return np.asarray((c.astype(np.int64) + products).astype(np.int16))


def _total_of_pairs(c: Array, s: Array) -> Array:
    return np.asarray((c.astype(np.int64) + s.astype(np.int64).reshape(-1, 2).sum(1)).astype(np.int32))


def _vnni() -> list[tuple[Dot, Fn]]:
    """Two signed operands: a + 128 is unsigned, and 128 times the sum of b comes off again; two unsigned
    likewise."""
    dot = "_mm512_dpbusd_epi32({}, (__m512i){}, (__m512i){})"
    acc, zero, top = "(__m512i)a", "__m512i{}", "_mm512_set1_epi8(-128)"
    flip_b, flip_c = f"_mm512_xor_si512((__m512i)b, {top})", f"_mm512_xor_si512((__m512i)c, {top})"
    ii = f"return (i32x16){dot.format(acc, flip_b, 'c')} - (i32x16){dot.format(zero, top, 'c')};"
    uu = f"return (i32x16){dot.format(acc, 'b', flip_c)} - (i32x16){dot.format(zero, 'b', top)};"
    return [
        _entry(64, "i32", "u8", "i8", f"return (i32x16){dot.format(acc, 'b', 'c')};"),
        _entry(64, "i32", "i8", "u8", f"return (i32x16){dot.format(acc, 'c', 'b')};"),
        _entry(64, "i32", "i8", "i8", ii),
        _entry(64, "i32", "u8", "u8", uu),
    ]


_BF16 = _entry(
    64,
    "f32",
    "bf16",
    "bf16",
    "return (f32x16)_mm512_dpbf16_ps(a, (__m512bh)(__m512i)b, (__m512bh)(__m512i)c);",
)


def _generic() -> list[tuple[Dot, Fn]]:
    """Even and odd bytes as 16-bit lanes by plain vector shifts, multiplied and added in pairs by
    `tw_madd`."""
    even = {"u8": "(tw_as<i16x8>({0}) & 255)", "i8": "((tw_as<i16x8>({0}) << 8) >> 8)"}
    odd = {"u8": "tw_as<i16x8>(tw_as<u16x8>({0}) >> 8)", "i8": "(tw_as<i16x8>({0}) >> 8)"}
    out = []
    for a, b in (("u8", "i8"), ("i8", "u8"), ("i8", "i8"), ("u8", "u8")):
        terms = [f"tw_madd({x[a].format('b')}, {x[b].format('c')})" for x in (even, odd)]
        out.append(_entry(16, "i32", a, b, f"return a + ({terms[0]} + {terms[1]});"))
    return out


BASELINE = _dots(*_fma(16, _twice_rounded), *_generic())
AVX2 = _dots(
    *_fma(32),
    *_maddubs(32, "_mm256_", "__m256i"),
    *_widened(32, "_mm256_", "__m256i"),
    also=_pairs(32, "_mm256_", "__m256i"),
)
AVX512 = _dots(
    *_fma(64),
    *_maddubs(64, "_mm512_", "__m512i"),
    *_widened(64, "_mm512_", "__m512i"),
    also=_pairs(64, "_mm512_", "__m512i"),
)
VNNI = _dots(*_fma(64), *_vnni())
BF16 = _dots(*_fma(64), *_vnni(), _BF16)
