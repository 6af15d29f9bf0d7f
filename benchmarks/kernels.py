"""Kernels alone beside the machine's limits: the linear layer at several row counts, norms, attention.

In: nothing but the machine. Out: a table in markdown (or `--json`): microseconds, GFLOP/s, GB/s, share of the
nearer limit. Each kernel is what the compiler makes of a small module, run on buffers that caches do not
hold. Usage: `python benchmarks/kernels.py [--rows 1,4,16,64,512] [--shape 2048x5632]`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from attention import Heads, attention_kernel
from torch import nn

import tilewright as tw
from tilewright.backends.cpp.jit import compile_kernel
from tilewright.backends.cpp.levels import resolve_levels
from tilewright.ir.plan.core import Call, Plan, Program
from tilewright.ir.plan.step import BLOCK, SLICE
from tilewright.ir.tile.core import Kernel
from tilewright.ir.types import evaluate_dim
from tilewright.recipe import Recipe
from tilewright.runtime.limits import Limits, measure_limits
from tilewright.tools.kernel_arrays import kernel_arrays

RECIPES = {"f32": "f32_gflop_s", "bf16": "bf16_gflop_s", "int8": "bf16_gflop_s", "int4": "bf16_gflop_s",
           "w8a8": "int8_gop_s", "w4a8": "int8_gop_s"}  # fmt: skip
#: bytes of buffers that a measurement walks through, so that every run reads memory
SPAN = 256 << 20
MOST = 4096
HEADS = Heads(32, 4, 64)


@dataclass(frozen=True)
class Measured:
    """One kernel at one row count. `share`: of the limit that is nearer, `bound`."""

    kernel: str
    rows: int
    microseconds: float
    gop_s: float
    gb_s: float
    share: float
    bound: str


def program_of(module: nn.Module, width: int, recipe: str | Recipe) -> Program:
    """The module compiled, with `T` rows."""
    rows = torch.export.Dim("T", min=2, max=MOST)
    compiled = tw.compile(
        module, example_inputs=(torch.randn(8, width),), dynamic_shapes=({0: rows},), recipe=recipe
    )
    program: Program = compiled.program
    return program


def calls_of(program: Program, kernel: str) -> Iterator[tuple[Plan, Call]]:
    """The calls of the kernels whose name begins so."""
    for plan in program.plans:
        yield from ((plan, c) for c in plan.calls if c.kernel.startswith(kernel))


def call_for(program: Program, kernel: str, rows: int) -> tuple[Kernel, dict[str, int]]:
    """The first kernel of that name whose conditions hold for so many rows, and its integers."""
    plan, call = next((p, c) for p, c in calls_of(program, kernel) if _holds(c, rows))
    return program.kernel(call.kernel), bound(call, plan, rows)


def copies(arrays: Mapping[str, Any], span: int) -> list[Mapping[str, Any]]:
    """As many sets of these buffers as caches do not hold."""
    size = sum(a.nbytes for a in arrays.values())
    return [{n: a.copy() for n, a in arrays.items()} for _ in range(max(span // size, 2))]


def measure(
    title: str, program: Program, name: str, rows: int, ops: float, peak: str, threads: int, limits: Limits
) -> Measured:
    """Time the first kernel of that name whose conditions hold for so many rows."""
    return timed(title, *call_for(program, name, rows), {}, rows, (ops, peak), threads, limits)


def attention(context: int, rows: int, threads: int, limits: Limits) -> Measured:
    """The last `rows` tokens of a context over the cache."""
    blocks = [[r, min(BLOCK, rows - r), 0, context - rows + r] for r in range(0, rows, BLOCK)]
    symbols = {"T": rows, "NB": len(blocks), "slots": 1}
    seen = sum(context - rows + r + 1 for r in range(rows))
    work = (4.0 * seen * HEADS.query * HEADS.dim, "bf16_gflop_s")
    given = {"blocks": np.array(blocks, np.int32), "home": np.zeros((1, context // SLICE), np.int32)}
    title = f"attention after {context - rows}"
    return timed(
        title, attention_kernel(HEADS, context, rows == 1), symbols, given, rows, work, threads, limits
    )


def timed(
    title: str, kernel: Kernel, symbols: Mapping[str, int], given: Mapping[str, Any], rows: int,
    work: tuple[float, str],
    threads: int, limits: Limits,
) -> Measured:  # fmt: skip
    """`work`: operations, and the limit that they have."""
    ops, peak = work
    arrays = kernel_arrays(kernel, symbols, given, 0)
    size = sum(a.nbytes for a in arrays.values())
    sets = copies(arrays, SPAN)
    built = compile_kernel(kernel, resolve_levels("native")[-1].name)
    seconds = built.bench(sets, symbols, threads, best_of=5)
    known = limits.as_dict()
    compute, memory = (
        ops / 1e9 / float(known[peak] or known["f32_gflop_s"] or 1),
        size / 1e9 / limits.dram_gb_s,
    )
    limit, which = max((compute, peak.split("_")[0]), (memory, "memory"))
    return Measured(
        title, rows, 1e6 * seconds, ops / seconds / 1e9, size / seconds / 1e9, limit / seconds, which
    )


def _holds(call: Call, rows: int) -> bool:
    return all(
        c.holds({n: evaluate_dim(d, {"T": rows}) for n, d in call.symbols} | {"T": rows}) for c in call.when
    )  # type: ignore[arg-type]


def bound(call: Call, plan: Plan, rows: int) -> dict[str, int]:
    """The kernel's integers when the step has so many rows."""
    free = {str(d) for v in plan.inputs for d in v.type.shape if not isinstance(d, int)}
    return {n: evaluate_dim(d, dict.fromkeys(free, rows)) for n, d in call.symbols}  # type: ignore[arg-type]


