"""Two operands: arithmetic with broadcasting, promotion of types, division, bits, powers."""

from __future__ import annotations

import torch

from tests.compiler.small_modules.base import (
    ALL,
    BOOL,
    F32,
    F64,
    FLOATS,
    I16,
    INTS,
    NUMBERS,
    U8,
    Case,
    Maker,
    case,
    real,
    x,
)

A, B = x(3, 4, 5, lo=-9, hi=9), x(4, 1, lo=-5, hi=5, seed=1)
#: divisors that are not 0
D: Maker = x(4, 1, lo=1, hi=5, seed=2)
BITS = (*INTS, BOOL)


def negative(d: Maker) -> Maker:
    return lambda dtype: d(dtype) if dtype in (U8, BOOL) else -d(dtype)


CASES: dict[str, Case] = {
    **{n: case(getattr(torch, n), A, B, of=ALL) for n in ("add", "mul", "maximum", "minimum")},
    "sub": case(torch.sub, A, B, of=NUMBERS),
    "rsub": case(lambda a: torch.rsub(a, 3), A, of=NUMBERS),
    "add with a factor": case(lambda a, b: torch.add(a, b, alpha=2), A, B, of=NUMBERS),
    "add of numbers": case(lambda a: (a + 2, a + 2.5, a * True, 3 - a), A, of=NUMBERS),
    "add of two types": case(torch.add, A, real(5), of=ALL),
    "mul of a scalar tensor": case(lambda a, b: a * b, A, x(), of=NUMBERS),
    "div": case(torch.div, A, D, of=NUMBERS),
    "div rounded down": case(lambda a, b: torch.div(a, b, rounding_mode="floor"), A, D, of=NUMBERS),
    "div cut off": case(lambda a, b: torch.div(a, b, rounding_mode="trunc"), A, D, of=NUMBERS),
    "floor_divide": case(torch.floor_divide, A, negative(D), of=NUMBERS),
    "remainder": case(torch.remainder, A, negative(D), of=NUMBERS),
    "fmod": case(torch.fmod, A, negative(D), of=NUMBERS),
    "pow": case(torch.pow, x(3, 4, lo=0.2, hi=3), x(4, lo=-2, hi=3)),
    "pow of integers": case(torch.pow, x(3, 4, lo=-3, hi=3), x(4, lo=0, hi=6), of=INTS),
    "atan2": case(torch.atan2, A, B, of=NUMBERS),
    "hypot": case(torch.hypot, A, B, of=FLOATS),
    "logaddexp": case(torch.logaddexp, A, B, of=(F32, F64)),
    "xlogy": case(torch.xlogy, x(3, 4, lo=0, hi=2), x(4, lo=0.1, hi=3)),
    "copysign": case(torch.copysign, A, B, of=FLOATS),
    "heaviside": case(torch.heaviside, A, B, of=NUMBERS),
    "lerp": case(lambda a, b: torch.lerp(a, b, 0.3), A, B),
    "lerp by a tensor": case(torch.lerp, A, B, x(5, lo=0, hi=1)),
    "addcmul": case(lambda a, b, c: torch.addcmul(a, b, c, value=0.5), A, B, x(5)),
    "addcdiv": case(lambda a, b, c: torch.addcdiv(a, b, c, value=0.5), A, B, x(5, lo=1, hi=2)),
    **{f"bitwise_{n}": case(getattr(torch, f"bitwise_{n}"), A, B, of=BITS) for n in ("and", "or", "xor")},
    "bitwise_left_shift": case(torch.bitwise_left_shift, A, x(5, lo=0, hi=4), of=INTS),
    "bitwise_right_shift": case(torch.bitwise_right_shift, A, x(5, lo=0, hi=4), of=INTS),
    "bitwise_right_shift beyond": case(lambda a: (a >> 40, a << 40), A, of=INTS),
    "fmax": case(torch.fmax, A, B, of=FLOATS),
    "fmin": case(torch.fmin, A, B, of=FLOATS),
    "gcd": case(torch.gcd, A, B, of=INTS, refused="aten.gcd.default"),
    "nextafter": case(torch.nextafter, A, B, of=(F32,), refused="aten.nextafter.default"),
    "add overflows": case(lambda a: a * a * a * a * a, x(64, lo=100, hi=120), of=(*INTS[:2], I16)),
}
