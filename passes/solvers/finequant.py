"""FineQuant's choice of granularity (Kim et al. 2023): the coarsest group that finer ones hardly improve on.

In: weights, an encoding with a group. Out: the encoding with the group chosen; its numbers are then rounded
to nearest, or left to the solver inside. Starts at one group per row and halves while that lowers the squared
error by more than `gain`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tilewright.ir.encoding import Encoding, EncodingError
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.solver import F32, Solver, Statistics, Streams, register_solver


@register_solver
@dataclass(frozen=True)
class FineQuant(Solver):
    """`gain`: halving stops where it lowers the error by a smaller share; `least`: the smallest group."""

    name: ClassVar[str] = "finequant"
    grows: ClassVar[bool] = True

    gain: float = 0.05
    least: int = 64

    def solve(self, w: F32, statistics: Statistics | None, encoding: Encoding) -> Streams:
        return self.base(w, statistics, encoding)

    def choose(self, w: F32, text: str) -> str:
        """Text of the encoding with its group, for w [N, K]."""
        groups = [g for g in _halvings(w.shape[-1]) if g >= self.least and (g == w.shape[-1] or g % 8 == 0)]
        chosen = with_group(text, w.shape[-1], w.shape[-1])
        error = _error(w, chosen)
        for g in groups[1:]:
            finer = with_group(text, g, w.shape[-1])
            less = _error(w, finer)
            if less >= (1 - self.gain) * error:
                break
            chosen, error = finer, less
        return chosen


def with_group(text: str, group: int, k: int) -> str:
    """`int4` or `int4(asym)` with `group=` (or `channel`, where it is all of K)."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text)
    if match is None:
        raise EncodingError(f"finequant: expected an encoding such as int4 or int8, got {text!r}")
    kept = [p.strip() for p in (match[2] or "").split(",") if p.strip()]
    kept = [p for p in kept if p != "channel" and not p.startswith("group")]
    word = "channel" if group == k else f"group={group}"
    return str(parse_encoding(f"{match[1]}({', '.join([word, *kept])})"))


def _halvings(k: int) -> list[int]:
    out = [k]
    while out[-1] % 2 == 0:
        out.append(out[-1] // 2)
    return out


def _error(w: F32, text: str) -> float:
    e = parse_encoding(text)
    return float(np.square(e.decode(e.encode(w)) - w, dtype=np.float64).mean())
