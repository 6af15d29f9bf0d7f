"""Round-to-nearest with a clip search: each group is shrunk by the factor of a grid that loses least.

In: weights, an encoding. Out: streams whose error is nowhere above round-to-nearest's, since factor 1 is in
the grid. The error is a sum of powers above 2, since a large weight cut off costs a model more than its
square says. With statistics, the error is weighted by mean x^2 of its column (the diagonal of H).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.ir.encoding import Encoding
from tilewright.ir.solver import F32, Solver, Statistics, Streams, register_solver
from tilewright.passes.solvers.code_values import Form, choose, group_error


@register_solver
@dataclass(frozen=True)
class Clip(Solver):
    """`steps` factors from 1 down to `low`; errors to the power `norm` (2.4, as GPTQ's code has it)."""

    name: ClassVar[str] = "clip"

    steps: int = 20
    low: float = 0.6
    norm: float = 2.4

    def solve(self, w: F32, statistics: Statistics | None, encoding: Encoding) -> Streams:
        form = Form(encoding, w.shape[-1])
        form.check(self.name)
        weight = (
            np.ones(form.k, np.float32)
            if statistics is None
            else np.diagonal(statistics.h).astype(np.float32)
        )
        groups = w.reshape(len(w), -1, form.group())
        low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
        best = self.base(w, statistics, encoding)
        least = group_error(form, np.abs(encoding.decode(best) - w) ** self.norm * weight)
        for factor in np.linspace(1, self.low, max(self.steps, 1), dtype=np.float32)[1:]:
            tried = encoding.encode(np.clip(groups, factor * low, factor * high).reshape(w.shape))
            error = group_error(form, np.abs(encoding.decode(tried) - w) ** self.norm * weight)
            keep = error < least
            best, least = choose(form, keep, tried, best), np.where(keep, error, least)
        return best
