"""Functions of one operand, each over the range where it has values, and over edges."""

from __future__ import annotations

import math

import torch

from tests.compiler.small_modules.base import ALL, FLOATS, INTS, NUMBERS, Case, case, fixed, x

M = x(3, 4, 5)
#: infinities, NaN, zeros of both signs, denormals
EDGES = fixed(0.0, -0.0, 1e-40, -1e-40, 1.0, -1.0, 0.5, -0.5, 88.0, -88.0, 1e10, -1e10, 3.4e38, -3.4e38,
              math.inf, -math.inf, math.nan)  # fmt: skip
_WIDE = ("exp", "exp2", "expm1", "sin", "cos", "tan", "tanh", "sinh", "cosh", "asinh", "atan", "erf",
         "sigmoid")  # fmt: skip
_UNIT = ("asin", "acos", "atanh")
_POSITIVE = ("log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal")
_EXACT = ("neg", "abs", "sign", "square", "floor", "ceil", "round", "trunc", "isnan", "isinf", "isfinite",
          "logical_not")  # fmt: skip

CASES: dict[str, Case] = {
    **{n: case(getattr(torch, n), M, of=ALL) for n in _WIDE},
    **{n: case(getattr(torch, n), x(3, 4, 5, lo=-1, hi=1), of=ALL) for n in _UNIT},
    "acosh": case(torch.acosh, x(3, 4, 5, lo=1, hi=9), of=NUMBERS),
    **{n: case(getattr(torch, n), x(3, 4, 5, lo=0.1, hi=9), of=NUMBERS) for n in _POSITIVE},
    **{n: case(getattr(torch, n), M, of=NUMBERS) for n in _EXACT},
    "erfc": case(torch.erfc, M, of=FLOATS[:1], refused="aten.erfc.default"),
    "frac": case(torch.frac, M),
    "logit": case(torch.logit, x(3, 4, lo=0.01, hi=0.99)),
    "sinc": case(torch.sinc, M),
    "deg2rad": case(torch.deg2rad, M),
    "signbit": case(torch.signbit, M, of=NUMBERS),
    "bitwise_not": case(torch.bitwise_not, M, of=(*INTS, torch.bool)),
    "round decimals": case(lambda a: torch.round(a, decimals=1), M, of=FLOATS[:1]),
    "nan_to_num": case(lambda a: torch.nan_to_num(a, 1.5, 2.5, -2.5), EDGES, of=FLOATS[:1]),
    **{
        f"{n} of edges": case(getattr(torch, n), EDGES, of=FLOATS[:1])
        for n in (*_WIDE, *_UNIT, "acosh", *_POSITIVE, *_EXACT)
    },
    "sin of large numbers": case(torch.sin, x(64, lo=-1e6, hi=1e6), of=FLOATS[:2]),
    "clamp": case(lambda a: (a.clamp(0, 2), a.clamp(min=1), a.clamp(max=1)), M, of=NUMBERS),
    "clamp by tensors": case(torch.clamp, M, x(4, 1, lo=-2, hi=0), x(5, lo=1, hi=2), of=NUMBERS),
    "pow of constants": case(lambda a: (a**2, a**3, a**0, a**5), M, of=NUMBERS),
    "pow of fractions": case(lambda a: (a**0.5, a**-1, a**-0.5, a**1.7), x(3, 4, lo=0.1, hi=4)),
    "pow of a constant base": case(lambda a: 2**a, x(3, 4)),
    "copy": case(lambda a: (a.clone(), a.detach() + 0, a.contiguous()), M, of=ALL),
    "in place": case(lambda a: (a * 1).add_(1).mul_(2), M, of=NUMBERS),
}
