"""Reductions over one axis, several, or all."""

from __future__ import annotations

import torch

from tests.compiler.small_modules.base import ALL, F32, F64, FLOATS, NUMBERS, Case, case, x

A = x(3, 4, 5, 6)
S = x(3, 4, 70, lo=-2, hi=2)


def over_axes(fn, **named):  # type: ignore[no-untyped-def]
    """Each axis by itself, the last two, and those around the middle, kept."""
    return lambda a: (
        fn(a, dim=0, **named), fn(a, dim=1, **named), fn(a, dim=-1, **named), fn(a, dim=(2, 3), **named),
        fn(a, dim=(0, 2), keepdim=True, **named), fn(a, dim=(0, 1, 2, 3), **named),
    )  # fmt: skip


CASES: dict[str, Case] = {
    "sum": case(over_axes(torch.sum), A, of=ALL),
    "sum as f64": case(lambda a: a.sum(1, dtype=torch.float64), A, of=ALL),
    "mean": case(over_axes(torch.mean), A),
    "mean of integers": case(lambda a: a.mean(1, dtype=torch.float32), A, of=NUMBERS),
    "amax": case(over_axes(torch.amax), A, of=ALL),
    "amin": case(over_axes(torch.amin), A, of=ALL),
    "max of all": case(lambda a: (a.max(), a.min()), A, of=ALL),
    "max with places": case(lambda a: (*a.max(1), *a.min(-1, keepdim=True)), A, of=ALL),
    "argmax": case(lambda a: (a.argmax(), a.argmax(1), a.argmax(-1, keepdim=True)), A, of=NUMBERS),
    "argmin": case(lambda a: (a.argmin(), a.argmin(2), a.argmin(-1, keepdim=True)), A, of=NUMBERS),
    "any": case(lambda a: (a.any(), a.any(1), a.any(-1, keepdim=True)), A, of=ALL),
    "all": case(lambda a: (a.all(), a.all(1), a.all(-1, keepdim=True)), A, of=ALL),
    "any of several axes": case(lambda a: torch.any(a, dim=(1, 3)), A, of=ALL),
    "prod": case(lambda a: (a.prod(1), a.prod(-1, keepdim=True), a[0, 0].prod()), A, of=NUMBERS),
    "var": case(lambda a: (a.var(), a.var(1), a.var((1, 3), keepdim=True), a.var(-1, correction=0)), A),
    "std": case(lambda a: (a.std(), a.std(1), torch.std(a, -1, correction=2)), A),
    "var_mean": case(lambda a: (*torch.var_mean(a, 1), *torch.std_mean(a, (0, 3), keepdim=True)), A),
    "logsumexp": case(lambda a: (a.logsumexp(1), a.logsumexp((0, -1), keepdim=True)), A),
    "linalg_vector_norm": case(
        lambda a: (a.norm(), a.norm(dim=1), a.norm(1, -1), a.norm(float("inf"), 0)), A
    ),
    "linalg_vector_norm of order 3": case(lambda a: a.norm(3, dim=1), A, of=(F32, F64)),
    "linalg_vector_norm of order 0": case(lambda a: a.round().norm(0, dim=1), A, of=(F32, F64)),
    "count_nonzero": case(lambda a: (torch.count_nonzero(a), torch.count_nonzero(a, 1)), A, of=ALL),
    "nansum": case(torch.nansum, A, of=FLOATS[:2]),
    "aminmax": case(lambda a: torch.aminmax(a, dim=1), A, of=NUMBERS),
    "sum of long rows": case(lambda a: (a.sum(-1), a.mean(-1), a.amax(-1), a.var(-1)), S, of=FLOATS),
    "sum of a scalar": case(lambda a: (a.sum(), a.amax(), a.prod(), a.sum(0)), x(), of=NUMBERS),
    "trace": case(torch.trace, x(4, 5), of=NUMBERS),
    "dist": case(lambda a, b: torch.dist(a, b), x(3, 4), x(3, 4, seed=1)),
    "histc": case(
        lambda a: (a.histc(6, -2, 3), torch.cat([a.round(), a.new_full((1,), 3.0)]).histc(7, -3, 3)),
        x(50), of=(F32, F64),
    ),
    "histc of a range that follows": case(torch.histc, x(50), of=(F32,), refused="aten.histc.default"),
}  # fmt: skip
