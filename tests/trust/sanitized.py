"""A program's library as an executable under AddressSanitizer, with separate memory per argument.

In: a program (verified or not), a folder with its weights. Out: what running it came to. Objects are kept by
content in a folder, so mutants that share kernels share their builds. Baseline code shows most: masked vector
instructions are not instrumented.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tilewright.backends.cpp.build import native_headers
from tilewright.backends.cpp.isa import TARGETS, prelude
from tilewright.backends.cpp.isa.prelude import GUARD, common
from tilewright.backends.cpp.libraries import exported, rendered
from tilewright.backends.cpp.plan import render_step
from tilewright.backends.cpp.sizes import sizes_of_calls
from tilewright.backends.cpp.target import Target
from tilewright.backends.storage import place_weights, state_streams
from tilewright.ir.plan.bounds import Stored
from tilewright.ir.plan.core import UNBOUNDED, Plan, Program, plan_symbols
from tilewright.ir.plan.dim_bounds import polynomial
from tilewright.ir.plan.step import STEP, STEP_INPUTS
from tilewright.ir.types import TensorType

BASELINE = TARGETS["baseline"]
FLAGS = (
    "-O0",
    "-std=c++17",
    "-fsanitize=address",
    # Kernels hand no address out of its block, and looking for that takes most of the compiler's time.
    "-fno-sanitize-address-use-after-scope",
    "-fno-omit-frame-pointer",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-w",
    "-fopenmp",
)
#: tokens, how many of them are of the first sequence, rows of logits: a prompt of two sequences, then one
#: token each, then no row
STEPS = ((12, 3, 2), (2, 1, 2), (1, 1, 0))
#: longest source of a kernel that is built, and seconds an executable may run
LINES, SECONDS = 6500, 60
INPUT, BUFFER, WEIGHT, STREAM = range(4)


class TooLong(Exception):
    """A kernel whose source is too long to build here."""


@dataclass(frozen=True)
class Ran:
    """`code` 0: nothing found; 3: results differ; 99: ASan reports; -1: too slow; -9: out of memory. `said`:
    the last output."""

    code: int
    said: str

    @property
    def finding(self) -> bool:
        return self.code not in (0, -1, -9)

    @property
    def sets(self) -> int:
        """Sets of symbols that ran to their end."""
        return self.said.count("ran set")


def run(program: Program, weights: Path, work: Path, shrink: int = 0, target: Target = BASELINE) -> Ran:
    """Build and run. `shrink`: take so many bytes from every temporary, to see that overruns are noticed."""
    executable = build(program, work, shrink, target)
    env = {
        **{
            name: value for name, value in os.environ.items() if name != "TW_POISON"
        },  # it writes between the buffers
        "ASAN_OPTIONS": "exitcode=99:detect_leaks=0:allocator_may_return_null=1:handle_sigfpe=1",
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            [executable, weights],
            capture_output=True,
            text=True,
            errors="replace",
            env=env,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Ran(-1, "too slow")
    finally:
        executable.unlink()
    return Ran(done.returncode, (done.stdout + done.stderr)[:4000])


def build(program: Program, work: Path, shrink: int = 0, target: Target = BASELINE) -> Path:
    work.mkdir(parents=True, exist_ok=True)
    called = sizes_of_calls(program)
    kernels = [exported(rendered(k, target, called.get(k.name, {})), k.name) for k in program.kernels]
    if any(text.count("\n") > LINES for text in kernels):
        raise TooLong
    main = "\n".join([
        '#include "tw_tables.h"', render_step(program, target, linkage="extern"), tables(program, shrink),
        (Path(__file__).parent / "asan_main.h").read_text(),
    ])  # fmt: skip
    objects = [_object(prelude(target, text) + text, work, target) for text in kernels] + [
        _object(main, work, target)
    ]
    out = work / f"run-{os.getpid()}"
    _gcc([*FLAGS, *map(str, objects), "-o", str(out)])
    return out


def _object(source: str, work: Path, target: Target) -> Path:
    key = hashlib.sha256((target.name + "\n" + source).encode()).hexdigest()
    path = work / f"{key[:24]}.o"
    if not path.exists():
        text = path.with_suffix(f".{os.getpid()}.cpp")
        text.write_text(source)
        partial = path.with_suffix(f".{os.getpid()}.o")
        before = _header(work, target) if GUARD in source else ()
        _gcc([*FLAGS, *target.flags, *before, f"-I{native_headers()}", "-c", str(text), "-o", str(partial)])
        text.unlink()
        partial.rename(path)
    return path


def _header(work: Path, target: Target) -> Sequence[str]:
    """Arguments that put the level's precompiled header before a kernel, as builds of libraries do."""
    header = work / f"{target.name}.h"
    made = header.with_suffix(".h.gch")
    if not made.exists():
        partial = header.with_suffix(f".{os.getpid()}.h")
        partial.write_text(common(target))
        _gcc([*FLAGS, *target.flags, "-x", "c++-header", str(partial), "-o", f"{partial}.gch"])
        partial.rename(header)
        Path(f"{partial}.gch").rename(made)
    return ("-include", str(header))


