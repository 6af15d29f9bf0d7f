"""A user-defined solver: `trim(E, most=0.995)` clips every row at a quantile of its magnitudes.

A row is clipped before it is rounded, and only where that lowers its squared error.

Use it as `--weights "trim(int4(channel))"`. It works for every encoding that rounds by itself; options are
the fields, with their defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tilewright.ir.encoding import Encoding
from tilewright.ir.solver import Solver, Statistics, Streams, register_solver


@register_solver
@dataclass(frozen=True)
class Trim(Solver):
    name: ClassVar[str] = "trim"

    most: float = 0.995

    def solve(self, w: Any, statistics: Statistics | None, encoding: Encoding) -> Streams:
        """Rows of w [N, K] are independent of each other, so streams may be chosen row by row."""
        top = np.quantile(np.abs(w), self.most, axis=-1, keepdims=True).astype(np.float32)
        plain, cut = (self.base(x, statistics, encoding) for x in (w, np.clip(w, -top, top)))
        errors = [np.square(encoding.decode(s) - w).sum(-1, keepdims=True) for s in (plain, cut)]
        better = errors[1] < errors[0]
        return {name: np.where(better, cut[name], plain[name]) for name in plain}
