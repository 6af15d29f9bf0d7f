"""Half-quadratic quantization (HQQ, Badri and Shaji 2023): scales or offsets with a small l_0.7 error.

In: weights, an encoding. Out: streams. Alternates a shrinkage that takes outliers into E with a least-squares
step for one free parameter on W - E: a float offset or zero where the encoding has one, else the scale. The
best iterate of every group is kept, and round-to-nearest is the first, so no group's error is above its.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.numbers import hold
from tilewright.ir.solver import F32, Solver, Statistics, Streams, register_solver
from tilewright.passes.solvers.code_values import CodeValues, Form, choose, code_values_of, group_error

#: parameters that may be free, in the order of preference
FREE = ("offset", "zero", "scale")


@register_solver
@dataclass(frozen=True)
class Hqq(Solver):
    """`p`: the norm; `beta`, `growth`: the weight of the shrinkage and its factor per iteration, as in the
    published code."""

    name: ClassVar[str] = "hqq"

    iterations: int = 20
    p: float = 0.7
    beta: float = 10.0
    growth: float = 1.01

    def solve(self, w: F32, statistics: Statistics | None, encoding: Encoding) -> Streams:
        form = Form(encoding, w.shape[-1])
        form.check(self.name)
        best = now = self.base(w, statistics, encoding)
        least = self._error(form, w, encoding.decode(best))
        beta = self.beta
        for _ in range(self.iterations):
            error = w - encoding.decode(now)
            kept = w - self._shrink(error, beta)
            now = refit(form, now, kept, self.name)
            table = code_values_of(form, now, len(w))
            codes, values = table.nearest(w)
            now = form.with_codes(now, codes)
            tried = self._error(form, w, encoding.decode(now))
            keep = tried < least
            best, least = choose(form, keep, now, best), np.where(keep, tried, least)
            beta *= self.growth
        return best

    def _shrink(self, x: F32, beta: float) -> F32:
        """Generalised soft threshold of the l_p norm."""
        size = np.abs(x)
        with np.errstate(divide="ignore"):
            less = np.where(size > 0, size ** (self.p - 1), 0) / beta
        return (np.sign(x) * np.maximum(size - less, 0)).astype(np.float32)

    def _error(self, form: Form, w: F32, got: F32) -> NDArray[np.float64]:
        return group_error(form, (np.abs(w - got) ** self.p).astype(np.float32))


def refit(form: Form, streams: Streams, target: F32, name: str) -> dict[str, NDArray[Any]]:
    """The free parameter, least squares on `target` at the codes there are."""
    free = next(
        (p for p in FREE if p in form.parameters and np.issubdtype(streams[p].dtype, np.floating)), None
    )
    rows, group = len(target), form.group()
    if free is None or streams[free].shape[-1] != form.k // group:
        raise EncodingError(
            f"{name}: {form.encoding} has no float scale, zero point or offset per group to fit"
        )
    values = code_values_of(form, streams, rows)
    if values.table.size and free != "scale":
        raise EncodingError(f"{name}: the values of the codes of {form.encoding} are not equally spaced")
    return {**streams, free: _fitted(form, streams, values, target, free)}


def _fitted(form: Form, streams: Streams, values: CodeValues, target: F32, free: str) -> NDArray[Any]:
    rows, group = len(target), form.group()
    got = form.encoding.decode(streams)
    old = streams[free]
    if free == "scale":
        a, b = (x.reshape(rows, -1, group).astype(np.float64) for x in (got, target))
        power = (a * a).sum(-1)
        ratio = np.where(power > 0, (a * b).sum(-1) / np.where(power > 0, power, 1), 1)
        new = np.asarray(old, np.float32) * ratio
    else:
        gap = (target - got).reshape(rows, -1, group).mean(-1, dtype=np.float64)
        step = values.step.reshape(rows, -1, group)[..., 0]
        unit = np.where(step != 0, -step, 1) if free == "zero" else 1.0
        new = np.asarray(old, np.float32) + gap / unit
    stored = next(s.dtype for s in form.encoding.record((16, form.k)).streams if s.name == free)
    return hold(new.astype(np.float32), stored)
