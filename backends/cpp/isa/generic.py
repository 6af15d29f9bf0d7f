"""Functions in plain C++17 for scalars of every dtype and, where the syntax allows it, for GCC/Clang vectors.

Used by every level; a level's own table replaces what it can do in fewer instructions.
"""

from __future__ import annotations

import numpy as np

from tilewright.backends.cpp.isa.make import (
    ALL,
    FLOATS,
    INTS,
    NARROW,
    binary,
    cast,
    compare_meaning,
    elementwise_meaning,
    mask,
    ternary,
    unary,
    vec,
)
from tilewright.backends.cpp.target import BYTES, CTYPE, Array, Fn
from tilewright.ir.numbers import int_range

#: result is the operator itself; integers wrap around because libraries are built with -fwrapv
_OPERATORS = {"add": "+", "sub": "-", "mul": "*"}
_BITWISE = {"and": "&", "or": "|", "xor": "^"}
_COMPARES = {"lt": "<", "le": "<=", "eq": "==", "ne": "!="}
#: NaN in either operand gives NaN, as in NumPy
_ORDER = {"max": "return (a > b) | (a != a) ? a : b;", "min": "return (a < b) | (a != a) ? a : b;"}
_MAGIC = {"f32": "8388608.f", "f64": "4503599627370496."}  # 2^23, 2^52: adding it rounds to an integer


def _signed(dtype: str, lanes: int) -> str:
    bits = vec(f"i{8 * BYTES[dtype]}", lanes)
    return CTYPE[bits] if lanes == 1 else bits


def _ctype(dtype: str, lanes: int) -> str:
    return CTYPE[dtype] if lanes == 1 else vec(dtype, lanes)


def floats(dtype: str, lanes: int) -> list[Fn]:
    """Arithmetic of f32 and f64, scalar or vector."""
    v, i, m = _ctype(dtype, lanes), _signed(dtype, lanes), _MAGIC[dtype]
    top = "0x7fffffff" if dtype == "f32" else "0x7fffffffffffffffll"
    copy = f"tw_as<{v}>(tw_as<{i}>(r) | (tw_as<{i}>(a) & ~tw_splat<{i}>({top})))"
    round_ = f"{v} k = t_abs(a), r = (k + {m}) - {m}; r = {copy}; return k < {m} ? r : a;"
    floor = (
        f"{v} r = t_round(a); r = r - (r > a ? tw_splat<{v}>(1) : tw_splat<{v}>(0)); r = {copy}; return r;"
    )
    out = [binary(op, dtype, lanes, f"return a {sign} b;") for op, sign in {**_OPERATORS, "div": "/"}.items()]
    out += [binary(op, dtype, lanes, text) for op, text in _ORDER.items()]
    out.append(ternary("fma", dtype, lanes, "return a * b + c;"))
    out.append(unary("neg", dtype, lanes, "return -a;"))
    out.append(unary("abs", dtype, lanes, f"return tw_as<{v}>(tw_as<{i}>(a) & tw_splat<{i}>({top}));"))
    out += [unary("round", dtype, lanes, round_), unary("floor", dtype, lanes, floor)]
    if lanes == 1:
        out.append(unary("sqrt", dtype, 1, "return __builtin_sqrt%s(a);" % ("f" if dtype == "f32" else "")))
        out.append(
            binary("rem", dtype, 1, "return __builtin_fmod%s(a, b);" % ("f" if dtype == "f32" else ""))
        )
    else:
        out.append(
            unary(
                "sqrt", dtype, lanes, f"return {v}{{{', '.join(f't_sqrt(a[{k}])' for k in range(lanes))}}};"
            )
        )
    out.append(unary("rsqrt", dtype, lanes, f"return tw_splat<{v}>(1) / t_sqrt(a);"))
    out += helpers(lanes) if dtype == "f32" else []
    if lanes == 1 and dtype == "f64":
        out += [
            unary(op, dtype, 1, f"return __builtin_{op}(a);") for op in ("exp", "log", "sin", "cos", "erf")
        ]
    return out


def helpers(lanes: int) -> list[Fn]:
    """What the f32 approximations need: bounds that keep NaN, and a * 2^b for whole b from -252 to 254,
    rounded once (2^b is split in two factors, of which the first product is exact)."""
    t, v, i = vec("f32", lanes), _ctype("f32", lanes), _signed("f32", lanes)
    scale = (
        f"{i} k = tw_to<{i}>(b), h = k >> 1; return a * tw_as<{v}>((h + 127) << 23) * tw_as<{v}>((k - "
        "h + 127) << 23);"
    )
    return [
        Fn("t_atleast", (t, t), t, "return a < b ? b : a;", _atleast),
        Fn("t_atmost", (t, t), t, "return a > b ? b : a;", _atmost),
        Fn("t_ldexp", (t, t), t, scale, _ldexp),
    ]


def _atleast(a: Array, b: Array) -> Array:
    return np.where(a < b, b, a)


