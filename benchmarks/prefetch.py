"""Whether software prefetching pays on this processor: single-row kernels with and without it.

In: nothing but the machine. Out: a table in markdown: microseconds with and without, and which of the two
libraries choose here as they are loaded. Runs interleave; medians. Usage: `python benchmarks/prefetch.py
[--recipes bf16,w4a8] [--threads 1,2]`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from attention import attention_kernel
from kernels import HEADS, SPAN, call_for, copies, program_of
from torch import nn

from tilewright.backends.cpp.jit import Compiled, compile_kernel
from tilewright.backends.cpp.levels import resolve_levels
from tilewright.ir.plan.step import SLICE
from tilewright.ir.tile.core import Kernel
from tilewright.runtime.cpu import cpu_name
from tilewright.tools.kernel_arrays import kernel_arrays

#: context that attention walks
CONTEXT = 4096


@dataclass
class Case:
    """One kernel on buffers that caches do not hold; microseconds by (threads, fetching ahead)."""

    name: str
    kernel: Compiled
    sets: Sequence[Mapping[str, Any]]
    symbols: Mapping[str, int]
    found: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    def run(self, threads: int, on: int) -> None:
        self.kernel.library.set_ahead(on)
        seconds = self.kernel.bench(self.sets, self.symbols, threads, best_of=2)
        self.found.setdefault((threads, on), []).append(1e6 * seconds)

    def median(self, threads: int, on: int) -> float:
        return statistics.median(self.found[threads, on])


def case(name: str, kernel: Kernel, symbols: Mapping[str, int], given: Mapping[str, Any]) -> Case:
    sets = copies(kernel_arrays(kernel, symbols, given, 0), SPAN)
    return Case(name, compile_kernel(kernel, resolve_levels("native")[-1].name), sets, symbols)


def cases(recipes: Sequence[str], k: int, n: int) -> Iterator[Case]:
    for recipe in recipes:
        torch.manual_seed(0)
        program = program_of(nn.Linear(k, n, bias=False), k, recipe)
        yield case(f"linear {recipe}", *call_for(program, "linear", 1), {})
    last = {"blocks": np.array([[0, 1, 0, CONTEXT - 1]], np.int32)}
    last["home"] = np.zeros((1, CONTEXT // SLICE), np.int32)
    yield case(
        f"attention after {CONTEXT - 1}",
        attention_kernel(HEADS, CONTEXT, True),
        {"T": 1, "NB": 1, "slots": 1},
        last,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Kernels of one row with and without fetching ahead.")
    parser.add_argument("--recipes", default="bf16,int8,w8a8,w4a8")
    parser.add_argument("--shape", default="2048x5632", metavar="KxN", help="of the linear layer")
    parser.add_argument("--threads", default="1,2", help="comma-separated")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    k, n = (int(x) for x in args.shape.split("x"))
    threads = [int(t) for t in args.threads.split(",")]
    found = list(cases(args.recipes.split(","), k, n))
    chosen = found[0].kernel.library.ahead()
    for _ in range(args.repeats):
        for c in found:
            for t in threads:
                c.run(t, 1)
                c.run(t, 0)
    print(f"{cpu_name()}: fetches ahead by default: {'yes' if chosen else 'no'}\n")
    print("| kernel, one row | threads | ahead, µs | not, µs | not / ahead |\n|---|---|---|---|---|")
    for c in found:
        for t in threads:
            on, off = c.median(t, 1), c.median(t, 0)
            print(f"| {c.name} | {t} | {on:,.1f} | {off:,.1f} | {off / on:.2f} |")


if __name__ == "__main__":
    main()
