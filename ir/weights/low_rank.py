"""Truncated singular value decomposition: the product of two thin matrices that is nearest to a matrix.

In: values [N, K]. Out: factors [N, r] and [r, K], rounded as they are stored, and what is left of the values.
Source of the method: subspace iteration (Halko, Martinsson and Tropp 2011, "Finding structure with
randomness"); of the use, a product beside low-bit weights: SVDQuant (Li et al. 2024).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.numbers import hold

F32 = NDArray[np.float32]

#: how factors are stored
FACTOR = "bf16"
#: directions beyond the rank that iterations carry, and their number
_MORE, _ITERATIONS = 8, 6


def factors(w: F32, rank: int) -> tuple[F32, F32]:
    """left [N, rank] and right [rank, K], whose product is nearest to w; both share the singular values
    evenly. The same for the same matrix. Zeros for a matrix with NaN or infinity, which stays in the rest and
    is reported by its name when that is stored."""
    w = np.asarray(w, np.float32)
    if not np.isfinite(w).all():
        return np.zeros((w.shape[0], rank), np.float32), np.zeros((rank, w.shape[1]), np.float32)
    half = int(np.frexp(np.abs(w).max(initial=0))[1]) // 2
    w = np.ldexp(w, -2 * half)  # no product of magnitudes overflows
    start = np.random.default_rng(0).standard_normal((w.shape[1], min(rank + _MORE, *w.shape)))
    basis = w @ start.astype(np.float32)
    for _ in range(_ITERATIONS):
        basis = w @ np.linalg.qr(w.T @ np.linalg.qr(basis)[0])[0]
    basis = np.linalg.qr(basis)[0]
    u, s, vt = np.linalg.svd(basis.T @ w, full_matrices=False)
    root = np.sqrt(s[:rank])
    left, right = basis @ u[:, :rank] * root, root[:, None] * vt[:rank]
    return hold(np.ldexp(left, half), FACTOR), hold(np.ldexp(right, half), FACTOR)


def part_shape(shape: tuple[int, ...], rank: int, part: str) -> tuple[int, ...]:
    """Shape of a part of a matrix [N, K]."""
    return {"left": (shape[0], rank), "right": (rank, shape[-1])}.get(part, shape)


def part(w: F32, rank: int, name: str) -> F32:
    """`left`, `right`, or the `rest` of the values without their product."""
    left, right = factors(w, rank)
    return {"left": left, "right": right}.get(name, w - left @ right)
