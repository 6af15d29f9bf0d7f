"""exp, log, sin, cos and erf of f32: one text for scalars and every vector width, so all give identical bits.

Built from `t_fma`, operators and integer arithmetic on the bits. Levels with a fused multiply-add agree bit
for bit; `baseline` rounds its products and stays inside the same error bounds.

Errors over the whole range: exp and log 2 ulp; sin and cos 2e-7, those of the system's library beyond
|x| of 1e6; erf 2e-7.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.backends.cpp.isa.make import unary
from tilewright.backends.cpp.target import Fn

#: 2^n * p(r) with x = n ln2 + r; n comes from adding 1.5 * 2^23
_EXP = """
    a = t_atmost(t_atleast(a, S(-104.f)), S(89.f));
    V n = t_fma(a, S(1.44269504f), S(12582912.f)) - 12582912.f;
    V r = t_fma(n, S(-0.693359375f), a); r = t_fma(n, S(2.12194440e-4f), r);
    V p = {poly};
    return t_ldexp(t_fma(p * r, r, r) + 1.f, n);"""

#: x = 2^e * m with m in [sqrt(1/2), sqrt(2)); denormals are scaled up first
_LOG = """
    V x = a < 1.17549435e-38f ? a * 8388608.f : a;
    I d = tw_as<I>(x) - 0x3f3504f3, e = d >> 23;
    V m = tw_as<V>((d & 0x7fffff) + 0x3f3504f3) - 1.f;
    V n = tw_to<V>(e) - (a < 1.17549435e-38f ? S(23.f) : S(0.f));
    V z = m * m, p = {poly};
    V y = t_fma(n, S(-2.12194440e-4f), p * m * z); y = t_fma(S(-0.5f), z, y);
    V r = t_fma(n, S(0.693359375f), m + y);
    r = a < __builtin_inff() ? r : a;
    r = a == 0.f ? S(-__builtin_inff()) : r;
    return a < 0.f ? S(__builtin_nanf("")) : r;"""

#: quarter turns of pi/2 in three parts, each product exact inside the fused operation
_TURN_FUSED = """
    V t = t_fma(a, S(0.636619772f), S(12582912.f)), n = t - 12582912.f;
    V r = t_fma(n, S(-1.57079637e+00f), a); r = t_fma(n, S(4.37113883e-08f), r); \
r = t_fma(n, S(1.71512451e-15f), r);
    I q = tw_as<I>(t);"""
#: the same in double precision for levels without a fused operation (scalars)
_TURN_DOUBLE = """
    V t = a * 0.636619772f + 12582912.f, n = t - 12582912.f;
    V r = (V)((double)a - (double)n * 1.5707963267948966);
    I q = tw_as<I>(t);"""
_SINCOS = """
    V z = r * r;
    V s = t_fma(r * z, {sin}, r);
    V c = t_fma(z * z, {cos}, t_fma(z, S(-0.5f), S(1.f)));
    V y = ({shift} & 1) == 0 ? s : c;
    y = tw_as<V>(tw_as<I>(y) ^ (({shift} & 2) << 30));
    {far}
    return y;"""

#: njuffa's approximation: odd polynomial near 0, 1 - exp(polynomial) beyond
_ERF = """
    V t = t_abs(a), s = a * a;
    t = t > 4.f ? S(4.f) : t;
    V w = t * t;
    V r = t_fma(S(-1.72853470e-5f), t, S(3.83197126e-4f)), \
u = t_fma(S(-3.88396438e-3f), t, S(2.42546219e-2f));
    r = t_fma(r, w, u);
    r = {far};
    r = t_fma(r, t, -t);
    r = 1.f - t_exp(r);
    r = tw_as<V>(tw_as<I>(r) | (tw_as<I>(a) & (I)S_SIGN));
    V p = {near};
    p = t_fma(p, a, a);
    return t_abs(a) > 0.927734375f ? r : p;"""

_EXP_POLY = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_LOG_POLY = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_SIN_POLY = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COS_POLY = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_ERF_FAR = (-1.06777877e-1, -6.34846687e-1, -1.28717512e-1)
_ERF_NEAR = (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1)


def _horner(coefficients: Sequence[float], x: str, start: str = "") -> str:
    """The polynomial in `x`, highest power first; `start` stands in for the leading value."""
    text = start
    for c in coefficients:
        text = f"t_fma({text}, {x}, S({c!r}f))" if text else f"S({c!r}f)"
    return text


def _spell(text: str, lanes: int) -> str:
    v, i = ("float", "int32_t") if lanes == 1 else (f"f32x{lanes}", f"i32x{lanes}")
    head = f"typedef {v} V; typedef {i} I; "
    body = text.replace("(I)S_SIGN", "tw_splat<I>(INT32_MIN)").replace("S(", "tw_splat<V>(")
    return head + " ".join(body.split())


def functions(lanes: int, fused: bool = True) -> list[Fn]:
    """The functions for one width. Without a fused operation sin and cos exist for scalars only."""
    turn = _TURN_FUSED if fused else _TURN_DOUBLE
    sincos = {"sin": _horner(_SIN_POLY, "z"), "cos": _horner(_COS_POLY, "z")}
    texts = {
        "exp": _EXP.format(poly=_horner(_EXP_POLY, "r")),
        "log": _LOG.format(poly=_horner(_LOG_POLY, "m")),
    }
    if fused or lanes == 1:
        for op, shift in (("sin", "q"), ("cos", "(q + 1)")):
            texts[op] = turn + _SINCOS.format(**sincos, shift=shift, far=_far(op, lanes))
    texts["erf"] = _ERF.format(far=_horner(_ERF_FAR, "t", "r"), near=_horner(_ERF_NEAR, "s"))
    out = [unary(op, "f32", lanes, _spell(text, lanes)) for op, text in texts.items()]
    return out + [unary(op, "f32", lanes, _lanewise(op, lanes)) for op in ("sin", "cos") if op not in texts]


def _far(op: str, lanes: int) -> str:
    """Beyond a million the quarter turns have too few bits: the system's function, for the few lanes that ask
    for it."""
    if lanes == 1:
        return f"if (t_abs(a) > 1e6f) y = __builtin_{op}f(a);"
    return (
        f"I far = t_abs(a) > S(1e6f); int32_t any = 0; for (int k = 0; k < {lanes}; ++k) any |= far[k]; "
        f"if (__builtin_expect(any, 0)) for (int k = 0; k < {lanes}; ++k) if (far[k]) y[k] = "
        f"__builtin_{op}f(a[k]);"
    )


def _lanewise(op: str, lanes: int) -> str:
    return f"return f32x{lanes}{{{', '.join(f't_{op}(a[{k}])' for k in range(lanes))}}};"
