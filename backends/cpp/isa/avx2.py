"""AVX2 with FMA and F16C: 32-byte registers, and the 16-byte forms."""

from __future__ import annotations

from dataclasses import replace

from tilewright.backends.cpp.isa import dots, generic, math
from tilewright.backends.cpp.isa.make import FLOATS, binary, cast, merge, ternary, unary, vec
from tilewright.backends.cpp.isa.vectors import lookups, permutations, pinned, vectors
from tilewright.backends.cpp.target import BYTES, Fn, Target
from tilewright.runtime.cpu import LEVEL_FEATURES

_P = {16: "_mm_", 32: "_mm256_"}
_I = {16: "__m128i", 32: "__m256i"}
_SUFFIX = {"f32": "ps", "f64": "pd"}

HEADERS = """
#include <immintrin.h>
static inline __attribute__((always_inline, unused)) __m128i tw_packs32(__m256i a) {
    return _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
}
static inline __attribute__((always_inline, unused)) __m128i tw_packs32(__m128i a) { \
return _mm_packs_epi32(a, a); }
static inline __attribute__((always_inline, unused)) __m128i tw_packus32(__m256i a) {
    return _mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
}
static inline __attribute__((always_inline, unused)) __m128i tw_packus32(__m128i a) { \
return _mm_packus_epi32(a, a); }
"""

#: two lanes, which no register of floats is as narrow as: the product is not rounded there either
_PAIR = "return f32x2{__builtin_fmaf(a[0], b[0], c[0]), __builtin_fmaf(a[1], b[1], c[1])};"
#: scalars and pairs on every level with FMA, SSE4.1 and F16C
SCALARS = (
    ternary("fma", "f32", 1, "return __builtin_fmaf(a, b, c);"),
    ternary("fma", "f32", 2, _PAIR),
    ternary("fma", "f64", 1, "return __builtin_fma(a, b, c);"),
    unary("round", "f32", 1, "return __builtin_nearbyintf(a);"),
    unary("floor", "f32", 1, "return __builtin_floorf(a);"),
    cast("f16", "f32", 1, "return _cvtsh_ss(a);"), cast("f32", "f16", 1, "return _cvtss_sh(a, 0);"),
)  # fmt: skip


def narrow_register(v: str, size: int) -> str:
    """A vector of 4 to 16 bytes as the intrinsics' 16-byte register."""
    if size >= 16:
        return f"({_I[16] if size == 16 else '__m256i'}){v}"
    return f"_mm_cvtsi64_si128((long long){v})" if size == 8 else f"_mm_cvtsi32_si128((int){v})"


def narrow_result(t: str, text: str, size: int) -> str:
    """The lower bytes of a register as a vector of type `t`."""
    return f"return ({t}){text};" if size >= 16 else f"return ({t})_mm_cvtsi128_si{8 * size}({text});"


def helper(name: str, lanes: int, text: str) -> Fn:
    """Another text for one of the generic table's helpers."""
    return next(replace(f, text=text) for f in generic.helpers(lanes) if f.name == f"t_{name}")


def _arithmetic(dtype: str, lanes: int) -> list[Fn]:
    p, s = _P[lanes * BYTES[dtype]], _SUFFIX[dtype]
    unordered = f"{p}cmp_{s}(a, a, _CMP_UNORD_Q)"
    out = [
        *(
            binary(op, dtype, lanes, f"return {p}blendv_{s}({p}{op}_{s}(a, b), a, {unordered});")
            for op in ("max", "min")
        ),
        ternary("fma", dtype, lanes, f"return {p}fmadd_{s}(a, b, c);"),
        unary("round", dtype, lanes, f"return {p}round_{s}(a, 8);"),
        unary("floor", dtype, lanes, f"return {p}floor_{s}(a);"),
        unary("sqrt", dtype, lanes, f"return {p}sqrt_{s}(a);"),
    ]
    if dtype == "f32":  # of two operands the second is returned where one is NaN
        out.append(helper("atleast", lanes, f"return {p}max_ps(b, a);"))
        out.append(helper("atmost", lanes, f"return {p}min_ps(b, a);"))
    return out


def _memory(dtype: str, lanes: int) -> list[Fn]:
    """Masked access of 4- and 8-byte lanes touches nothing beyond n lanes."""
    size = BYTES[dtype] * lanes
    p, i, w, t = _P[size], _I[size], 8 * BYTES[dtype], vec(dtype, lanes)
    signed = f"i{w}x{lanes}"
    iota = ", ".join(str(k) for k in range(lanes))
    mask = f"{i} m = ({i})({signed}{{{iota}}} < tw_splat<{signed}>(tw_clamp(b, {lanes}))); "
    ptr = "(const int*)a" if w == 32 else "(const long long*)a"
    load = f"{mask}return ({t}){p}blendv_epi8(({i})c, {p}maskload_epi{w}({ptr}, m), m);"
    store = f"{mask}{p}maskstore_epi{w}({ptr.replace('const ', '')}, m, ({i})c);"
    return [
        Fn("t_load_n", (f"{dtype}*", "i64", t), t, load),
        Fn("t_store_n", (f"{dtype}*", "i64", t), "void", store),
    ]


