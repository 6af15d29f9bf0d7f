"""SpQR (Dettmers et al. 2023): chooses outliers by the effect of their rounding on the output.

In: weights, statistics, an encoding `+ sparse(p)`. Out: streams whose outliers are the weights that save
most: a weight's own squared error over the diagonal of H^-1, and for the largest of a group what the group
saves once its scale need not reach it. Codes are rounded to the nearest; `gptq(spqr(E))` makes good what is
left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.solver import F32, Solver, Statistics, Streams, register_solver
from tilewright.passes.solvers.code_values import Form, choose
from tilewright.passes.solvers.gptq import inverse_factor, objective


@register_solver
@dataclass(frozen=True)
class Spqr(Solver):
    """`damp`: share of the mean diagonal added to H. Rows that come out worse keep their largest weights as
    outliers."""

    name: ClassVar[str] = "spqr"
    calibrated: ClassVar[bool] = True

    damp: float = 0.01

    def solve(self, w: F32, statistics: Statistics | None, encoding: Encoding) -> Streams:
        if statistics is None:
            raise EncodingError("spqr needs statistics of the inputs: calibrate on a text")
        w = np.asarray(w, np.float32)
        spread = np.square(inverse_factor(statistics.h, self.damp)).sum(0)  # the diagonal of H^-1
        found = encoding.encode_with_outliers(w, lambda inner: savings(w, inner, spread))
        if found is None:
            raise EncodingError(
                f"spqr: {encoding} has no outliers to choose; write spqr({encoding} + sparse(0.5%))"
            )
        whole = self.base(w, statistics, encoding)
        errors = [objective(w - encoding.decode(s), statistics.h) for s in (found, whole)]
        return choose(Form(encoding, w.shape[-1]), (errors[0] < errors[1])[:, None], found, whole)


def savings(w: F32, inner: Encoding, spread: F32) -> F32:
    """What the loss falls by if a weight is kept as it is, [N, K]."""
    form = inner.contraction_form
    shape = (len(w), -1, form.block if form is not None and form.block else w.shape[-1])
    cost = np.square(w - inner.decode(inner.encode(w))) / spread
    groups = cost.reshape(shape)
    top = np.abs(w.reshape(shape)).argmax(-1)[..., None]
    without = w.reshape(shape).copy()
    np.put_along_axis(without, top, 0, -1)
    rest = np.square(without.reshape(w.shape) - inner.decode(inner.encode(without.reshape(w.shape)))) / spread
    left = rest.reshape(shape).copy()
    np.put_along_axis(left, top, 0, -1)  # it is kept, whatever its code
    out = groups.copy()
    gain = groups.sum(-1, keepdims=True) - left.sum(-1, keepdims=True)
    np.put_along_axis(out, top, np.maximum(gain, np.take_along_axis(groups, top, -1)), -1)
    return np.asarray(out.reshape(w.shape), np.float32)
