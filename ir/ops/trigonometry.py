"""Pointwise ops of angles and hyperbolas: tan, the inverse functions, sinh and cosh and their inverses.

Expressions over the scalar primitives, of f32 and f64 alike; the polynomials are those of fdlibm (Sun
Microsystems), exact to an f64. Zeros keep their sign, and what has no value is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.ir.ops.pointwise import pointwise

#: atan(x) = x - x z A(z) with z = x^2, below tan(pi / 8); from the highest power down
_ATAN = (
    1.62858201153657823623e-02, -3.65315727442169155270e-02, 4.97687799461593236017e-02,
    -5.83357013379057348645e-02, 6.66107313738753120669e-02, -7.69187620504482999495e-02,
    9.09088713343650656196e-02, -1.11111104054623557880e-01, 1.42857142725034663711e-01,
    -1.99999999998764832476e-01, 3.33333333333329318027e-01,
)  # fmt: skip
#: asin(x) = x + x z P(z) / Q(z) with z = x^2, below 1/2
_ASIN_P = (
    3.47933107596021167570e-05, 7.91534994289814532176e-04, -4.00555345006794114027e-02,
    2.01212532134862925881e-01, -3.25565818622400915405e-01, 1.66666666666666657415e-01,
)  # fmt: skip
_ASIN_Q = (
    7.70381505559019352791e-02, -6.88283971605453293030e-01, 2.02094576023350569471e00,
    -2.40339491173441421878e00, 1.0,
)  # fmt: skip
#: sinh(x) = x + x z S(z) with z = x^2, below 1
_SINH = {"f64": 9, "f32": 5}
#: what half pi leaves out, by element type
_REST = {"f64": 6.123233995736766e-17, "f32": -4.371139000186241e-08}
#: above it the square of an f32 is far from overflow, and 1 is nothing beside it in an f64
_HUGE = 1e10


def _polynomial(p: Any, x: Any, coefficients: Sequence[float]) -> Any:
    first, *rest = coefficients
    out = p.const(first)
    for c in rest:
        out = p.fma(out, x, p.const(c))
    return out


def _wide(p: Any) -> str:
    """The element type in which an expression is computed: narrow floats compute as f32."""
    return "f64" if p.dtype == "f64" else "f32"


def _from_half_pi(p: Any, x: Any) -> Any:
    """pi / 2 - x, whose constant is exact to twice its digits."""
    return p.add(p.sub(p.const(math.pi / 2), x), p.const(_REST[_wide(p)]))


def _both(p: Any, a: Any, b: Any) -> Any:
    return getattr(p, "and")(a, b)


def _either(p: Any, a: Any, b: Any) -> Any:
    return getattr(p, "or")(a, b)


def _signed(p: Any, x: Any, size: Any) -> Any:
    """An odd function of |x| as one of x; a zero stays the zero that it is."""
    zero = p.const(0.0)
    return p.select(p.lt(x, zero), p.neg(size), p.select(p.eq(x, zero), x, size))


# ------------------------------------------------------------------ circles
def _atan_unit(p: Any, t: Any) -> Any:
    """atan of 0 … 1: above tan(pi / 8), pi / 4 + atan((t - 1) / (t + 1))."""
    one = p.const(1.0)
    far = p.lt(p.const(math.sqrt(2.0) - 1.0), t)
    u = p.select(far, p.div(p.sub(t, one), p.add(t, one)), t)
    z = p.mul(u, u)
    y = p.sub(u, p.mul(p.mul(u, z), _polynomial(p, z, _ATAN)))
    return p.select(far, p.add(p.const(math.pi / 4), y), y)


def _atan(p: Any, x: Any) -> Any:
    a, one = p.abs(x), p.const(1.0)
    far = p.lt(one, a)
    y = _atan_unit(p, p.select(far, p.div(one, a), a))
    return _signed(p, x, p.select(far, _from_half_pi(p, y), y))


def _atan2(p: Any, y: Any, x: Any) -> Any:
    """The angle of (x, y): of zeros and infinities by their signs, as in C."""
    a, b, zero, one = p.abs(x), p.abs(y), p.const(0.0), p.const(1.0)
    small, large = p.min(a, b), p.max(a, b)
    even = p.eq(small, large)  # both zero, or both infinite
    ratio = p.div(small, p.select(p.eq(large, zero), one, large))
    r = _atan_unit(p, p.select(_both(p, even, p.lt(zero, large)), one, ratio))
    r = p.select(p.lt(a, b), _from_half_pi(p, r), r)
    behind = p.add(p.sub(p.const(math.pi), r), p.const(2 * _REST[_wide(p)]))
    r = p.select(_is_negative(p, x), behind, r)
    return p.select(_is_negative(p, y), p.neg(r), r)


def _is_negative(p: Any, x: Any) -> Any:
    """The sign, of zeros too."""
    zero = p.const(0.0)
    return _either(p, p.lt(x, zero), _both(p, p.eq(x, zero), p.lt(p.div(p.const(1.0), x), zero)))


def _asin_part(p: Any, z: Any) -> Any:
    return p.mul(z, p.div(_polynomial(p, z, _ASIN_P), _polynomial(p, z, _ASIN_Q)))


def _arc_parts(p: Any, x: Any) -> tuple[Any, Any, Any]:
    """Whether |x| is below 1/2; the arc there, asin |x|; the arc beyond, 2 asin(sqrt((1 - |x|) / 2)), which
    is what is left to pi / 2."""
    a, half = p.abs(x), p.const(0.5)
    near = p.lt(a, half)
    rest = p.mul(half, p.sub(p.const(1.0), a))
    size = p.select(near, a, p.sqrt(rest))
    arc = p.fma(size, _asin_part(p, p.select(near, p.mul(a, a), rest)), size)
    return near, arc, p.add(arc, arc)


def _asin(p: Any, x: Any) -> Any:
    near, arc, left = _arc_parts(p, x)
    return _signed(p, x, p.select(near, arc, _from_half_pi(p, left)))


def _acos(p: Any, x: Any) -> Any:
    near, arc, left = _arc_parts(p, x)
    negative = p.lt(x, p.const(0.0))
    behind = p.add(p.sub(p.const(math.pi), left), p.const(2 * _REST[_wide(p)]))
    inner = _from_half_pi(p, p.select(negative, p.neg(arc), arc))
    return p.select(near, inner, p.select(negative, behind, left))


# ------------------------------------------------------------------ hyperbolas
def _half_exp(p: Any, a: Any) -> Any:
    """exp(a) / 2, which is finite a little beyond the range of exp."""
    root = p.exp(p.mul(p.const(0.5), a))
    far = p.lt(p.const(709.0 if _wide(p) == "f64" else 88.0), a)
    half = p.const(0.5)
    return p.select(far, p.mul(p.mul(half, root), root), p.mul(half, p.exp(a)))


def _sinh(p: Any, x: Any) -> Any:
    a = p.abs(x)
    e, z = _half_exp(p, a), p.mul(a, a)
    series = [1 / math.factorial(2 * k + 1) for k in range(_SINH[_wide(p)], 0, -1)]
    near = p.fma(p.mul(a, z), _polynomial(p, z, series), a)
    return _signed(p, x, p.select(p.lt(a, p.const(1.0)), near, p.sub(e, p.div(p.const(0.25), e))))


def _cosh(p: Any, x: Any) -> Any:
    e = _half_exp(p, p.abs(x))
    return p.add(e, p.div(p.const(0.25), e))


def _log1p(p: Any, x: Any) -> Any:
    """log(u) (x / (u - 1)) with u = 1 + x, exact where u rounds to 1; of infinity, infinity."""
    one = p.const(1.0)
    u = p.add(one, x)
    tiny = _either(p, p.eq(u, one), p.eq(x, p.const(math.inf)))
    gap = p.select(tiny, one, p.sub(u, one))
    return p.select(tiny, x, p.mul(p.log(u), p.div(x, gap)))


def _large_log(p: Any, x: Any, log: Any) -> Any:
    """log(2 x) where 1 is nothing beside x^2."""
    return p.select(p.lt(p.const(_HUGE), x), p.add(p.log(x), p.const(math.log(2))), log)


def _asinh(p: Any, x: Any) -> Any:
    a, one = p.abs(x), p.const(1.0)
    near = p.min(a, p.const(_HUGE))
    z = p.mul(near, near)
    inner = p.add(near, p.div(z, p.add(one, p.sqrt(p.add(one, z)))))
    return _signed(p, x, _large_log(p, a, _log1p(p, inner)))


def _acosh(p: Any, x: Any) -> Any:
    one = p.const(1.0)
    t = p.sub(p.min(x, p.const(_HUGE)), one)
    near = _log1p(p, p.add(t, p.sqrt(p.fma(t, t, p.add(t, t)))))
    return p.select(p.lt(x, one), p.const(math.nan), _large_log(p, x, near))


def _atanh(p: Any, x: Any) -> Any:
    a = p.abs(x)
    double = p.div(p.add(a, a), p.sub(p.const(1.0), a))
    return _signed(p, x, p.mul(p.const(0.5), _log1p(p, double)))


pointwise("tan", 1, lambda p, x: p.div(p.sin(x), p.cos(x)))
pointwise("asin", 1, _asin)
pointwise("acos", 1, _acos)
pointwise("atan", 1, _atan)
pointwise("atan2", 2, _atan2, doc="the angle of the point (b, a) from the first axis")
pointwise("sinh", 1, _sinh)
pointwise("cosh", 1, _cosh)
pointwise("asinh", 1, _asinh)
pointwise("acosh", 1, _acosh)
pointwise("atanh", 1, _atanh)
