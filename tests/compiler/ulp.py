"""How far compiled functions of f32 are off, in units in the last place of the exact result.

In: every n-th of all f32 values. Out: for each function the largest error, beside PyTorch's own, and whether
NaN, infinities and zeros are where they belong. As a script: `python -m tests.compiler.ulp [--every 997]`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import tilewright as tw

F32 = NDArray[np.float32]
#: function -> the largest error that it is stated to have, over all f32 values
STATED: dict[str, float] = {
    "exp": 1, "exp2": 2, "expm1": 5, "log": 1, "log2": 2, "log10": 2, "log1p": 3, "sqrt": 0.5, "rsqrt": 1.5,
    "sin": 2, "cos": 2, "tan": 4, "asin": 2, "acos": 2, "atan": 3, "sinh": 2, "cosh": 2, "tanh": 2,
    "asinh": 3, "acosh": 3, "atanh": 3, "erf": 1, "sigmoid": 2, "softplus": 3, "reciprocal": 0.5,
}  # fmt: skip
SMALLEST = 2.0**-126


def functions() -> dict[str, Callable[[Tensor], Tensor]]:
    return {n: F.softplus if n == "softplus" else getattr(torch, n) for n in STATED}


class All(nn.Module):
    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fns = functions()
        return {n: fns[n](x) for n in self.names}


@dataclass
class Error:
    """`ulp`, `at`: the largest error of a normal result and its operand; `wrong`: operands whose result is
    of another kind: NaN, infinite, a zero of the other sign; `tiny`: the largest error where the result is
    denormal, in units of 2^-149."""

    ulp: float = 0.0
    at: float = 0.0
    tiny: float = 0.0
    wrong: int = 0
    example: float = 0.0

    def add(self, x: F32, got: F32, exact: NDArray[np.float64]) -> None:
        want = exact.astype(np.float32)
        kind = np.isfinite(got) == np.isfinite(want)
        kind &= np.where(np.isfinite(want), True, (np.isnan(got) == np.isnan(want)) & (_sign(got, want)))
        kind &= np.where(exact == 0, (got == 0) & (np.signbit(got) == np.signbit(want)), True)
        self._others(x, kind | _at_the_end(got, exact))
        with np.errstate(all="ignore"):
            off = np.abs(got.astype(np.float64) - exact)
            units = off / np.spacing(np.abs(want)).astype(np.float64)
        fits = np.isfinite(want) & np.isfinite(got) & (np.abs(exact) >= SMALLEST)
        if fits.any():
            worst = int(np.argmax(np.where(fits, units, 0)))
            if units[worst] > self.ulp:
                self.ulp, self.at = float(units[worst]), float(x[worst])
        small = np.isfinite(got) & (np.abs(exact) < SMALLEST) & (exact != 0)
        self.tiny = max(self.tiny, float(off[small].max(initial=0) * 2.0**149))

    def _others(self, x: F32, kind: NDArray[np.bool_]) -> None:
        if not kind.all():
            self.wrong += int((~kind).sum())
            self.example = float(x[np.argmin(kind)])


def _sign(got: F32, want: F32) -> NDArray[np.bool_]:
    return np.isnan(want) | (np.signbit(got) == np.signbit(want))


def _at_the_end(got: F32, exact: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Results within an ulp or two of the largest f32 may round to infinity, or from it."""
    with np.errstate(all="ignore"):
        return np.asarray(np.abs(np.abs(exact) / float(np.finfo(np.float32).max) - 1) < 1e-6)


def values(every: int, first: int = 0, chunk: int = 1 << 20) -> Iterator[F32]:
    """Every n-th f32 by its bits, in arrays of one length."""
    bits = np.arange(first, 1 << 32, every, dtype=np.uint64).astype(np.uint32)
    for start in range(0, len(bits), chunk):
        part = bits[start : start + chunk]
        yield np.concatenate([part, np.zeros(chunk - len(part), np.uint32)]).view(np.float32)


def measured(every: int, first: int = 0, names: tuple[str, ...] = tuple(STATED)) -> dict[str, list[Error]]:
    """For each function, our error and PyTorch's."""
    fns = functions()
    chunk = min(1 << 20, -(-(1 << 32) // every))
    compiled = tw.compile(All(names), example_inputs=(torch.zeros(chunk),), recipe="f32")
    out = {n: [Error(), Error()] for n in names}
    for x in values(every, first, chunk):
        given = torch.from_numpy(x)
        got: Any = compiled(given)
        for n in names:
            exact = fns[n](given.double()).numpy()
            out[n][0].add(x, got[n].numpy(), exact)
            out[n][1].add(x, fns[n](given).numpy(), exact)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=997)
    every = parser.parse_args().every
    print("| function | stated | found | at | denormal results | wrong kind | PyTorch | its wrong kind |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (ours, theirs) in measured(every).items():
        wrong = f"{ours.wrong} ({ours.example:g})" if ours.wrong else "0"
        print(
            f"| {name} | {STATED[name]:g} | {ours.ulp:.2f} | {ours.at:g} | {ours.tiny:.1f} | {wrong} | "
            f"{theirs.ulp:.2f} | {theirs.wrong} |"
        )


if __name__ == "__main__":
    main()
