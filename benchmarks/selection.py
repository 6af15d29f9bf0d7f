"""Attention of one row over blocks that its query selects, beside attention over everything.

In: nothing but the machine. Out: a table in markdown: for every selection the microseconds of scoring,
choosing and attending, and how many times less that is than attention over all rows of a cache of the same
encoding. The kernels are those that a compile makes; they take turns, and medians are compared. Keys and
queries are random, so the chosen blocks lie apart.

Usage: `python benchmarks/selection.py [--context 32768] [--budget 2048] [--heads 32/4x64] [--kv
"bf16;int8(token)"] [--select "bound(block=64, pool=max);mean(block=16, pool=sum)"]`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from attention import Case, Heads, attention_arrays, attention_kernel, encodings

from tilewright.backends.cpp.jit import compile_kernel
from tilewright.backends.cpp.levels import resolve_levels
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Module, State
from tilewright.ir.plan.core import Program
from tilewright.ir.selection import parse_selection
from tilewright.ir.tile.core import Buffer
from tilewright.ir.types import tensor
from tilewright.passes.driver import run_passes

#: bytes that the measured kernels read before they come back to the same memory
SPAN = 96 << 20
#: kernels of a step of single tokens, in order
KERNELS = ("score_blocks", "choose_blocks", "attend")


@dataclass
class Selected:
    """The kernels of one selection."""

    name: str
    parts: Sequence[Case]

    @property
    def seconds(self) -> float:
        return sum(c.seconds for c in self.parts)

    @property
    def busy(self) -> float:
        return sum(c.busy for c in self.parts)


def step_program(heads: Heads, context: int, kv: str, select: str) -> Program:
    """The kernels of attention over chosen blocks, as a compile makes them."""
    b = GraphBuilder("step")
    b.symbol("T", 1, 512)
    b.symbol("NB", 1, 512)
    q = b.add_input("q", tensor("f32", "T", heads.query, heads.dim))
    seq, pos = b.add_input("seq", tensor("i32", "T")), b.add_input("pos", tensor("i32", "T"))
    blocks, choices = (
        b.add_input("blocks", tensor("i32", "NB", 4)),
        b.add_input("choices", tensor("i32", "T", 3)),
    )
    keys, values = encodings(kv)
    chosen = parse_selection(select)
    state = State("kv.0", heads.kv, heads.dim, heads.dim, keys, values, context, select=chosen)
    cache, how = b.state(state), {"heads": heads.query, "kv_heads": heads.kv}
    b.multi("score_blocks", cache, q, seq, pos, choices, as_=[], **how)
    b.multi("choose_blocks", cache, seq, pos, choices, as_=[])
    scale = heads.dim**-0.5
    b.output(b.op("attend_blocks", cache, q, seq, pos, blocks, choices, scale=scale, **how), "y")
    module: Module = run_passes(b.module(), "canonicalize, fuse").module
    return run_passes(module, "lower, expand-encodings, plan-memory").program


def arrays_of(heads: Heads, context: int, kv: str, select: str, budget: int) -> dict[str, np.ndarray]:
    """Buffers of one token at the end of the context that reads `budget` tokens."""
    found, chosen = attention_arrays(heads, context, kv), parse_selection(select)
    blocks = chosen.blocks(context)
    width = len(chosen.formula.summary) * heads.dim
    more = {
        "seq": np.zeros(1, np.int32), "pos": np.full(1, context - 1, np.int32),
        "choices": np.array([[budget // chosen.block, 1, 2]], np.int32),
        "summary": np.zeros(heads.kv * -(-blocks // 16) * 16 * width, np.uint16),
        "seen": np.zeros((1, heads.kv), np.int32), "worth": np.zeros((1, heads.kv, blocks), np.float32),
        "list": np.zeros((1, heads.kv, blocks, 2), np.int32), "runs": np.zeros((1, heads.kv), np.int32),
    }  # fmt: skip
    return found | more


def selected(heads: Heads, context: int, kv: str, select: str, budget: int, sets: int) -> Selected:
    program, level = step_program(heads, context, kv, select), resolve_levels("native")[-1].name
    held = [arrays_of(heads, context, kv, select, budget)]
    held += [{n: a.copy() for n, a in held[0].items()} for _ in range(sets - 1)]
    cases = []
    for name in KERNELS:
        kernel = compile_kernel(next(k for k in program.kernels if k.name == name), level)
        used = [_by_parameter(kernel.kernel.params, arrays) for arrays in held]
        for arrays in used:  # makes the summaries, and what the next kernel reads
            kernel(arrays, dict.fromkeys(kernel.kernel.symbols, 1))
        cases.append(Case(name, kernel, used, 0))
    return Selected(f"{kv}, {select}", cases)


def _by_parameter(params: Sequence[Buffer], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {b.name: arrays[b.name] for b in params}


def table(full: Case, found: Sequence[Selected]) -> Iterator[str]:
    for s in found:
        clock = " + ".join(f"{1e6 * c.seconds:.0f}" for c in s.parts)
        yield (
            f"| {s.name} | {1e6 * full.seconds:.0f} | {clock} | {full.seconds / s.seconds:.1f} "
            f"| {full.busy / s.busy:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", default="32/4x64")
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--budget", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kv", default="bf16;int8(token)", help="encodings, divided by ;")
    parser.add_argument("--select", default="bound(block=64, pool=max);mean(block=16, pool=sum)")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    heads = Heads.parse(args.heads)
    print(f"{heads}, {args.context} tokens of which {args.budget} are read, {args.threads} threads\n")
    print("| cache and selection | all µs | score + choose + attend µs | ratio | ratio of CPU time |")
    print("|---|---|---|---|---|")
    for kv in args.kv.split(";"):
        one = attention_arrays(heads, args.context, kv)
        size = one["k"].nbytes + one["v"].nbytes
        sets = max(SPAN * args.context // args.budget // size // 8, 3)
        kernel = compile_kernel(
            attention_kernel(heads, args.context, True, kv), resolve_levels("native")[-1].name
        )
        used = [_by_parameter(kernel.kernel.params, one) for _ in range(1)]
        full = Case(kv, kernel, [{n: a.copy() for n, a in used[0].items()} for _ in range(3)], size)
        chosen = [
            selected(heads, args.context, kv, s.strip(), args.budget, sets) for s in args.select.split(";")
        ]
        for _ in range(args.rounds):
            for c in (full, *(c for s in chosen for c in s.parts)):
                c.run(args.threads)
        print("\n".join(table(full, chosen)), flush=True)


if __name__ == "__main__":
    main()