def _atmost(a: Array, b: Array) -> Array:
    return np.where(a > b, b, a)


def _ldexp(a: Array, b: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.ldexp(a.astype(np.float64), b.astype(np.int32)).astype(np.float32)


def integers(dtype: str, lanes: int) -> list[Fn]:
    """Arithmetic of integers; shifts by the width or more give 0 (or the sign), division by 0 gives 0."""
    v, bits, signed = _ctype(dtype, lanes), 8 * BYTES[dtype], dtype[0] == "i"
    out = [
        binary(op, dtype, lanes, f"return ({v})(a {sign} b);")
        for op, sign in {**_OPERATORS, **_BITWISE}.items()
    ]
    out += [
        binary("max", dtype, lanes, "return a > b ? a : b;"),
        binary("min", dtype, lanes, "return a < b ? a : b;"),
    ]
    out += [unary("neg", dtype, lanes, f"return ({v})-a;"), unary("not", dtype, lanes, f"return ({v})~a;")]
    out.append(unary("abs", dtype, lanes, f"return a < 0 ? ({v})-a : a;" if signed else "return a;"))
    out.append(ternary("fma", dtype, lanes, f"return ({v})(a * b + c);"))
    if lanes == 1:
        beyond = "(a < 0 ? -1 : 0)" if signed else "0"
        guard = f"(uint64_t)b < {bits}"
        wide = "uint64_t" if bits == 64 else "uint32_t"
        out.append(binary("shl", dtype, 1, f"return {guard} ? ({v})(({wide})a << b) : ({v})0;"))
        out.append(binary("shr", dtype, 1, f"return {guard} ? ({v})(a >> b) : ({v}){beyond};"))
        minus = f"b == ({v})-1 ? ({v})-a : " if signed else ""
        out.append(binary("div", dtype, 1, f"return b == 0 ? ({v})0 : {minus}({v})(a / b);"))
        zero = f"b == ({v})-1 ? ({v})0 : " if signed else ""
        out.append(binary("rem", dtype, 1, f"return b == 0 ? a : {zero}({v})(a % b);"))
    return out


def compares(dtype: str, lanes: int) -> list[Fn]:
    """Comparisons, and selection by their masks."""
    t, m = vec(dtype, lanes), mask(dtype, lanes)
    out = [
        Fn(f"t_{op}", (t, t), m, f"return a {sign} b;", compare_meaning(op, m))
        for op, sign in _COMPARES.items()
    ]
    return [*out, Fn("t_select", (m, t, t), t, "return a ? b : c;", elementwise_meaning("select", dtype))]


def booleans(lanes: int) -> list[Fn]:
    """bool is held as bytes 0 and 1."""
    t = vec("bool", lanes)
    out = [binary(op, "bool", lanes, f"return a {sign} b;") for op, sign in _BITWISE.items()]
    out.append(unary("not", "bool", lanes, "return a ^ 1;"))
    out += [binary("max", "bool", lanes, "return a | b;"), binary("min", "bool", lanes, "return a & b;")]
    if lanes == 1:
        texts = {"lt": "a < b", "le": "a <= b", "eq": "a == b", "ne": "a != b"}
        out += [
            Fn(f"t_{op}", (t, t), "bool", f"return {x};", compare_meaning(op, "bool"))
            for op, x in texts.items()
        ]
        out.append(Fn("t_select", (t, t, t), t, "return a ? b : c;", elementwise_meaning("select", "bool")))
    return out


def _from_bf16(lanes: int) -> str:
    u, f = ("uint32_t", "float") if lanes == 1 else (vec("u32", lanes), vec("f32", lanes))
    return f"return tw_as<{f}>(tw_to<{u}>(a) << 16);"


def _to_bf16(lanes: int) -> str:
    u, h = ("uint32_t", "uint16_t") if lanes == 1 else (vec("u32", lanes), vec("u16", lanes))
    return (
        f"{u} u = tw_as<{u}>(a); u = (u + 0x7fff + ((u >> 16) & 1)) >> 16; return tw_to<{h}>(a == a ? u "
        f": tw_splat<{u}>(0x7fc0));"
    )


def _from_f16(lanes: int) -> str:
    """Exponent and mantissa move in place, a multiplication by 2^112 corrects the exponent and normalises
    denormals."""
    u, f = ("uint32_t", "float") if lanes == 1 else (vec("u32", lanes), vec("f32", lanes))
    return (
        f"{u} u = tw_to<{u}>(a), s = (u & 0x8000) << 16, e = (u & 0x7fff) << 13; "
        f"{f} r = tw_as<{f}>(e) * 5.192296858534828e33f; "
        f"{u} x = e >= 0x0f800000 ? (e | 0x7f800000) : tw_as<{u}>(r); return tw_as<{f}>(x | s);"
    )


def _to_f16(lanes: int) -> str:
    """Normal results round in the integer domain; results below 2^-14 are rounded by adding 0.5, whose last
    place is theirs."""
    u, f, h = (
        ("uint32_t", "float", "uint16_t")
        if lanes == 1
        else (vec("u32", lanes), vec("f32", lanes), vec("u16", lanes))
    )
    return (
        f"{u} u = tw_as<{u}>(a), s = (u >> 16) & 0x8000; u &= 0x7fffffff; "
        f"{u} n = (u - 0x38000000 + 0xfff + ((u >> 13) & 1)) >> 13, d = tw_as<{u}>(tw_as<{f}>(u) + 0.5f) - "
        "0x3f000000; "
        f"{u} r = u < 0x38800000 ? d : n; r = r > 0x7c00 ? tw_splat<{u}>(0x7c00) : r; "
        f"return tw_to<{h}>((u > 0x7f800000 ? tw_splat<{u}>(0x7e00) : r) | s);"
    )


def narrow_casts(lanes: int) -> list[Fn]:
    """bf16 and f16 to and from f32."""
    return [
        cast("bf16", "f32", lanes, _from_bf16(lanes)), cast("f32", "bf16", lanes, _to_bf16(lanes)),
        cast("f16", "f32", lanes, _from_f16(lanes)), cast("f32", "f16", lanes, _to_f16(lanes)),
    ]  # fmt: skip


def _float_to_int(source: str, dtype: str) -> str:
    """Round to nearest even, saturate, NaN gives 0. The limits are powers of two: exact in both float
    types."""
    lo, hi = int_range(dtype)
    suffix = "f" if source == "f32" else ""
    c, top, low = CTYPE[dtype], f"{float(hi + 1)!r}{suffix}", f"{float(lo)!r}{suffix}"
    hi_text = f"({c}){hi}" + ("ll" if dtype == "i64" else "u" if dtype == "u32" else "")
    lo_text = "INT64_MIN" if dtype == "i64" else f"({c}){lo}"
    return (
        f"a = t_round(a); return a >= {top} ? {hi_text} : a <= {low} ? {lo_text} : a == a ? ({c})a : ({c})0;"
    )


def _int_to_int(source: str, dtype: str) -> str:
    (lo, hi), (slo, shi), c = int_range(dtype), int_range(source), CTYPE[dtype]
    text = f"({c})a"
    if shi > hi:
        text = f"a > {hi}{'u' if dtype == 'u32' else ''} ? ({c}){hi}{'u' if dtype == 'u32' else ''} : {text}"
    if slo < lo:
        text = (
            f"a < {lo} ? ({c}){lo} : {text}"
            if lo == 0 or dtype != "i32"
            else f"a < INT32_MIN ? INT32_MIN : {text}"
        )
    return f"return {text};"


def scalar_casts() -> list[Fn]:
    """Every dtype to every other one."""
    out = [cast("f32", "f64", 1, "return a;"), cast("f64", "f32", 1, "return (float)a;"), *narrow_casts(1)]
    out += [cast(s, d, 1, _float_to_int(s, d)) for s in FLOATS for d in INTS]
    out += [cast(s, d, 1, f"return ({CTYPE[d]})a;") for s in (*INTS, "bool") for d in FLOATS]
    out += [cast(s, d, 1, _int_to_int(s, d)) for s in INTS for d in INTS if s != d]
    out += [cast("bool", d, 1, f"return ({CTYPE[d]})a;") for d in INTS]
    out += [cast(s, "bool", 1, "return a != 0;") for s in (*FLOATS, *INTS)]
    out += [cast(s, "bool", 1, "return (a & 0x7fff) != 0;") for s in NARROW]
    out += [cast(s, d, 1, f"return t_cvt_{d}(t_cvt_f32_{s}(a));") for s in NARROW for d in (*INTS, "f64")]
    out += [cast("f64", d, 1, f"return t_cvt_{d}((float)a);") for d in NARROW]
    out += [cast(s, d, 1, f"return t_cvt_{d}((float)a);") for s in (*INTS, "bool") for d in NARROW]
    out += [
        cast(s, d, 1, f"return t_cvt_{d}(t_cvt_f32_{s}(a));") for s, d in (("bf16", "f16"), ("f16", "bf16"))
    ]
    return out


def bitcasts(lanes: int) -> list[Fn]:
    """The same bits as another dtype of the same width: `t_bits_D`."""
    pairs = [(s, d) for s in ALL for d in ALL if s != d and BYTES[s] == BYTES[d] and "bool" not in (s, d)]
    return [
        Fn(f"t_bits_{d}", (vec(s, lanes),), vec(d, lanes), f"return tw_as<{_ctype(d, lanes)}>(a);")
        for s, d in pairs
    ]


def scalars() -> list[Fn]:
    """Every primitive on scalars of every dtype, but the transcendental functions of f32 (`math`)."""
    out = [f for d in FLOATS for f in floats(d, 1)] + [f for d in INTS for f in integers(d, 1)]
    return [
        *out,
        *booleans(1),
        *(f for d in (*FLOATS, *INTS) for f in compares(d, 1)),
        *scalar_casts(),
        *bitcasts(1),
    ]
