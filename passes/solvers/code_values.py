"""What solvers need from an encoding: the values of its codes for given scales, and which entries share them.

In: an encoding with per-element code streams and coarser parameter streams. Out: codes nearest to values,
groups, streams put together from groups. Uses `encode`, `decode`, `grain` and `record` alone, so it works for
a user's encoding too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.types import BITS

F32 = NDArray[np.float32]
Array = NDArray[Any]
Streams = Mapping[str, Array]
#: codes of more bits are not tried one by one
TABLE_BITS = 8


@dataclass(frozen=True)
class Form:
    """Streams of an encoding for a matrix with K columns: code planes, low bits first, and parameters."""

    encoding: Encoding
    k: int

    @cached_property
    def planes(self) -> tuple[tuple[str, int], ...]:
        """(stream, bits) of the per-element streams."""
        specs = self.encoding.record((16, self.k)).streams
        return tuple((s.name, BITS[s.dtype]) for s in specs if self.encoding.grain(s.name)[-1] == 1)

    @cached_property
    def bits(self) -> int:
        return sum(b for _, b in self.planes)

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        specs = self.encoding.record((16, self.k)).streams
        return tuple(s.name for s in specs if self.encoding.grain(s.name)[-1] != 1)

    def group(self) -> int:
        """Columns that can be solved without others: the largest run of K that shares a parameter."""
        sizes = [min(self.encoding.grain(p)[-1], self.k) for p in self.parameters]
        out = max(sizes, default=1)
        return out if all(out % s == 0 for s in sizes) else self.k

    def check(self, name: str) -> None:
        """EncodingError if no solver that picks codes can serve this encoding."""
        if not self.parameters or not self.planes or self.bits > TABLE_BITS:
            raise EncodingError(
                f"{name}: {self.encoding} has no codes with scales that a solver could choose; store it "
                "without a solver"
            )
        rows = [p for p in self.parameters if self.encoding.grain(p)[:-1] not in ((), (1,))]
        if rows:
            raise EncodingError(
                f"{name}: {self.encoding} shares {', '.join(rows)} between rows, but rows are solved one "
                "by one"
            )

    def split(self, codes: Array) -> dict[str, Array]:
        """Whole codes to planes."""
        out, at = {}, 0
        for name, bits in self.planes:
            out[name] = ((codes >> at) & ((1 << bits) - 1)).astype(np.uint8)
            at += bits
        return out

    def with_codes(self, streams: Streams, codes: Array) -> dict[str, Array]:
        return {**{p: streams[p] for p in self.parameters}, **self.split(codes)}

    def constant(self, streams: Streams, rows: int, code: int) -> F32:
        """[rows, K]: what `code` stands for at every element."""
        return self.encoding.decode(self.with_codes(streams, np.full((rows, self.k), code, np.uint8)))


@dataclass(frozen=True)
class CodeValues:
    """Values that codes stand for at each element of [N, K]: `low + step * code` where `table` is empty, else
    `table[code]`. `zero`: the code of 0 where that is a integer everywhere; rounding is then the
    encodings' own, to the bit."""

    low: F32
    step: F32
    top: int
    table: F32
    zero: F32

    def columns_first(self) -> CodeValues:
        """The same for [K, N]."""
        low, step, table, zero = (np.ascontiguousarray(np.moveaxis(x, -1, -2)) if x.size else x
                                  for x in (self.low, self.step, self.table, self.zero))  # fmt: skip
        return CodeValues(low, step, self.top, table, zero)

    def nearest(self, w: F32, at: int | slice = slice(None)) -> tuple[NDArray[np.uint8], F32]:
        """Codes and values nearest to w, which lies at the given place of the first axis."""
        if self.table.size:
            table = self.table[:, at]
            codes = np.abs(table - w[None]).argmin(0).astype(np.uint8)
            return codes, np.take_along_axis(table, codes[None].astype(np.int64), 0)[0]
        low, step = self.low[at], self.step[at]
        shift = self.zero[at] if self.zero.size else np.float32(0)
        with np.errstate(all="ignore"):
            q = np.rint(np.where(step != 0, (w if self.zero.size else w - low) / step, 0)) + shift
        q = np.clip(q, 0, self.top)
        return q.astype(np.uint8), (low + step * q if not self.zero.size else step * (q - shift)).astype(
            np.float32
        )


def code_values_of(form: Form, streams: Streams, rows: int) -> CodeValues:
    """What each code stands for under the parameters of `streams`. Equally spaced values are recognised by
    their ends and middle."""
    top, none = (1 << form.bits) - 1, np.empty(0, np.float32)
    low, high = (form.constant(streams, rows, c) for c in (0, top))
    step = ((high - low) / np.float32(top)).astype(np.float32)
    tries = {1, top // 2, top - 1} - {0, top}
    if not all(
        (np.abs(form.constant(streams, rows, c) - low - step * c) <= 1e-4 * np.abs(step)).all() for c in tries
    ):
        return CodeValues(
            low, step, top, np.stack([form.constant(streams, rows, c) for c in range(top + 1)]), none
        )
    with np.errstate(all="ignore"):
        place = np.where(step != 0, -low / step, 0)
        zero = np.rint(place).astype(np.float32)
        exact = np.where(zero != 0, -low / zero, step).astype(np.float32)
    whole = bool((np.abs(place - zero) < 1e-3).all())
    return CodeValues(low, exact if whole else step, top, none, zero if whole else none)


def choose(form: Form, keep: NDArray[np.bool_], a: Streams, b: Streams) -> dict[str, Array]:
    """Streams of `a` where `keep` [rows, groups] says so, else those of `b`."""
    out, groups = {}, keep.shape[1]
    for name in a:
        out[name] = np.where(np.repeat(keep, a[name].shape[-1] // groups, axis=1), a[name], b[name])
    return out


def group_error(form: Form, error: F32) -> NDArray[np.float64]:
    """Sums of a per-element error [N, K] over groups: [N, groups]."""
    out: NDArray[np.float64] = error.reshape(len(error), -1, form.group()).sum(-1, dtype=np.float64)
    return out
