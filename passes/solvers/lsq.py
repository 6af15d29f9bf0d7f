"""Alternating least squares: nearest codes for given parameters, then the best parameters for given codes.

In: weights, an encoding whose values are linear in its float parameters. Out: streams whose error is nowhere
above where it began. One rule for what goes by several names: on codebooks it is k-means (SqueezeLLM, Kim et
al. 2023), on planes with free coefficients BCQ (LUT-GEMM, Park et al. 2022) or HLQ (ELUTQ, 2025), on uniform
integers a refit of scale and offset. What a parameter does is learned by decoding unit vectors, so any
encoding will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.numbers import hold
from tilewright.ir.solver import F32, Solver, Statistics, Streams, register_solver
from tilewright.passes.solvers.code_values import Form, choose, code_values_of, group_error

#: numbers held at once while rows are solved
PIECE = 1 << 24
Parts = dict[str, NDArray[Any]]


@register_solver
@dataclass(frozen=True)
class Lsq(Solver):
    """`rounds` of codes and parameters in turn; every group keeps its best."""

    name: ClassVar[str] = "lsq"

    rounds: int = 15

    def solve(self, w: F32, statistics: Statistics | None, encoding: Encoding) -> Streams:
        form = Form(encoding, w.shape[-1])
        form.check(self.name)
        whole = self.base(w, statistics, encoding)
        weight = np.broadcast_to(self.weighing(statistics, form.k), w.shape)
        step = max(PIECE // (form.k << min(form.bits, 5)), 1)
        slices = [slice(at, at + step) for at in range(0, max(len(w), 1), step)]
        parts = [
            self._rows(form, w[rows], {n: x[rows] for n, x in whole.items()}, weight[rows]) for rows in slices
        ]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def weighing(self, statistics: Statistics | None, k: int) -> F32:
        """What a squared error counts, [K] or [N, K]."""
        return np.ones(k, np.float32) if statistics is None else np.diagonal(statistics.h).astype(np.float32)

    def _rows(self, form: Form, w: F32, streams: Parts, weight: F32) -> Streams:
        best: Streams = streams
        now: Parts = dict(streams)
        least = group_error(form, (form.encoding.decode(best) - w) ** 2 * weight)
        for _ in range(self.rounds):
            codes, _ = code_values_of(form, now, len(w)).nearest(w)
            now = fitted(form, form.with_codes(now, codes), w, weight, self.name)
            error = group_error(form, (form.encoding.decode(now) - w) ** 2 * weight)
            keep = error < least * (1 - 1e-7)
            if not keep.any():
                break
            best, least = choose(form, keep, now, best), np.where(keep, error, least)
        return best


@register_solver
@dataclass(frozen=True)
class WeightedLsq(Lsq):
    """The same, every column weighted by the mean square of its input."""

    name: ClassVar[str] = "wlsq"
    calibrated: ClassVar[bool] = True


@register_solver
@dataclass(frozen=True)
class FisherLsq(Lsq):
    """The same, every weight weighted by its Fisher information, as SqueezeLLM does."""

    name: ClassVar[str] = "flsq"
    calibrated: ClassVar[bool] = True
    informed: ClassVar[bool] = True

    def weighing(self, statistics: Statistics | None, k: int) -> F32:
        if statistics is None or statistics.fisher is None:
            raise EncodingError(f"{self.name} needs the gradients of a language model: calibrate on a text")
        largest = statistics.fisher.max(
            -1, keepdims=True
        )  # squares of small gradients leave the range of floats
        return np.asarray(
            statistics.fisher / np.where(largest > 0, largest, 1) + np.float32(1e-7), np.float32
        )


def fitted(form: Form, streams: Parts, w: F32, weight: F32, name: str) -> Parts:
    """Float parameters that minimise the weighted squared error at the codes there are, rounded to how they
    are stored."""
    groups = form.k // form.group()
    places = list(_places(form, streams, groups, name))
    now = form.encoding.decode(streams)
    effects = np.stack([e for _, _, e in _effects(form, streams, places)], -1)
    x = effects.reshape(len(w), groups, -1, len(places)).astype(np.float64)
    weighted = x * weight.reshape(len(w), groups, -1)[..., None]
    square = np.swapaxes(x, -1, -2) @ weighted
    square += np.eye(len(places)) * (1e-8 * np.trace(square, axis1=-2, axis2=-1)[..., None, None] + 1e-30)
    gap = (w - now).reshape(len(w), groups, -1, 1).astype(np.float64)
    change = np.linalg.solve(square, np.swapaxes(weighted, -1, -2) @ gap)[..., 0]
    out = dict(streams)
    dtypes = {s.name: s.dtype for s in form.encoding.record((16, form.k)).streams}
    for n, (stream, at) in enumerate(places):
        values = np.array(out[stream], np.float32)
        each = values.shape[-1] // groups
        values[:, at::each] += change[:, :, n].astype(np.float32)
        out[stream] = hold(values, dtypes[stream])
    return out


def _places(form: Form, streams: Streams, groups: int, name: str) -> Iterator[tuple[str, int]]:
    """(stream, place in a group) of every float parameter."""
    floats = [p for p in form.parameters if np.issubdtype(streams[p].dtype, np.floating)]
    for p in floats:
        if streams[p].shape[-1] % groups:
            raise EncodingError(
                f"{name}: {form.encoding} shares {p} between groups that are solved one by one"
            )
        yield from ((p, at) for at in range(streams[p].shape[-1] // groups))
    if not floats:
        raise EncodingError(f"{name}: {form.encoding} has no float scale, offset or table to fit")


def _effects(form: Form, streams: Parts, places: list[tuple[str, int]]) -> Iterator[tuple[str, int, F32]]:
    """What a parameter adds to every value per unit: the decoded difference that a unit of it makes."""
    groups = form.k // form.group()
    nothing: Parts = {
        n: np.zeros_like(x) if any(n == p for p, _ in places) else x for n, x in streams.items()
    }
    base = form.encoding.decode(nothing)
    for stream, at in places:
        unit = np.zeros_like(nothing[stream])
        unit[:, at :: unit.shape[-1] // groups] = 1
        yield stream, at, form.encoding.decode({**nothing, stream: unit}) - base