def _conversions(lanes: int) -> list[Fn]:
    """f32 and i32 to and from everything narrower."""
    p, f, i, w = _P[4 * lanes], f"f32x{lanes}", f"i32x{lanes}", _I[4 * lanes]
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
        out += [
            cast(d, "i32", lanes, f"return ({i}){wide};"),
            cast(d, "f32", lanes, f"return {p}cvtepi32_ps({wide});"),
        ]
    out.append(cast("i32", "f32", lanes, f"return {p}cvtepi32_ps(({w})a);"))
    bits = 32 * lanes
    ordered = f"({w}){p}cmp_ps(a, a, _CMP_ORD_Q)"
    over = f"({w}){p}cmp_ps(a, {p}set1_ps(2147483648.f), _CMP_GE_OQ)"
    # out of range gives INT32_MIN: right below, and flipped to INT32_MAX above
    whole = f"{p}and_si{bits}({p}xor_si{bits}({p}cvtps_epi32(a), {over}), {ordered})"
    out.append(cast("f32", "i32", lanes, f"return ({i}){whole};"))
    for d, top, size in (("i8", 127, b1), ("i16", 32767, b2)):
        low = f"{p}and_si{bits}({p}cvtps_epi32({p}min_ps(a, {p}set1_ps({top}))), {ordered})"
        out += [
            cast("f32", d, lanes, _pack(d, lanes, low, size)),
            cast("i32", d, lanes, _pack(d, lanes, f"({w})a", size)),
        ]
    for d, top, size in (("u8", 255, b1), ("u16", 65535, b2)):
        low = f"{p}cvtps_epi32({p}min_ps({p}max_ps(a, {p}setzero_ps()), {p}set1_ps({top})))"
        out += [
            cast("f32", d, lanes, _pack(d, lanes, low, size)),
            cast("i32", d, lanes, _pack(d, lanes, f"({w})a", size)),
        ]
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
        f"{p}and_si{bits}({p}srli_epi32(u, 16), {p}set1_epi32(1))); "
        f"r = {p}blendv_epi8({p}srli_epi32(r, 16), {p}set1_epi32(0x7fc0), ({w}){p}cmp_ps(a, a, "
        "_CMP_UNORD_Q)); "
    )
    out.append(cast("f32", "bf16", lanes, nearest + narrow_result(f"u16x{lanes}", "tw_packus32(r)", b2)))
    out.append(cast("f16", "f32", lanes, f"return {p}cvtph_ps({narrow_register('a', b2)});"))
    out.append(cast("f32", "f16", lanes, narrow_result(f"u16x{lanes}", f"{p}cvtps_ph(a, 0)", b2)))
    return out


def _pack(dtype: str, lanes: int, text: str, size: int) -> str:
    """i32 lanes to 8 or 16 bits with saturation."""
    if dtype == "u16":
        return narrow_result(vec(dtype, lanes), f"tw_packus32({text})", size)
    half = f"tw_packs32({text})"
    if dtype == "i16":
        return narrow_result(vec(dtype, lanes), half, size)
    pack = "_mm_packus_epi16" if dtype == "u8" else "_mm_packs_epi16"
    return f"__m128i h = {half}; " + narrow_result(vec(dtype, lanes), f"{pack}(h, h)", size)


def table() -> tuple[Fn, ...]:
    """All functions of the level."""
    arithmetic = [f for d in FLOATS for size in (16, 32) for f in _arithmetic(d, size // BYTES[d])]
    memory = [f for d in BYTES if BYTES[d] >= 4 for size in (16, 32) for f in _memory(d, size // BYTES[d])]
    conversions = [f for lanes in (4, 8) for f in _conversions(lanes)]
    tables = [
        pinned("f32", 8, "x"),
        pinned("u8", 32, "x"),
        *(lookups(8 * size, _P[size]) for size in (16, 32)),
    ]
    tables += permutations(256, "_mm256_permutevar8x32_epi32({1}, {0})", ("f32", "i32", "u32"))
    others = (arithmetic, memory, conversions, tables, dots.AVX2.fns)
    return merge(generic.scalars(), math.functions(1), vectors(32), SCALARS, *others)


AVX2 = Target(
    "avx2", 32, 16, ("-mavx2", "-mfma", "-mf16c"), LEVEL_FEATURES["avx2"], dots.AVX2.dots, table(), HEADERS
)
