"""Hand-written tile programs with seeded inputs and NumPy reference values, for all executors.

`CASES[name]` holds a text program, the symbols' values, `make_inputs(rng)` (stored bits, one array per input
parameter) and `reference(inputs)` (held values, one array per output parameter). Outputs start as poison: see
`poisoned`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.layout import pack, record
from tilewright.ir.numbers import bf16_bits, bits_to_bf16, from_bits
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.ir.tile.core import Kernel, bind
from tilewright.ir.tile.memory import poison

Array = NDArray[np.generic]
Arrays = dict[str, Array]
TILES = Path(__file__).resolve().parents[2] / "examples" / "tiles"


@dataclass(frozen=True)
class Case:
    """`tolerance`: largest difference, relative to the largest reference value; 0 means equal."""

    path: Path
    symbols: Mapping[str, int]
    make_inputs: Callable[[np.random.Generator], Arrays]
    reference: Callable[[Arrays], Arrays]
    tolerance: float = 0.0

    def kernel(self) -> Kernel:
        return parse_kernel(self.path.read_text(), self.path.name)


def poisoned(kernel: Kernel, symbols: Mapping[str, int]) -> Arrays:
    """Arrays of stored bits for every parameter that the kernel writes, full of values that are never
    stored.
    """
    bound = bind(kernel, symbols)
    return {
        n: poison(bound.buffer(n), tuple(d.as_int() for d in bound.buffer(n).dims)) for n in kernel.written()
    }


def check(case: Case, inputs: Arrays, outputs: Arrays) -> None:
    """Asserts that stored outputs agree with the reference, whose NaN stands for what the program leaves as
    it was."""
    kernel = case.kernel()
    for name, want in case.reference(inputs).items():
        got = np.asarray(from_bits(outputs[name].reshape(-1), kernel.buffer(name).dtype), np.float64).reshape(
            want.shape
        )
        assert np.array_equal(np.isnan(got), np.isnan(want)), (
            f"{case.path.name} %{name}: other elements than stated are written"
        )
        got, want = np.nan_to_num(got), np.nan_to_num(want)
        limit = case.tolerance * max(float(np.abs(want).max(initial=0)), 1e-30)
        worst = float(np.abs(got - want.astype(np.float64)).max(initial=0))
        assert worst <= limit, f"{case.path.name} %{name}: off by {worst}, at most {limit}"


def _normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)


def _segments(rng: np.random.Generator) -> Arrays:
    cuts = np.sort(rng.integers(0, 41, 6))
    return {"x": _normal(rng, 41, 19), "offsets": np.concatenate([[0], cuts, [41]]).astype(np.int32)}


def _segment_sum(a: Arrays) -> Arrays:
    off = a["offsets"].tolist()
    return {
        "y": np.stack([a["x"][lo:hi].sum(0, dtype=np.float64) for lo, hi in zip(off, off[1:], strict=False)])
    }


def _gather_inputs(rng: np.random.Generator) -> Arrays:
    ids = rng.integers(0, 11, 13).astype(np.int32)
    ids[[2, 7]] = (-3, 11)
    return {"table": _normal(rng, 11, 37), "ids": ids}


def _gather(a: Arrays) -> Arrays:
    rows = [a["table"][i] if 0 <= i < 11 else np.full(37, 7.5) for i in a["ids"].tolist()]
    return {"y": np.stack(rows)}


def _scatter_inputs(rng: np.random.Generator) -> Arrays:
    ids = rng.permutation(17)[:13].astype(np.int32)
    ids[5] = 17
    return {"x": _normal(rng, 13, 37), "ids": ids}


def _scatter(a: Arrays) -> Arrays:
    y = np.full((17, 37), np.nan, np.float32)
    ids = a["ids"].astype(np.int64)
    y[ids[ids < 17]] = a["x"][ids < 17]
    return {"y": y}


_U3 = {"codes": (3, "0.8 1.32"), "scale": (16, "0.8")}


def _u3_inputs(rng: np.random.Generator) -> Arrays:
    codes = rng.integers(0, 8, (37, 80)).astype(np.uint8)
    scale = np.repeat(rng.uniform(0.5, 2, (37, 3)).astype(np.float16), 32, axis=1)[:, :80]
    return {
        "w": pack(
            {"codes": codes, "scale": scale}, record((37, 80), "0/8 1/32", _U3), {"codes": 3, "scale": 16}
        )
    }


def _u3_decode(a: Arrays) -> Arrays:
    """Bits read by hand: record (j/8) * 3 + k/32 has 112 bytes, its codes at bit 3 * (32 (j%8) + k%32), then
    scales."""
    y = np.zeros((37, 80))
    for j in range(37):
        for k in range(80):
            one = a["w"][((j // 8) * 3 + k // 32) * 112 :][:112]
            bit = 3 * (32 * (j % 8) + k % 32)
            code = int.from_bytes(one[:97].tobytes(), "little") >> bit & 7
            y[j, k] = (code - 4) * float(one[96 + 2 * (j % 8) :][:2].view(np.float16)[0])
    return {"y": y}


def _lut_inputs(rng: np.random.Generator) -> Arrays:
    return {
        "x": _normal(rng, 7, 45),
        "codes": rng.integers(0, 16, (35, 45)).astype(np.uint8),
        "table": _normal(rng, 16),
    }


def _softmax(a: Arrays) -> Arrays:
    x = a["x"].astype(np.float64)
    e = np.exp(x - x.max(1, keepdims=True))
    return {"y": e / e.sum(1, keepdims=True)}


def _rms_inputs(rng: np.random.Generator) -> Arrays:
    return {"x": bf16_bits(_normal(rng, 5, 77)), "gain": _normal(rng, 77)}


def _rms(a: Arrays) -> Arrays:
    x = bits_to_bf16(a["x"]).astype(np.float64)  # type: ignore[arg-type]
    return {"y": x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * a["gain"]}


def _paged_inputs(rng: np.random.Generator) -> Arrays:
    table = rng.permutation(12).reshape(3, 4).astype(np.int32)
    return {"pages": _normal(rng, 12, 16, 21), "table": table, "len": np.array([53, 0, 32], np.int32)}


def _paged(a: Arrays) -> Arrays:
    y = np.zeros((3, 59, 21), np.float32)
    for b, n in enumerate(a["len"].tolist()):
        rows = a["pages"][a["table"][b]].reshape(-1, 21)
        y[b, :n] = rows[:n]
    return {"y": y}


def _dot_inputs(rng: np.random.Generator, m: int) -> Arrays:
    return {
        "x": rng.integers(-128, 128, (m, 83)).astype(np.int8),
        "w": rng.integers(-128, 128, (35, 83)).astype(np.int8),
    }


def _dot(a: Arrays) -> Arrays:
    return {"y": a["x"].astype(np.int64) @ a["w"].astype(np.int64).T}


CASES: dict[str, Case] = {
    "transpose": Case(
        TILES / "transpose.tile", {"M": 37, "N": 53}, lambda r: {"x": _normal(r, 37, 53)},
        lambda a: {"y": a["x"].T},
    ),
    "dot_i8": Case(TILES / "dot_i8.tile", {"M": 13, "N": 35, "K": 83}, lambda r: _dot_inputs(r, 13), _dot),
    "dot_i8_few": Case(TILES / "dot_i8.tile", {"M": 3, "N": 35, "K": 83}, lambda r: _dot_inputs(r, 3), _dot),
    "cumsum": Case(
        TILES / "cumsum.tile", {"R": 5, "D": 83}, lambda r: {"x": _normal(r, 5, 83)},
        lambda a: {"y": np.cumsum(a["x"], 1, dtype=np.float64)}, 1e-6,
    ),
    "softmax": Case(TILES / "softmax.tile", {"T": 7, "D": 77}, lambda r: {"x": 4 * _normal(r, 7, 77)},
    _softmax, 1e-6),
    "gather": Case(TILES / "gather.tile", {"V": 11, "N": 13, "D": 37}, _gather_inputs, _gather),
    "scatter": Case(TILES / "scatter.tile", {"V": 17, "N": 13, "D": 37}, _scatter_inputs, _scatter),
    "decode_u3": Case(TILES / "decode_u3.tile", {"N": 37, "K": 80}, _u3_inputs, _u3_decode, 1e-7),
    "lut_dot": Case(
        TILES / "lut_dot.tile", {"M": 7, "N": 35, "K": 45}, _lut_inputs,
        lambda a: {"y": a["x"].astype(np.float64) @ a["table"].astype(np.float64)[a["codes"]].T}, 1e-6,
    ),
    "rms_norm": Case(TILES / "rms_norm.tile", {"T": 5, "D": 77}, _rms_inputs, _rms, 4e-3),
    "segment_sum": Case(TILES / "segment_sum.tile", {"N": 41, "D": 19, "S": 7}, _segments, _segment_sum,
    1e-6),
    "paged_copy": Case(TILES / "paged_copy.tile", {"P": 12, "B": 3, "L": 4, "T": 59, "D": 21}, _paged_inputs,
    _paged),
}  # fmt: skip
