"""AWQ (Lin et al. 2023), SmoothQuant (Xiao et al. 2022): input channels are rescaled, W diag(t) on x / t.

In: the weights that read one input, its statistics. Out: t, shared by them all; rounding is left to the
solver inside. Where the inverse goes is not known here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Encoding
from tilewright.ir.solver import F32, Solver, Statistics, Streams, register_solver
from tilewright.passes.solvers.gptq import objective

#: rows of a weight that a grid is searched on; the choice is then checked on all
SAMPLE = 256
Group = Sequence[tuple[F32, Encoding]]


@dataclass(frozen=True)
class Equalizer(Solver):
    """`factors` is asked once for all weights [N, K] on one input; channels of one class [K] must share a
    factor."""

    calibrated: ClassVar[bool] = True

    @abstractmethod
    def factors(self, group: Group, statistics: Statistics, classes: NDArray[np.intp]) -> F32:
        """A positive t of every class."""

    def solve(self, w: F32, statistics: Statistics | None, encoding: Encoding) -> Streams:
        return self.base(w, statistics, encoding)


@register_solver
@dataclass(frozen=True)
class Awq(Equalizer):
    """t = mean|x|^a, a from 0 to 1 on a grid of `steps`, for the least error of what the weights compute."""

    name: ClassVar[str] = "awq"

    steps: int = 20

    def factors(self, group: Group, statistics: Statistics, classes: NDArray[np.intp]) -> F32:
        size = pooled(statistics.mean_abs, classes)
        part = [(w[:: max(len(w) // SAMPLE, 1)], e) for w, e in group]
        grid = [_centred(size ** (n / self.steps)) for n in range(max(self.steps, 1))]
        losses = [loss(part, statistics.h, t[classes]) for t in grid]
        best = grid[int(np.argmin(losses))]
        return (
            best
            if loss(group, statistics.h, best[classes]) <= loss(group, statistics.h, grid[0][classes])
            else grid[0]
        )


@register_solver
@dataclass(frozen=True)
class SmoothQuant(Equalizer):
    """t = max|x|^alpha / max|w|^(1 - alpha): activations with outliers become easier to round, weights
    harder."""

    name: ClassVar[str] = "smoothquant"

    alpha: float = 0.5

    def factors(self, group: Group, statistics: Statistics, classes: NDArray[np.intp]) -> F32:
        largest = np.max([np.abs(w).max(0) for w, _ in group], axis=0)
        x, w = (np.maximum(pooled(a, classes, np.maximum), 1e-5) for a in (statistics.absmax, largest))
        return _centred(np.asarray(x**self.alpha / w ** (1 - self.alpha), np.float32))


def loss(group: Group, h: F32, t: F32) -> float:
    """tr(E H E^T) summed over the weights, E = Q(W t) / t - W."""
    return sum(float(objective(e.decode(e.encode(w * t)) / t - w, h).sum()) for w, e in group)


def pooled(values: F32, classes: NDArray[np.intp], by: np.ufunc = np.add) -> F32:
    """The mean (or another ufunc's result) over the channels of every class."""
    out = np.zeros(int(classes.max()) + 1, np.float32)
    by.at(out, classes, values)
    return np.asarray(out / np.bincount(classes), np.float32) if by is np.add else out


def rescaled(statistics: Statistics, t: F32) -> Statistics:
    """What is seen at x / t."""
    h = statistics.h / t / t[:, None]
    fisher = None if statistics.fisher is None else np.asarray(statistics.fisher / np.square(t), np.float32)
    return Statistics(h, statistics.mean_abs / t, statistics.absmax / t, statistics.tokens, fisher)


def _centred(t: F32) -> F32:
    """Kept from leaving the range of floats: the smallest and the largest lie around 1; channels never seen
    get the least."""
    top = float(t.max()) or 1.0
    t = np.maximum(t / top, 1e-4)
    return np.asarray(t / np.sqrt(float(t.min()) * float(t.max())), np.float32)
