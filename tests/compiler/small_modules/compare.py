"""Comparisons, logic, choice by masks, casts between all types."""

from __future__ import annotations

import torch

from tests.compiler.small_modules.base import ALL, FLOATS, NAMES, NUMBERS, Case, case, mask, real, x

A, B = x(3, 4, 5), x(4, 1, seed=1)
K = mask(3, 4, 5)

CASES: dict[str, Case] = {
    **{n: case(getattr(torch, n), A, B, of=ALL) for n in ("eq", "ne", "lt", "le", "gt", "ge")},
    "lt of numbers": case(lambda a: (a < 1, a >= 0.5, a == 2), A, of=ALL),
    "eq of two types": case(lambda a, b: (a == b, a < b), A, real(5), of=ALL),
    **{f"logical_{n}": case(getattr(torch, f"logical_{n}"), A, B, of=ALL) for n in ("and", "or", "xor")},
    "where": case(torch.where, K, A, B, of=ALL),
    "where of numbers": case(lambda k, a: (torch.where(k, a, 2), torch.where(k, 1.5, a)), K, A, of=NUMBERS),
    "where of two types": case(torch.where, K, A, real(5), of=ALL),
    "masked_fill": case(lambda a, k: a.masked_fill(k, 2), A, K, of=ALL),
    "masked_fill by a tensor": case(lambda a, k, v: a.masked_fill(k, v), A, mask(4, 5), x(), of=ALL),
    "isclose": case(torch.isclose, A, B, of=FLOATS),
    "isin": case(lambda a: torch.isin(a, a[0, 0]), A, of=NUMBERS),
    "allclose-like": case(lambda a, b: ((a - b).abs() < 1).all(), A, B, of=FLOATS),
    "tril": case(lambda a: (a.tril(), a.triu(1), a.tril(-1)), A, of=ALL),
    **{
        f"_to_copy to {name}": case(lambda a, d=d: a.to(d), x(3, 40, lo=0, hi=9), of=ALL)
        for d, name in NAMES.items()
    },
}
