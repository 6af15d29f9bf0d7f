"""Attention over the cache, one row of queries: encodings beside bf16, and this compiler beside another.

In: nothing but the machine. Out: a table in markdown: microseconds of processor time and by the clock, their
ratios to the first row, what is read per second and its share of the bandwidth measured in the same run.
Measurements take turns, and medians are compared, so that a busy machine disturbs all alike.

Usage: `python benchmarks/attention.py [--context 8192] [--threads 1] [--heads 32/4x64,32/8x128]
[--kv "bf16;int8(token);int4(token)"] [--against COMMIT]`.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import tilewright.ir.encodings  # noqa: F401  registers the built-in encodings
from tilewright.backends.base import KernelUse
from tilewright.backends.cpp.jit import Compiled, compile_kernel
from tilewright.backends.cpp.levels import resolve_levels
from tilewright.backends.cpp.schedules import schedules
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.plan.step import SLICE
from tilewright.ir.tile.builder import KernelBuilder
from tilewright.ir.tile.core import Buffer, Kernel
from tilewright.ir.tile.expand import expand_encodings
from tilewright.passes.lower.attention import Attention, Buffers, build_attention

ROOT = Path(__file__).resolve().parent.parent
#: import names of the folders at the repository's root
FOLDERS = {"": "compiler", "ir": "ir", "passes": "passes", "backends": "backends", "runtime": "runtime"}
#: bytes of buffers that a measurement walks through, so that every run reads memory
SPAN = 256 << 20

ROUNDS = 7


@dataclass(frozen=True)
class Heads:
    """Query heads, KV heads, width of one."""

    query: int
    kv: int
    dim: int

    @classmethod
    def parse(cls, text: str) -> Heads:
        """`32/4x64`."""
        query, rest = text.split("/")
        kv, dim = rest.split("x")
        return cls(int(query), int(kv), int(dim))

    def __str__(self) -> str:
        return f"{self.query}/{self.kv} heads of {self.dim}"


@dataclass
class Case:
    """One kernel on buffers that caches do not hold; `found`: seconds per call, by the clock and of
    processors."""

    name: str
    kernel: Compiled
    sets: Sequence[Mapping[str, Any]]
    size: int
    found: list[tuple[float, float]] = field(default_factory=list)

    def run(self, threads: int) -> None:
        symbols, before = dict.fromkeys(self.kernel.kernel.symbols, 1), time.process_time()
        seconds = self.kernel.bench(self.sets, symbols, threads, best_of=1)
        calls = 2 * len(self.sets)  # one more round comes first
        self.found.append((seconds, (time.process_time() - before) / calls))

    @property
    def seconds(self) -> float:
        return statistics.median(s for s, _ in self.found)

    @property
    def busy(self) -> float:
        return statistics.median(c for _, c in self.found)


def encodings(kv: str) -> list[Any]:
    """Keys and values of `KEYS / VALUES`, as caches lay them out."""
    parts = kv.rpartition("+ recent")[0].split("/") if "+ recent" in kv else kv.split("/")
    return [
        parse_encoding(t).arranged(o) for t, o in zip((parts[0], parts[-1]), ("keys", "values"), strict=True)
    ]


def attention_kernel(heads: Heads, context: int, single: bool, kv: str = "bf16") -> Kernel:
    """What decoding (`single`) or prefill calls for such a cache, with the backend's schedule."""
    b = KernelBuilder("attend")
    keys, values = encodings(kv)
    cache, rows = ("slots", heads.kv, context, heads.dim), ("T", heads.query, heads.dim)
    makers: dict[str, Callable[[], Buffer]] = {
        "q": lambda: b.param("q", "f32", rows),
        "blocks": lambda: b.param("blocks", "i32", ("NB", 4)),
        "k": lambda: b.param("k", "f32", cache, keys),
        "v": lambda: b.param("v", "f32", cache, values),
        "home": lambda: b.param("home", "i32", ("slots", context // SLICE)),
        "o": lambda: b.param("o", "f32", rows),
    }
    names = [f.name for f in dataclasses.fields(Buffers) if f.name in makers]
    buffers = Buffers(**{n: makers[n]() for n in names})
    if "+ recent" in kv:
        from tilewright.ir.encoding_registry import recent_rows
        from tilewright.passes.lower.attention import Recent

        sides = zip(("recent_k", "recent_v"), encodings("bf16"), strict=True)
        exact = [b.param(n, "f32", cache, e) for n, e in sides]
        buffers = dataclasses.replace(buffers, recent=Recent(*exact, recent_rows(kv)[1]))
    shape = Attention(heads.query, heads.kv, heads.dim, heads.dim, heads.dim**-0.5)
    work = build_attention(b, shape, buffers, single)
    kernel = expand_encodings(b.build())
    return dataclasses.replace(kernel, schedules=schedules(kernel, KernelUse(work, (), ("k", "v"))))


def attention_arrays(heads: Heads, context: int, kv: str) -> dict[str, np.ndarray]:
    """Buffers of one row of queries at the end of the context."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, heads.kv, context, heads.dim)).astype(np.float32)
    row = rng.standard_normal((1, heads.query, heads.dim)).astype(np.float32)
    packed = [e.pack(e.encode(x), x.shape) for e in encodings(kv)]
    blocks = np.array([[0, 1, 0, context - 1]], np.int32)
    home = np.zeros((1, context // SLICE), np.int32)
    k, v = packed
    exact = {n: e.pack(e.encode(x), x.shape) for n, e in zip(("recent_k", "recent_v"), encodings("bf16"))}
    return {"q": row, "blocks": blocks, "k": k, "v": v, "home": home, "o": np.zeros_like(row), **exact}


def case(name: str, kernel: Compiled, heads: Heads, context: int, kv: str) -> Case:
    arrays = attention_arrays(heads, context, kv)
    used = {b.name: arrays[b.name] for b in kernel.kernel.params}
    size = arrays["k"].nbytes + arrays["v"].nbytes
    sets = [{n: a.copy() for n, a in used.items()} for _ in range(max(SPAN // size, 2))]
    return Case(name, kernel, sets, size)


# ------------------------------------------------------------------ another commit
def at_commit(commit: str, heads: Heads, context: int, kv: str) -> Compiled:
    """The kernel of another commit of this repository, made by that commit's compiler."""
    with tempfile.TemporaryDirectory() as work:
        tree = Path(work) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(tree), commit], check=True)
        try:
            return _made_in(tree, Path(work), heads, context, kv)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def _made_in(tree: Path, work: Path, heads: Heads, context: int, kv: str) -> Compiled:
    package = work / "package" / "tilewright"
    package.mkdir(parents=True)
    for p in (tree / "compiler").iterdir():
        (package / p.name).symlink_to(p)
    for name, folder in FOLDERS.items():
        if name and not (package / name).exists():
            (package / name).symlink_to(tree / folder)
    env = os.environ | {"PYTHONPATH": str(package.parent)}
    ask = [sys.executable, __file__, "--dump", json.dumps([dataclasses.astuple(heads), context, kv])]
    done = subprocess.run(ask, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{tree}: {done.stderr[-2000:]}")
    path, names = json.loads(done.stdout.splitlines()[-1])
    mine = attention_kernel(heads, context, True, kv)
    params = tuple(b for n in names for b in mine.params if b.name == n)
    return Compiled(dataclasses.replace(mine, params=params), "", ctypes.CDLL(path))


def dump(heads: Heads, context: int, kv: str) -> None:
    """Compile the kernel and print where its library is and what its parameters are."""
    kernel = attention_kernel(heads, context, True, kv)
    built = compile_kernel(kernel, resolve_levels("native")[-1].name)
    print(json.dumps([built.library._name, [b.name for b in kernel.params]]))


# ------------------------------------------------------------------ the table
def cases(heads: Heads, context: int, kvs: Sequence[str], against: str) -> Iterator[Case]:
    level = resolve_levels("native")[-1].name
    for kv in kvs:
        yield case(kv, compile_kernel(attention_kernel(heads, context, True, kv), level), heads, context, kv)
        if against:
            yield case(f"{kv} at {against}", at_commit(against, heads, context, kv), heads, context, kv)


def bandwidth(threads: int) -> float:
    from tilewright.runtime.limits import measure_limits

    return measure_limits(threads=threads, seconds=0.1, mib=128).dram_gb_s


def table(heads: Heads, context: int, found: Sequence[Case], limit: float) -> Iterator[str]:
    yield f"\n{heads}, {context} tokens; memory gives {limit:.1f} GB/s\n"
    yield "| cache | CPU µs | ratio | clock µs | ratio | GB/s | share of the bandwidth |"
    yield "|---|---|---|---|---|---|---|"
    for c in found:
        rate = c.size / c.seconds / 1e9
        yield (
            f"| {c.name} | {1e6 * c.busy:.0f} | {found[0].busy / c.busy:.2f} "
            f"| {1e6 * c.seconds:.0f} | {found[0].seconds / c.seconds:.2f} "
            f"| {rate:.1f} | {100 * rate / limit:.0f}% |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", default="32/4x64,32/8x128")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kv", default="bf16;int8(token);int4(token)", help="encodings, divided by ;")
    parser.add_argument("--against", default="", metavar="COMMIT")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dump", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.dump:
        heads, context, kv = json.loads(args.dump)
        dump(Heads(*heads), context, kv)
        return
    for text in args.heads.split(","):
        heads = Heads.parse(text)
        measured, limit = list(cases(heads, args.context, args.kv.split(";"), args.against)), 0.0
        for _ in range(args.rounds):
            limit = max(limit, bandwidth(args.threads))
            for c in measured:
                c.run(args.threads)
        print("\n".join(table(heads, args.context, measured, limit)), flush=True)


if __name__ == "__main__":
    main()
