"""Packing by reshape and transpose: what `layout.pack` does element by element, done as whole-array moves.

In: logical arrays of stored bits and their layouts. Out: the record bytes, or None where a layout is no plain permutation of
digits (then the general packer runs). Both give the same bytes; a test holds them together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.layout import Digit, Layout

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class _Axis:
    """One digit with its resolved size; `stride` in bits."""

    digit: Digit
    size: int


def fast_pack(arrays: Mapping[str, NDArray[np.generic]], layouts: Mapping[str, Layout], bits: Mapping[str, int]) -> Bytes | None:
    """All streams of one record buffer, or None."""
    nbytes = next(iter(layouts.values())).nbytes
    plans = {}
    for name, a in arrays.items():
        axes = _axes(layouts[name], a.shape, bits[name])
        if axes is None:
            return None
        plans[name] = axes
    out = np.zeros(nbytes, np.uint8)
    for name, a in arrays.items():
        if not _place(out, a, plans[name], layouts[name].base, bits[name]):
            return None
    return out


def _axes(layout: Layout, shape: Sequence[int], bits: int) -> list[_Axis] | None:
    """Digits with sizes, outer to inner per dimension; None unless they tile each dimension exactly."""
    if bits not in (1, 2, 4, 8, 16, 32, 64) or layout.base % 8:
        return None
    found: list[_Axis] = []
    for dim, n in enumerate(shape):
        mine = sorted((d for d in layout.digits if d.dim == dim and d.size != 1), key=lambda d: d.step)
        step = 1
        for k, d in enumerate(mine):
            if d.step != step:
                return None
            last = k == len(mine) - 1
            size = d.size if d.size is not None else -(-n // step)
            if d.size is None and not last:
                return None
            found.append(_Axis(d, size))
            step *= size
        if step < n:
            return None
    return found


def _place(out: Bytes, a: NDArray[np.generic], axes: list[_Axis], base: int, bits: int) -> bool:
    order = sorted(axes, key=lambda x: -x.digit.stride)
    split: list[_Axis] = sorted(axes, key=lambda x: (x.digit.dim, -x.digit.step))
    padded = [math.prod(x.size for x in split if x.digit.dim == d) for d in range(a.ndim)]
    if tuple(padded) != a.shape:
        full = np.zeros(padded, a.dtype)
        full[tuple(slice(0, n) for n in a.shape)] = a
        a = full
    moved = a.reshape([x.size for x in split]).transpose([split.index(x) for x in order])
    strides = [x.digit.stride for x in order]
    if bits < 8:
        joined = _join(moved, order, bits)
        if joined is None:
            return False
        moved, strides = joined
    width = max(bits // 8, 1)
    view = np.lib.stride_tricks.as_strided(
        out[base // 8 :].view(np.uint8), shape=(*moved.shape, width), strides=(*[s // 8 for s in strides], 1)
    )
    raw = moved if width == 1 else None
    if raw is not None:
        view[..., 0] = raw
        return True
    typed = _typed(out, base // 8, moved, strides)
    if typed is not None:
        typed[...] = moved
        return True
    view[...] = np.ascontiguousarray(moved).view(np.uint8).reshape(*moved.shape, width)
    return True


def _typed(out: Bytes, at: int, moved: NDArray[np.generic], strides: Sequence[int]) -> NDArray[np.generic] | None:
    """The target as an array of the element type, where alignment allows whole-element stores."""
    size = moved.dtype.itemsize
    if at % size or any((s // 8) % size for s in strides) or len(out) % size:
        return None
    typed = out.view(moved.dtype)[at // size :]
    return np.lib.stride_tricks.as_strided(typed, shape=moved.shape, strides=[s // 8 for s in strides])


def _join(moved: NDArray[np.generic], order: list[_Axis], bits: int) -> tuple[NDArray[np.generic], list[int]] | None:
    """Codes narrower than a byte: the innermost digit, whose stride is below 8 bits, is folded into whole bytes."""
    inner = order[-1]
    if inner.digit.stride != bits or inner.size * bits != 8 or any(x.digit.stride % 8 for x in order[:-1]):
        return None
    parts = [moved[..., k].astype(np.uint8) for k in range(inner.size)]
    total = parts[0]
    for k in range(1, inner.size):
        total = total | (parts[k] << np.uint8(bits * k))
    return total, [x.digit.stride for x in order[:-1]]
