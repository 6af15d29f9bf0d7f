"""AVX-512 (F, BW, DQ, VL) with FMA and F16C: full registers, and the 32- and 16-byte forms through VL."""

from __future__ import annotations

from tilewright.backends.cpp.isa import dots, generic, math
from tilewright.backends.cpp.isa.avx2 import SCALARS, helper, narrow_register, narrow_result
from tilewright.backends.cpp.isa.make import FLOATS, binary, cast, merge, ternary, unary, vec
from tilewright.backends.cpp.isa.vectors import lookups, permutations, pick_meaning, pinned, vectors
from tilewright.backends.cpp.target import BYTES, Fn, Target
from tilewright.runtime.cpu import LEVEL_FEATURES

_P = {16: "_mm_", 32: "_mm256_", 64: "_mm512_"}
_I = {16: "__m128i", 32: "__m256i", 64: "__m512i"}
_SUFFIX = {"f32": "ps", "f64": "pd"}

HEADERS = r"""
#include <immintrin.h>
static inline __attribute__((always_inline, unused)) uint64_t tw_low(int64_t n, int64_t lanes) {
    return n <= 0 ? 0 : n >= lanes ? ~0ull >> (64 - lanes) : _bzhi_u64(~0ull, (unsigned)n);
}
"""


def _arithmetic(dtype: str, lanes: int) -> list[Fn]:
    p, s = _P[lanes * BYTES[dtype]], _SUFFIX[dtype]
    order = f"return {p}mask_mov_{s}({p}{{}}_{s}(a, b), {p}cmp_{s}_mask(a, a, _CMP_UNORD_Q), a);"
    out = [
        *(binary(op, dtype, lanes, order.format(op)) for op in ("max", "min")),
        ternary("fma", dtype, lanes, f"return {p}fmadd_{s}(a, b, c);"),
        unary("round", dtype, lanes, f"return {p}roundscale_{s}(a, 8);"),
        unary("floor", dtype, lanes, f"return {p}roundscale_{s}(a, 9);"),
        unary("sqrt", dtype, lanes, f"return {p}sqrt_{s}(a);"),
    ]
    if dtype == "f32":  # of two operands the second is returned where one is NaN
        out.append(helper("atleast", lanes, f"return {p}max_ps(b, a);"))
        out.append(helper("atmost", lanes, f"return {p}min_ps(b, a);"))
        out.append(helper("ldexp", lanes, f"return {p}scalef_ps(a, b);"))
    return out


def _memory(dtype: str, lanes: int) -> list[Fn]:
    """Masked loads and stores touch nothing beyond n lanes."""
    size = BYTES[dtype] * lanes
    p, i, w, t = _P[size], _I[size], 8 * BYTES[dtype], vec(dtype, lanes)
    ptr, m = f"{dtype}*", f"(__mmask{max(lanes, 8)})tw_low({{}}, {lanes})"
    load = f"return ({t}){p}mask_loadu_epi{w}(({i})c, {m.format('b')}, a);"
    # GCC 12 cannot compile a widening of less than 16 bytes in memory that it merges with this mask
    apart = 'asm("" : "+v"(b)); ' if dtype == "i32" and lanes < 16 else ""
    return [
        Fn("t_load_n", (ptr, "i64", t), t, load),
        Fn("t_store_n", (ptr, "i64", t), "void", f"{p}mask_storeu_epi{w}(a, {m.format('b')}, ({i})c);"),
        Fn(
            "t_pick",
            ("i64", t, t),
            t,
            f"{apart}return ({t}){p}mask_mov_epi{w}(({i})c, {m.format('a')}, ({i})b);",
            pick_meaning,
        ),
    ]