def _gcc(arguments: Sequence[str]) -> None:
    done = subprocess.run(["g++", *arguments], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise RuntimeError(f"the C++ compiler fails on what was verified:\n{done.stderr[:3000]}")


# ------------------------------------------------------------------ tables
def tables(program: Program, shrink: int) -> str:
    """What `asan_main.h` reads: sizes of everything for each set of symbols, and which memory each call is
    given."""
    plan = program.plans[0]
    sets = symbol_sets(program)
    names, kinds, places, rooms, types = _memories(program, plan)
    results = [ref for _, ref in plan.outputs]
    less = [shrink if k == BUFFER and n not in results else 0 for n, k in zip(names, kinds, strict=True)]
    sizes = [[max(_bytes(t, s) - x, 0) for t, x in zip(types, less, strict=True)] for s in sets]
    index = {n: i for i, n in enumerate(names)}
    order = [n for n, _ in plan_symbols(program)]
    step = plan.name == STEP
    inputs = [v.name for v in plan.inputs]
    by_name = [f"in[{inputs.index(n)}]" if n in inputs else "h_take(4096, 0)" for n in STEP_INPUTS]
    kind = f"H_INPUT, H_BUFFER, H_WEIGHT, H_STREAM, H_MEMS = {len(names)}, H_SETS = {len(sets)}"
    return "\n".join([
        f"enum {{ {kind}, H_SEQUENCES = {2 if program.states else 0} }};",
        _table("int64_t", f"h_symbols[{len(sets)}][TW_NSYMBOLS + 1]",
        [_row([s[n] for n in order]) for s in sets]),
        _table("int64_t", f"h_bytes[{len(sets)}][{max(len(names), 1)}]", [_row(x) for x in sizes]),
        _table("int", "h_kind[]", kinds), _table("int64_t", "h_places[]", places),
        _table("int64_t", "h_rooms[]", rooms),
        _table("int", "h_args[]", [index[a] for c in plan.calls for a in c.args] or [0]),
        _table("int", "h_inputs[]", [index["%" + n] for n in inputs] or [0]),
        _table("int", "h_outputs[]", [index[ref] for _, ref in plan.outputs] or [0]),
        _table("int", "h_steps[][3]", [_row(x) for x in STEPS]),
        f"#define H_STEP_INPUTS {', '.join(by_name) if step else '0'}",
    ])  # fmt: skip


def _memories(
    program: Program, plan: Plan
) -> tuple[list[str], list[int], list[int], list[int], list[TensorType]]:
    """Everything that calls may be given: name, kind, place (of a stream: its number), room in the arena,
    type."""
    rows: list[tuple[str, int, int, int, TensorType]] = [
        ("%" + v.name, INPUT, 0, 0, v.type) for v in plan.inputs
    ]
    rows += [("%" + b.name, BUFFER, b.offset, b.nbytes, b.type) for b in plan.buffers]
    rows += [("@" + p.name, WEIGHT, p.offset, 0, p.type) for p in place_weights(program.weights)[0]]
    streams = [s.name for state in program.states for s in state_streams(state)]
    rows += [("@" + n, STREAM, i, 0, TensorType("u8", ())) for i, n in enumerate(streams)]
    names, kinds, places, rooms, types = (list(x) for x in zip(*rows, strict=True))
    return names, kinds, places, rooms, types  # type: ignore[return-value]


def symbol_sets(program: Program) -> list[dict[str, int]]:
    """Values of the symbols: those of the steps; of any other plan the least, the most, and some between."""
    ranges = {n: (r.lo, UNBOUNDED if r.hi is None else r.hi) for n, r in plan_symbols(program)}
    if program.plans[0].name == STEP:
        blocks = [_blocks(*s[:2]) for s in STEPS]
        known = [
            {"T": n, "R": rows, "NB": len(b), "Q": max(b), "slots": 4}
            for (n, _, rows), b in zip(STEPS, blocks, strict=True)
        ]
        return [{n: k.get(n, 0) for n in ranges} for k in known]
    between = [{n: min(max(lo, want), hi) for n, (lo, hi) in ranges.items()} for want in (0, 1, 3, 4, 5, 17)]
    every = [*between, {n: min(hi, 64) if lo <= 64 else lo for n, (lo, hi) in ranges.items()}]
    return [s for n, s in enumerate(every) if s not in every[:n]]


def _blocks(tokens: int, first: int) -> list[int]:
    return [min(8, n - i) for n in (first, tokens - first) for i in range(0, n, 8)]


def _bytes(t: TensorType, symbols: Mapping[str, int]) -> int:
    dtype, encoding = t.stored
    return Stored(tuple(map(polynomial, t.shape)), dtype, encoding).most(
        {n: (v, v) for n, v in symbols.items()}
    )


def _row(values: Sequence[int]) -> str:
    return "{" + ", ".join(map(str, values)) + "}"


def _table(kind: str, name: str, rows: Sequence[object]) -> str:
    return f"static const {kind} {name} = {{{', '.join(map(str, rows))}}};"
