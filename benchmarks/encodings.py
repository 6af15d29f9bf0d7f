"""Every weight encoding at one row: time per byte of weights relative to `int4(group=32)`, int8 activations.

In: nothing but the machine. Out: a table in markdown. Each kernel is what the compiler makes of one linear
layer, run on buffers that caches do not hold, interleaved with the int4 kernel; a ratio of 1 says that it
reads memory as fast. Usage: `python benchmarks/encodings.py [--encodings "nf4;fp8(e4m3)"] [--activations
bf16] [--shape 2048x5632] [--rows 1]`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from kernels import call_for, copies, program_of
from torch import nn

from tilewright.backends.cpp.jit import Compiled, compile_kernel
from tilewright.backends.cpp.levels import resolve_levels
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.encodings.blocked import Blocked
from tilewright.recipe import Recipe
from tilewright.tools.kernel_arrays import kernel_arrays

REFERENCE = ("int4(group=32)", "int8(token)")
EVERY = (
    "int8(channel)", "int8(group=32)", "int7(group=32)", "int6(group=32)", "int5(group=32)", "int4(channel)",
    "int4(group=32)",
    "int4(group=128)", "int4(group=32, asym)", "int4(group=32, min)", "int4(group=32, scale=int8)",
    "int3(group=32)",
    "int3(group=64)", "int2(group=32)", "int2(group=64)", "int1(group=64)", "fp8(e4m3)", "fp8(e5m2)",
    "fp6(e2m3)", "fp6(e3m2)",
    "fp4", "mxfp8(e4m3)", "mxfp6(e2m3)", "mxfp6(e3m2)", "mxfp4", "nvfp4", "nf4", "nf4(double)", "codebook4",
    "codebook3",
    "codebook2", "planes1(group=64)", "planes2(group=64)", "planes3(group=64)", "planes4(group=64)", "q4_0",
    "q4_1", "q5_0",
    "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
    "int3(group=64) + sparse(0.5%)", "int4(group=32) + sparse(0.5%)",
)  # fmt: skip
#: bytes of buffers that a measurement walks through
SPAN = 192 << 20


@dataclass
class Case:
    """A kernel ready to run: bits of a weight, bytes it reads, its buffers, how long it took to make."""

    title: tuple[str, str]
    bits: float
    size: int
    kernel: Compiled
    sets: list[Mapping[str, Any]]
    symbols: dict[str, int]
    built: float

    def seconds(self, threads: int) -> float:
        return self.kernel.bench(self.sets, self.symbols, threads, best_of=3)


def case(encoding: str, activations: str, k: int, n: int, rows: int, level: str) -> Case:
    start = time.perf_counter()
    recipe = Recipe("bench", weights=encoding, activations=activations)
    kernel, symbols = call_for(program_of(nn.Linear(k, n, bias=False), k, recipe), "linear", rows)
    arrays = kernel_arrays(kernel, symbols, {}, 0)
    weight, size = max(a.nbytes for a in arrays.values()), sum(a.nbytes for a in arrays.values())
    built, sets = compile_kernel(kernel, level), copies(arrays, SPAN)
    return Case(
        (encoding, activations), 8 * weight / (k * n), size, built, sets, symbols, time.perf_counter() - start
    )


def natural(encoding: str) -> str:
    """int8 activations where units are integers, bf16 otherwise."""
    e = parse_encoding(encoding)
    return "int8(token)" if isinstance(e, Blocked) and e.zero is not None else "bf16"


def rows_of(args: argparse.Namespace) -> Iterator[tuple[Case, float, float]]:
    """Each case, its GB/s, and its time per byte over that of the reference."""
    k, n = (int(x) for x in args.shape.split("x"))
    known = case(*REFERENCE, k, n, args.rows, args.level)
    for encoding in args.encodings or EVERY:
        found = case(encoding, args.activations or natural(encoding), k, n, args.rows, args.level)
        pairs = [(found.seconds(args.threads), known.seconds(args.threads)) for _ in range(args.repeats)]
        mine, reference = (median(x) for x in zip(*pairs, strict=True))
        yield found, found.size / mine / 1e9, (mine / found.size) / (reference / known.size)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--encodings", type=lambda t: t.split(";"), help="separated by semicolons (default: all)"
    )
    parser.add_argument(
        "--activations", default="", help="default: int8(token) where units are integers, else bf16"
    )
    parser.add_argument("--shape", default="2048x5632", metavar="KxN", help="of the linear layer")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--level", default=resolve_levels("native")[-1].name)
    args = parser.parse_args()
    np.random.seed(0)
    print(
        "| weights | activations | bits | GB/s | time per byte, int4 = 1 | build s "
        "|\n|---|---|---|---|---|---|"
    )
    for c, rate, ratio in rows_of(args):
        print(
            f"| {c.title[0]} | {c.title[1]} | {c.bits:.2f} | {rate:.1f} | {ratio:.2f} | {c.built:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
