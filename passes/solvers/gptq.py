"""GPTQ (Frantar et al. 2022): rounds columns in order and compensates each error in the remaining columns.

In: weights, statistics, an encoding. Out: streams in the encoding's own layout. Works for every encoding
whose codes stand under scales; a group's scales are chosen when its first column is reached, from the weights
as they are by then. `act_order` rounds the columns of largest diag(H) first: scales are then chosen
beforehand, so that the layout is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.solver import F32, Solver, Statistics, Streams, register_solver
from tilewright.passes.solvers.code_values import CodeValues, Form, choose, code_values_of
from tilewright.passes.solvers.products import product

#: rows solved at once; columns between which an error is spread one by one
ROWS, NEAR = 4096, 32
#: (what is left of the weights from this column on, its place) -> values of codes, columns first, and the
#: column in them
CodeValuesAt = Callable[[F32, int], tuple[CodeValues, int]]


@register_solver
@dataclass(frozen=True)
class Gptq(Solver):
    """`damp`: share of the mean diagonal added to H; `block`: columns whose errors are spread lazily."""

    name: ClassVar[str] = "gptq"
    calibrated: ClassVar[bool] = True

    damp: float = 0.01
    block: int = 128
    act_order: bool = False

    def solve(self, w: F32, statistics: Statistics | None, encoding: Encoding) -> Streams:
        if statistics is None:
            raise EncodingError(f"{self.name} needs statistics of the inputs: calibrate on a text")
        form = Form(encoding, w.shape[-1])
        form.check(self.name)
        diagonal = np.diagonal(statistics.h)
        order = np.argsort(-diagonal, kind="stable") if self.act_order else np.arange(form.k)
        factor = inverse_factor(
            statistics.h[np.ix_(order, order)] if self.act_order else statistics.h, self.damp
        )
        slices = [slice(at, at + ROWS) for at in range(0, max(len(w), 1), ROWS)]
        parts = [self._rows(w[rows], statistics.rows(rows), form, order, factor) for rows in slices]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _rows(
        self, w: F32, statistics: Statistics, form: Form, order: NDArray[np.intp], factor: F32
    ) -> Streams:
        encoding, group = form.encoding, form.group()
        whole = self.base(w, statistics, encoding)
        if self.act_order or group == form.k:
            values = code_values_of(form, whole, len(w)).columns_first()
            found: Streams = form.with_codes(
                whole, self._columns(w, order, factor, lambda left, at: (values, int(order[at])))
            )
        else:
            found = self._by_groups(w, statistics, form, factor, {k: np.array(v) for k, v in whole.items()})
        better = objective(w - encoding.decode(found), statistics.h) < objective(
            w - encoding.decode(whole), statistics.h
        )
        return choose(form, better[:, None], found, whole)

    def _by_groups(
        self, w: F32, statistics: Statistics, form: Form, factor: F32, streams: dict[str, NDArray[np.generic]]
    ) -> Streams:
        """Scales of a group from what the columns before it have left of its weights."""
        group = form.group()
        small = Form(form.encoding, group)
        found: dict[int, CodeValues] = {}

        def values(left: F32, at: int) -> tuple[CodeValues, int]:
            if at % group == 0:
                part = self.base(
                    np.ascontiguousarray(left[:group].T),
                    statistics.columns(slice(at, at + group)),
                    form.encoding,
                )
                found.clear()
                found[at] = code_values_of(small, part, len(w)).columns_first()
                for name in form.parameters:
                    n = part[name].shape[-1]
                    streams[name][:, at // group * n : (at // group + 1) * n] = part[name]
            return found[at - at % group], at % group

        codes = self._columns(w, np.arange(form.k), factor, values, group)
        return form.with_codes(streams, codes)

    def _columns(
        self, w: F32, order: NDArray[np.intp], factor: F32, values: CodeValuesAt, group: int = 1
    ) -> NDArray[np.uint8]:
        """Round column by column. A block's columns lie as rows here; errors reach columns near by one at a
        time, those of the block by a product of `NEAR`, and the rest by one of the block."""
        left = np.ascontiguousarray(w[:, order], np.float32)
        codes = np.zeros(w.shape, np.uint8)
        k = w.shape[-1]
        block = (
            -(-max(self.block, 1) // group) * group
        )  # scales are chosen from columns that have got every error so far
        near = NEAR if max(NEAR, group) % min(NEAR, group) == 0 else group
        for start in range(0, k, block):
            stop = min(start + block, k)
            part = np.ascontiguousarray(left[:, start:stop].T)
            errors, chosen = np.zeros_like(part), np.zeros(part.shape, np.uint8)
            u = factor[start:stop, start:stop]
            for lo in range(0, len(part), near):
                hi = min(lo + near, len(part))
                for i in range(lo, hi):
                    table, column = values(part[i:], start + i)
                    chosen[i], value = table.nearest(part[i], column)
                    errors[i] = (part[i] - value) / u[i, i]
                    part[i + 1 : hi] -= u[i, i + 1 : hi, None] * errors[i]
                part[hi:] -= u[lo:hi, hi:].T @ errors[lo:hi]
            codes[:, order[start:stop]] = chosen.T
            left[:, stop:] -= product(errors.T, factor[start:stop, stop:])
        return codes


def objective(error: F32, h: F32) -> NDArray[np.float64]:
    """Every row's share of tr(E H E^T)."""
    shares = product(error, h)
    shares *= error
    out: NDArray[np.float64] = shares.sum(-1, dtype=np.float64)
    return out


def inverse_factor(h: F32, damp: float) -> F32:
    """The upper Cholesky factor U of the inverse of damped H (H^-1 = U^T U). Columns never seen get a
    diagonal of 1."""
    diagonal = np.where(np.diagonal(h) > 0, np.diagonal(h), 1).astype(np.float64)
    for attempt in range(6):
        share = max(damp, 1e-6) * 10**attempt if attempt or damp else 0.0
        # from its end H = R R^T with R upper, and U = R^-1: no inverse of H is needed
        a = np.ascontiguousarray(h[::-1, ::-1], np.float64)
        np.fill_diagonal(a, (diagonal + share * diagonal.mean())[::-1])
        upper = cholesky(a)
        if upper is None:
            continue
        del a
        invert_upper(upper)
        if np.isfinite(upper).all():
            return upper
    raise EncodingError("gptq: H is not positive definite, at any damping: are the inputs finite?")


def cholesky(a: NDArray[np.float64]) -> F32 | None:
    """The upper factor R of R R^T, for what it is of seen from its end; None if it has none."""
    import torch

    lower, failed = torch.linalg.cholesky_ex(torch.from_numpy(a))
    return None if int(failed) else np.ascontiguousarray(lower.numpy()[::-1, ::-1], np.float32)


def invert_upper(r: F32) -> None:
    """An upper triangular matrix to its inverse, in place, by halves."""
    n = len(r)
    if n <= 64:
        r[...] = np.triu(np.linalg.inv(r.astype(np.float64)))
        return
    m = n // 2
    invert_upper(r[:m, :m])
    invert_upper(r[m:, m:])
    r[:m, m:] = product(product(-r[:m, :m], r[:m, m:]), r[m:, m:])
