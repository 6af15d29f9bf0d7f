"""Running sums and products, sorting, the k largest."""

from __future__ import annotations

import math

import torch

from tests.compiler.small_modules.base import F32, F64, INTS, NUMBERS, Case, case, fixed, x

A = x(3, 5, 4)
TIES = x(3, 37, lo=-2, hi=2)
ODD = fixed(2.0, math.nan, -0.0, 0.0, math.inf, -math.inf, math.nan, 2.0, -1.0)


def sorted_values(a: torch.Tensor, dim: int, descending: bool) -> tuple[torch.Tensor, ...]:
    return tuple(torch.sort(a, dim=dim, descending=descending, stable=True))


CASES: dict[str, Case] = {
    "cumsum": case(lambda a: (a.cumsum(0), a.cumsum(1), a.cumsum(-1)), A, of=NUMBERS),
    "cumsum of truths": case(lambda a: (a > 0).cumsum(1), A, of=NUMBERS),
    "cumsum of long rows": case(lambda a: a.cumsum(-1), x(2, 130), of=(*INTS, F32, F64)),
    "cumprod": case(lambda a: (a.cumprod(0), a.cumprod(1), a.cumprod(-1)), A, of=NUMBERS),
    "cummax": case(lambda a: torch.cummax(a, 1).values, A, of=(F32,), refused="aten.cummax.default"),
    "logcumsumexp": case(lambda a: a.logcumsumexp(1), A, of=(F32,), refused="aten.logcumsumexp.default"),
    "sort": case(lambda a: sorted_values(a, 1, False), TIES, of=NUMBERS),
    "sort descending": case(lambda a: sorted_values(a, 1, True), TIES, of=NUMBERS),
    "sort of an inner axis": case(lambda a: sorted_values(a, 1, False), A, of=NUMBERS),
    "sort of NaN": case(lambda a: (*sorted_values(a, 0, False), *sorted_values(a, 0, True)), ODD, of=(F32,)),
    "argsort": case(lambda a: torch.argsort(a, dim=0, stable=True), TIES, of=NUMBERS),
    "msort": case(lambda a: torch.msort(a), TIES, of=NUMBERS),
    "topk": case(lambda a: a.topk(3), x(4, 20, lo=-90, hi=90), of=(F32, F64)),
    "topk values": case(lambda a: (a.topk(3).values, a.topk(2, 1, largest=False).values), A, of=NUMBERS),
    "topk of an inner axis": case(lambda a: a.topk(2, 0).values, A, of=NUMBERS),
    "topk of one number": case(
        lambda a: (torch.full_like(a, 2).topk(2).values, torch.full_like(a, 2).cumsum(1)), A, of=NUMBERS
    ),
    "topk of many": case(lambda a: a.topk(70).values, x(2, 100), of=NUMBERS),
    "topk of NaN": case(lambda a: (a.topk(4).values, a.topk(8, largest=False).values), ODD, of=(F32,)),
    "kthvalue": case(lambda a: (a.kthvalue(2, 1).values, a.kthvalue(1, 0, True).values), A, of=NUMBERS),
    "median": case(lambda a: (a.median(), a.median(1).values, a.median(-1, True).values), A, of=NUMBERS),
    "median of NaN": case(lambda a: (a.median(), a.median(0).values), ODD, of=(F32,)),
    "searchsorted": case(
        lambda a: torch.searchsorted(a.sort(-1).values, a), TIES, of=(F32,),
        refused="aten.searchsorted.Tensor",
    ),
    "diff": case(lambda a: (a.diff(), a.diff(dim=0), a.diff(n=2)), A, of=NUMBERS),
    "trapezoid": case(lambda a: torch.trapezoid(a, dim=1), A, of=(F32, F64)),
}  # fmt: skip