def table(found: Sequence[Measured]) -> Iterator[str]:
    yield "| kernel | rows | µs | Gop/s | GB/s | share of the nearer limit |\n|---|---|---|---|---|---|"
    for m in found:
        rates = f"{m.microseconds:,.1f} | {m.gop_s:,.0f} | {m.gb_s:.1f}"
        yield f"| {m.kernel} | {m.rows} | {rates} | {100 * m.share:.0f}% of {m.bound} |"


def all_measured(args: argparse.Namespace, limits: Limits) -> Iterator[Measured]:
    k, n = (int(x) for x in args.shape.split("x"))
    torch.manual_seed(0)
    for recipe in args.recipes.split(","):
        program = program_of(nn.Linear(k, n, bias=False), k, recipe)
        for rows in args.rows:
            yield measure(
                f"linear {recipe}",
                program,
                "linear",
                rows,
                2.0 * rows * k * n,
                RECIPES[recipe],
                args.threads,
                limits,
            )
    norm = program_of(nn.RMSNorm(k, eps=1e-5), k, "bf16")
    for rows in args.rows:
        yield measure("rms_norm", norm, "rms_norm", rows, 4.0 * rows * k, "f32_gflop_s", args.threads, limits)
    for context, rows in ((256, 1), (MOST, 1), (512, 512), (MOST, 512)):
        yield attention(context, rows, args.threads, limits)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kernels alone beside the machine's limits.")
    parser.add_argument("--rows", type=lambda t: [int(x) for x in t.split(",")], default=[1, 4, 16, 64, 512])
    parser.add_argument("--shape", default="2048x5632", metavar="KxN", help="of the linear layer")
    parser.add_argument("--recipes", default="bf16,int8,int4,w8a8,w4a8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    limits = measure_limits(args.threads)
    found = list(all_measured(args, limits))
    print(
        json.dumps({"limits": limits.as_dict(), "kernels": [asdict(m) for m in found]}, indent=1)
        if args.json
        else "\n".join(table(found))
    )


if __name__ == "__main__":
    main()
