"""Packing by reshape and transpose: what `layout.pack` does element by element, done as whole-array moves.

In: logical arrays of stored bits and their layouts. Out: the record bytes, or None where a layout is not a
plain permutation of digits (then the general packer runs). Both give the same bytes; a test holds them
together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.layout import Digit, Layout

Bytes = NDArray[np.uint8]
Array = NDArray[Any]


@dataclass(frozen=True)
class _Axis:
    """One digit with its resolved size; `stride` in bits."""

    digit: Digit
    size: int


def fast_pack(
    arrays: Mapping[str, Array], layouts: Mapping[str, Layout], bits: Mapping[str, int]
) -> Bytes | None:
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


def _place(out: Bytes, a: Array, axes: list[_Axis], base: int, bits: int) -> bool:
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
    for source, steps in (_widened(moved, strides), (moved, strides)):
        target = _typed(out, base // 8, source, steps)
        if target is not None:
            target[...] = source
            return True
    width = max(bits // 8, 1)
    view = np.lib.stride_tricks.as_strided(
        out[base // 8 :].view(np.uint8), shape=(*moved.shape, width), strides=(*[s // 8 for s in strides], 1)
    )
    view[...] = np.ascontiguousarray(moved).view(np.uint8).reshape(*moved.shape, width)
    return True


def _typed(out: Bytes, at: int, moved: Array, strides: Sequence[int]) -> Array | None:
    """The target as an array of the element type, where alignment allows whole-element stores."""
    size = moved.dtype.itemsize
    if at % size or any((s // 8) % size for s in strides) or len(out) % size:
        return None
    typed = out.view(moved.dtype)[at // size :]
    return np.lib.stride_tricks.as_strided(typed, shape=moved.shape, strides=[s // 8 for s in strides])


def _widened(moved: Array, strides: Sequence[int]) -> tuple[Array, Sequence[int]]:
    """Elements that are neighbours on both sides as one wider word each: an eighth of the moves, in the best
    case."""
    if not strides or strides[-1] != 8 * moved.dtype.itemsize:
        return moved, strides
    words = _words(moved)
    if words is None:
        return moved, strides
    return words, [*strides[:-1], 8 * words.dtype.itemsize]


def _words(x: Array) -> Array | None:
    """The last axis, if its elements are neighbours in memory, as fewer and wider unsigned words of at most 8
    bytes."""
    size = x.dtype.itemsize
    width = next((w for w in (8, 4, 2) if w > size and x.shape[-1] * size % w == 0), 0)
    if not width or x.strides[-1] != size or any(s % width for s in x.strides[:-1]) or x.ctypes.data % width:
        return None
    return x.view(f"u{width}")


def _join(moved: Array, order: list[_Axis], bits: int) -> tuple[Array, list[int]] | None:
    """Codes narrower than a byte: the innermost digit, whose stride is below 8 bits, is folded into whole
    bytes; several bytes at once where they are neighbours (a code never reaches beyond its byte)."""
    inner = order[-1]
    if inner.digit.stride != bits or inner.size * bits != 8 or any(x.digit.stride % 8 for x in order[:-1]):
        return None
    parts = [moved[..., k] for k in range(inner.size)]
    words = [_words(p) for p in parts] if parts[0].ndim and parts[0].dtype == np.uint8 else [None]
    if all(w is not None for w in words):
        parts = [w for w in words if w is not None]
    else:
        parts = [p.astype(np.uint8) for p in parts]
    total = parts[0]
    for k in range(1, inner.size):
        total = total | (parts[k] << parts[k].dtype.type(bits * k))
    return total.view(np.uint8) if total.dtype != np.uint8 else total, [x.digit.stride for x in order[:-1]]
