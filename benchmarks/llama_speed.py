"""Speed of a random-weight Llama beside other systems and the machine's limits, runs interleaved: A B A B.

In: a shape, recipes, peers. Out: a table in markdown (or `--json`): tokens per second, share of the limit
measured in the same run, ratio to each peer. Every system holds its model in a process of its own.
`recipe@LEVEL` compiles for that CPU level. Usage: `python benchmarks/llama_speed.py --shape 1b --recipes
bf16,w4a8,int8 --peers torch,torch-compile [--tasks prefill,decode]`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from checkpoint import SHAPES, Shape, write_checkpoint
from watch import watch
from workers import Worker, WorkerError

from tilewright.recipe import PRESETS
from tilewright.runtime.artifact import open_artifact
from tilewright.runtime.benchmark import decode_bytes, matrix_elements, peak_kind
from tilewright.runtime.limits import Limits, ReadProbe, built_probe, measure_limits

PEERS = ("torch", "torch-compile", "openvino", "llama.cpp")
TASKS = ("prefill", "decode", "long", "batch")
#: the widths that peers know, by the kind of our recipe
WIDTHS = {
    "bf16": {"openvino": "bf16", "llama.cpp": "BF16"},
    "int8": {"openvino": "int8", "llama.cpp": "Q8_0"},
    "int4": {"openvino": "int4", "llama.cpp": "Q4_0"},
    "int3": {"llama.cpp": "Q3_K"},
    "int2": {"llama.cpp": "Q2_K"},
    "f32": {"openvino": "f32", "llama.cpp": "F32"},
}
PEAKS = {"int8": "int8_gop_s", "bf16": "bf16_gflop_s", "f32": "f32_gflop_s"}


@dataclass(frozen=True)
class Task:
    """One measurement: `tokens` read at once, or made one by one after `context`, for `batch` sequences.
    `name`: on the command line."""

    name: str
    title: str
    task: str
    tokens: int
    context: int = 0
    batch: int = 1

    def rate(self, seconds: float) -> float:
        return self.batch * self.tokens / seconds


@dataclass
class Row:
    """A system's results: seconds of every run by task, and the better of the limit just before and after it
    (the memory's GB/s, or `peak` for prefill); what its limits follow from."""

    name: str
    kind: str
    peak: str
    artifact: Path | None = None
    measured: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    readings: dict[str, list[float]] = field(default_factory=dict)
    problem: str = ""

    def median(self, task: Task) -> float | None:
        times = self.seconds.get(task.title)
        return task.rate(statistics.median(times)) if times else None


def tasks(long: int, decode: int) -> tuple[Task, ...]:
    return (
        Task("prefill", "prefill 512", "prefill", 512),
        Task("decode", "decode after 128", "decode", decode, 128),
        Task("long", f"decode after {long}", "decode", decode, long),
        Task("batch", "batch 8 decode", "decode", decode // 2, 128, 8),
    )


# ------------------------------------------------------------------ compiling
def tilewright_command() -> list[str]:
    """The program beside this Python, else the module."""
    beside = Path(sys.executable).parent / "tilewright"
    return (
        [str(beside)]
        if beside.exists()
        else [sys.executable, "-c", "from tilewright.cli.app import main; main()"]
    )


def compile_recipe(folder: Path, work: Path, recipe: str, cold: bool) -> Row:
    """Compile with a fresh cache, then again: seconds and peak anonymous memory of both. What is not a preset
    encodes weights that meet int8 activations."""
    artifact = work / f"{folder.name}-{recipe}.tw"
    name, _, level = recipe.partition("@")
    chosen = ["--recipe", name] if name in PRESETS else ["--recipe", "w4a8", "--weights", name]
    command = [*tilewright_command(), "compile", str(folder), "-o", str(artifact), *chosen]
    command += ["--target", level] if level else []
    measured: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=work) as cache:
        env = {"XDG_CACHE_HOME": cache} if cold else {}
        for name in ("cold", "warm") if cold else ("warm",):
            shutil.rmtree(artifact, ignore_errors=True)
            done = watch(command, env)
            measured |= {f"{name}_s": done.seconds, f"{name}_anon_mb": done.anon / 1e6}
    manifest = open_artifact(artifact).manifest
    measured["file_mb"] = sum(f.bytes for f in manifest.files.values()) / 1e6
    weights = str(manifest.recipe.get("weights", "bf16"))
    kind = next((k for k in ("int2", "int3", "int4", "int8", "f32") if weights.startswith(k)), "bf16")
    return Row(f"tilewright {recipe}", kind, PEAKS[peak_kind(manifest)], artifact, measured)


def rows_of(args: argparse.Namespace, folder: Path, work: Path) -> list[Row]:
    """Our rows, then the peers' at the widths that our recipes have."""
    ours = [compile_recipe(folder, work, r, not args.skip_cold) for r in args.recipes]
    rows = list(ours)
    for peer in args.peers:
        kinds = dict.fromkeys(r.kind for r in ours)
        if peer.startswith("torch"):
            kinds = dict.fromkeys("f32" if k == "f32" else "bf16" for k in kinds)
            rows += [Row(f"{peer} {kind}", kind, PEAKS[kind]) for kind in kinds]
            continue
        for kind in (k for k in kinds if peer in WIDTHS[k]):
            peak = PEAKS.get(kind, PEAKS["int8"])
            rows.append(Row(f"{peer} {WIDTHS[kind][peer]}", kind, peak))
    return rows


# ------------------------------------------------------------------ measuring
def start(row: Row, folder: Path, threads: int, stack: ExitStack) -> Worker | None:
    """The row's process; None, and the reason in the row, if it does not start."""
    kind, _, width = row.name.partition(" ")
    try:
        worker = stack.enter_context(
            Worker(row.name, [kind, str(row.artifact or folder), str(threads), width])
        )
    except WorkerError as e:
        row.problem = str(e)
        return None
    row.measured["load_s"] = worker.answer["load_s"]
    return worker


def measure(
    rows: Sequence[Row], folder: Path, todo: Sequence[Task], threads: int, repeats: int
) -> tuple[Limits, Limits]:
    """Fill the rows; the limits before and after."""
    before = measure_limits(threads)
    with ExitStack() as stack:
        library = stack.enter_context(built_probe())
        probe = Probe(library, ReadProbe(library, threads), threads)
        workers = [(r, w) for r in rows if (w := start(r, folder, threads, stack))]
        for task in todo:
            for n in range(repeats + 1):  # the first round warms up and is not counted
                for row, worker in workers:
                    run(row, worker, task, probe, count=n > 0)
            print(f"measured {task.title}", file=sys.stderr)
    return before, measure_limits(threads)


@dataclass(frozen=True)
class Probe:
    """What the machine gives at this moment."""

    library: Path
    memory: ReadProbe
    threads: int

    def reading(self, row: Row, task: Task) -> float:
        """GB/s for decoding, Gop/s of the row's arithmetic for prefill (0: the machine has none of it)."""
        if task.task != "prefill":
            return self.memory.gb_s()
        return float(measure_limits(self.threads, self.library, 0.2, 16).as_dict()[row.peak] or 0)


def run(row: Row, worker: Worker, task: Task, probe: Probe, count: bool) -> None:
    if row.problem:
        return
    before = probe.reading(row, task)
    try:
        seconds = worker.ask(task.task, task.tokens, task.context, task.batch)
    except (WorkerError, OSError) as e:
        row.problem = f"{task.title}: {e}"
        return
    if count:
        row.seconds.setdefault(task.title, []).append(seconds)
        row.readings.setdefault(task.title, []).append(max(before, probe.reading(row, task)))


# ------------------------------------------------------------------ shares and tables
def share(row: Row, task: Task, shape: Shape) -> float | None:
    """Part of the limit, each run against the readings around it: arithmetic of the linear layers for
    prefill, bytes of weights and KV for decode. Only rows whose stored bytes are known (ours, and bf16 ones)
    have a share of the bandwidth."""
    each = 2.0 * prefill_elements(row, shape) if task.task == "prefill" else step_bytes(row, task, shape)
    runs = list(zip(row.seconds.get(task.title, ()), row.readings.get(task.title, ()), strict=True))
    if each is None or not runs or not all(reading for _, reading in runs):
        return None
    return statistics.median(each * task.tokens / seconds / 1e9 / reading for seconds, reading in runs)


def prefill_elements(row: Row, shape: Shape) -> int:
    """Weights that each prompt token is multiplied with; the head is computed for one row only."""
    if row.artifact is not None:
        return matrix_elements(open_artifact(row.artifact).manifest)
    return shape.parameters - 2 * shape.vocab * shape.hidden - (2 * shape.layers + 1) * shape.hidden


def step_bytes(row: Row, task: Task, shape: Shape) -> float | None:
    middle = task.context + task.tokens / 2
    if row.artifact is not None:
        return decode_bytes(open_artifact(row.artifact).manifest, middle, task.batch)
    if row.kind not in ("bf16", "f32"):
        return None
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * middle * task.batch
    return (4 if row.kind == "f32" else 2) * (shape.parameters - shape.vocab * shape.hidden + cache)


def best_limits(before: Limits, after: Limits) -> dict[str, float]:
    """The better of both measurements: a share is never flattered by a busy moment."""
    pairs = zip(before.as_dict().items(), after.as_dict().values(), strict=True)
    return {k: float(max(a or 0, b or 0)) for (k, a), b in pairs if k != "threads" and (a or b)}


def speed_table(rows: Sequence[Row], todo: Sequence[Task], shape: Shape) -> Iterator[str]:
    yield "| system | " + " | ".join(f"{t.title}, tok/s (share of limit)" for t in todo) + " |"
    yield "|---" * (len(todo) + 1) + "|"
    for row in rows:
        cells = [cell(row.median(t), share(row, t, shape)) for t in todo]
        yield f"| {row.name} | " + " | ".join(cells) + " |"


def cell(rate: float | None, part: float | None) -> str:
    if rate is None:
        return "–"
    return f"{rate:,.1f}" + (f" ({100 * part:.0f}%)" if part is not None else "")


def ratio_table(rows: Sequence[Row], todo: Sequence[Task]) -> Iterator[str]:
    """Ours over each peer of the same width, and over every torch peer."""
    peers = [r for r in rows if r.artifact is None and not r.problem]
    if not peers:
        return
    yield "\n| ratio | " + " | ".join(t.title for t in todo) + " |"
    yield "|---" * (len(todo) + 1) + "|"
    for ours in (r for r in rows if r.artifact is not None):
        for peer in (
            p for p in peers if p.kind == ours.kind or p.name.startswith("torch") and ours.kind != "f32"
        ):
            yield f"| {ours.name} / {peer.name} | " + " | ".join(ratio(ours, peer, t) for t in todo) + " |"


def ratio(ours: Row, peer: Row, task: Task) -> str:
    a, b = ours.median(task), peer.median(task)
    return f"{a / b:.2f} ×" if a and b else "–"


def compile_table(rows: Sequence[Row]) -> Iterator[str]:
    yield "\n| compile | cold s | warm s | peak anonymous MB | artifact MB | load s |"
    yield "|---|---|---|---|---|---|"
    for row in (r for r in rows if r.artifact is not None):
        f = row.measured
        anon = max(f.get("cold_anon_mb", 0.0), f["warm_anon_mb"])
        cold = f"{f['cold_s']:.1f}" if "cold_s" in f else "–"
        yield (
            f"| {row.name} | {cold} | {f['warm_s']:.1f} | {anon:,.0f} | {f['file_mb']:,.0f} | "
            f"{f.get('load_s', 0):.2f} |"
        )


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def report(
    rows: Sequence[Row],
    todo: Sequence[Task],
    shape: Shape,
    limits: Mapping[str, float],
    args: argparse.Namespace,
) -> str:
    names = {
        "dram_gb_s": "GB/s",
        "f32_gflop_s": "f32 GFLOP/s",
        "bf16_gflop_s": "bf16 GFLOP/s",
        "int8_gop_s": "int8 GOP/s",
    }
    machine = ", ".join(f"{v:,.0f} {names[k]}" for k, v in limits.items())
    head = f"Llama {args.shape}, {args.threads} threads of {cpu_name()}; limits in this run: {machine}. "
    head += f"Medians of {args.repeats} interleaved runs.\n"
    problems = [f"\nnot measured: {r.name}: {r.problem}" for r in rows if r.problem]
    return "\n".join(
        [head, *speed_table(rows, todo, shape), *ratio_table(rows, todo), *compile_table(rows), *problems]
    )


def as_json(
    rows: Sequence[Row],
    todo: Sequence[Task],
    shape: Shape,
    limits: Mapping[str, float],
    args: argparse.Namespace,
) -> str:
    systems = [
        {
            **{k: v for k, v in asdict(r).items() if k != "artifact"},
            "tok_s": {t.title: r.median(t) for t in todo},
            "share": {t.title: share(r, t, shape) for t in todo},
        }
        for r in rows
    ]
    return json.dumps(
        {
            "shape": args.shape,
            "threads": args.threads,
            "cpu": cpu_name(),
            "limits": limits,
            "systems": systems,
        },
        indent=1,
    )


def names_of(text: str) -> list[str]:
    return [x for x in text.split(",") if x]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Llama speed beside peers and limits; runs interleave.")
    parser.add_argument("--shape", choices=[s for s in SHAPES if s != "7b"], default="160m")
    parser.add_argument(
        "--recipes",
        type=names_of,
        default=["bf16", "w4a8", "int8"],
        help="presets or TOML files, comma-separated",
    )
    parser.add_argument(
        "--peers", type=names_of, default=["torch"], help=f"of {', '.join(PEERS)}; comma-separated, or empty"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench"), help="where checkpoints and artifacts lie"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--tasks", type=names_of, default=TASKS, help=f"of {', '.join(TASKS)}; comma-separated"
    )
    parser.add_argument("--decode", type=int, default=32, help="tokens of a decode run")
    parser.add_argument("--long", type=int, default=4096, help="the long context")
    parser.add_argument("--skip-cold", action="store_true", help="do not compile with a fresh cache first")
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead")
    args = parser.parse_args()
    unknown = [p for p in args.peers if p not in PEERS]
    if unknown:
        parser.error(f"no peer {unknown[0]!r}; peers: {', '.join(PEERS)}")
    if unknown := [t for t in args.tasks if t not in TASKS]:
        parser.error(f"no task {unknown[0]!r}; tasks: {', '.join(TASKS)}")
    return args


def main() -> None:
    args = arguments()
    shape = SHAPES[args.shape]
    args.work.mkdir(parents=True, exist_ok=True)
    folder = write_checkpoint(shape, args.work / f"llama-{args.shape}")
    rows = rows_of(args, folder, args.work)
    todo = [t for t in tasks(args.long, args.decode) if t.name in args.tasks]
    limits = best_limits(*measure(rows, folder, todo, args.threads, args.repeats))
    print((as_json if args.json else report)(rows, todo, shape, limits, args))


if __name__ == "__main__":
    main()