def _conversions(lanes: int) -> list[Fn]:
    """f32 and i32 to and from everything narrower."""
    p = _P[4 * lanes]
    f, i, w = f"f32x{lanes}", f"i32x{lanes}", _I[4 * lanes]
    b1, b2 = lanes, 2 * lanes
    out = []
    for d, name, size in (
        ("i8", "epi8", b1),
        ("u8", "epu8", b1),
        ("i16", "epi16", b2),
        ("u16", "epu16", b2),
        ("bool", "epu8", b1),
    ):
        wide = f"{p}cvt{name}_epi32({narrow_register('a', size)})"
        out.append(cast(d, "i32", lanes, f"return ({i}){wide};"))
        out.append(cast(d, "f32", lanes, f"return {p}cvtepi32_ps({wide});"))
    out.append(cast("i32", "f32", lanes, f"return {p}cvtepi32_ps(({w})a);"))
    over = f"{p}cmp_ps_mask(a, {p}set1_ps(2147483648.f), _CMP_GE_OQ)"
    whole = f"{w} r = {p}maskz_cvtps_epi32({p}cmp_ps_mask(a, a, _CMP_ORD_Q), a); "
    out.append(
        cast(
            "f32", "i32", lanes, f"{whole}return ({i}){p}mask_mov_epi32(r, {over}, {p}set1_epi32(INT32_MAX));"
        )
    )
    for d, bits, top, size in (("i8", 8, 127, b1), ("i16", 16, 32767, b2)):
        whole = f"{p}maskz_cvtps_epi32({p}cmp_ps_mask(a, a, _CMP_ORD_Q), {p}min_ps(a, {p}set1_ps({top})))"
        out.append(
            cast("f32", d, lanes, narrow_result(vec(d, lanes), f"{p}cvtsepi32_epi{bits}({whole})", size))
        )
        out.append(
            cast("i32", d, lanes, narrow_result(vec(d, lanes), f"{p}cvtsepi32_epi{bits}(({w})a)", size))
        )
    for d, bits, top, size in (("u8", 8, 255, b1), ("u16", 16, 65535, b2)):
        whole = f"{p}cvtps_epi32({p}min_ps({p}max_ps(a, {p}setzero_ps()), {p}set1_ps({top})))"
        out.append(
            cast("f32", d, lanes, narrow_result(vec(d, lanes), f"{p}cvtepi32_epi{bits}({whole})", size))
        )
        clamp = f"{p}max_epi32(({w})a, {w}{{}})"
        out.append(
            cast("i32", d, lanes, narrow_result(vec(d, lanes), f"{p}cvtusepi32_epi{bits}({clamp})", size))
        )
    out.append(
        cast(
            "bf16",
            "f32",
            lanes,
            f"return ({f}){p}slli_epi32({p}cvtepu16_epi32({narrow_register('a', b2)}), 16);",
        )
    )
    nearest = (
        f"{w} u = ({w})a, r = {p}add_epi32({p}add_epi32(u, {p}set1_epi32(0x7fff)), "
        f"{p}and_si{32 * lanes}({p}srli_epi32(u, 16), {p}set1_epi32(1))); "
        f"r = {p}mask_mov_epi32({p}srli_epi32(r, 16), {p}cmp_ps_mask(a, a, _CMP_UNORD_Q), "
        f"{p}set1_epi32(0x7fc0)); "
    )
    out.append(
        cast("f32", "bf16", lanes, nearest + narrow_result(f"u16x{lanes}", f"{p}cvtepi32_epi16(r)", b2))
    )
    out.append(cast("f16", "f32", lanes, f"return {p}cvtph_ps({narrow_register('a', b2)});"))
    out.append(cast("f32", "f16", lanes, narrow_result(f"u16x{lanes}", f"{p}cvtps_ph(a, 0)", b2)))
    return out


def table() -> tuple[Fn, ...]:
    """All functions of the level."""
    arithmetic = [f for d in FLOATS for size in (16, 32, 64) for f in _arithmetic(d, size // BYTES[d])]
    memory = [f for d in BYTES for size in (16, 32, 64) for f in _memory(d, size // BYTES[d])]
    conversions = [f for lanes in (4, 8, 16) for f in _conversions(lanes)]
    tables = [lookups(8 * size, _P[size]) for size in (16, 32, 64)]
    tables += [pinned("f32", 16, "v"), pinned("u8", 64, "v")]
    tables += permutations(512, "_mm512_permutexvar_epi32({}, {})", ("f32", "i32", "u32"))
    tables += permutations(512, "_mm512_permutexvar_epi16({}, {})", ("bf16", "f16", "i16", "u16"))
    return merge(
        generic.scalars(), math.functions(1), vectors(64), SCALARS, arithmetic, memory, conversions, tables
    )


FLAGS = (
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mfma",
    "-mf16c",
    "-mbmi2",
    "-mbmi",
    "-mlzcnt",
    "-mpopcnt",
    "-mprefer-vector-width=512",
)
_FNS = table()
AVX512 = Target(
    "avx512", 64, 32, FLAGS, LEVEL_FEATURES["avx512"], dots.AVX512.dots, merge(_FNS, dots.AVX512.fns), HEADERS
)
AVX512_VNNI = Target(
    "avx512_vnni",
    64,
    32,
    (*FLAGS, "-mavx512vnni"),
    LEVEL_FEATURES["avx512_vnni"],
    dots.VNNI.dots,
    merge(_FNS, dots.VNNI.fns),
    HEADERS,
)
AVX512_BF16 = Target(
    "avx512_bf16", 64, 32, (*FLAGS, "-mavx512vnni", "-mavx512bf16"), LEVEL_FEATURES["avx512_bf16"],
    dots.BF16.dots, merge(_FNS, dots.BF16.fns), HEADERS,
)  # fmt: skip
