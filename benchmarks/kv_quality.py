"""What KV encodings and cache policies cost a trained model: `benchmarks/kv_quality.py DIR --text FILE`.

Perplexity in windows of three sizes, exact recall of facts at four distances, the loss on a passage seen
again, and the bytes of memory that a token takes, for every KV encoding and for every cache policy at four
budgets. Differences are from the cache that keeps everything in bf16, paired over the same windows and
questions. Writes a page (by default docs/kv-and-tokens.md) and, beside it, every measured value as JSON
lines, from which the page can be made again (`--page-only`). Samples are numbered: a run measures only those
that are not there yet, so that an interrupted run continues where it stopped, and `--samples 0.1`, a tenth
of them, can be followed by more. A full run takes some eight hours of one core; `--minutes` ends one earlier.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import tilewright as tw
from tilewright.ir.errors import TilewrightError
from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.evaluate import log_softmax, windows_of
from tilewright.runtime.model import Model, in_pieces
from tilewright.runtime.recall import questions, recall
from tilewright.runtime.session import Session

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = (0.5, 0.25, 0.12, 0.06)
#: policies at a budget, the controls first; those that need supplied numbers are left out
POLICIES = (
    "random(budget={})",
    "window(recent={})",
    "h2o(budget={})",
    "tova(budget={})",
    "snapkv(budget={})",
    "snapkv(budget={}, pool=13)",
    "pyramidkv(budget={})",
    "pyramidkv(budget={}, pool=13)",
    "windowkv(budget={})",
    "prefixkv(budget={})",
    "elastic(budget={})",
    "d2o(budget={})",
    "lookm(budget={})",
)
#: policies whose budget follows from the prompt, as they come closest to the budgets
FREE = ("zipvl(tau=0.97)", "zipvl(tau=0.9)", "zipvl(tau=0.75)", "zipvl(tau=0.5)")
#: encodings of keys / values, by bits; those that this version does not have are named on the page
ENCODINGS = (
    "int8(token)",
    "fp8",
    "int8(token) / int4(group=32)",
    "int4(token)",
    "int4(token, asym)",
    "int4(group=32)",
    "int4(channel) / int4(token)",
    "nf4",
    "int3(token)",
    "int3(group=32)",
    "int2(token)",
    "int2(group=32)",
    "int4(group=32, asym) + recent(64)",
    "int4(token) + recent(64)",
    "int3(group=32, asym) + recent(64)",
    "int2(group=32, asym) + recent(64)",
)
#: policies that evict nothing and choose for each query what it reads: an answer shows them, a window that is
#: read in pieces does not
SELECTING = ("quest(budget={})", "kinetics(budget={})", "mpcache(budget={})")
#: an encoding and a policy at once
TOGETHER = (
    ("int8(token)", "snapkv(budget=0.25, pool=13)"),
    ("int4(group=32)", "snapkv(budget=0.25, pool=13)"),
    ("int8(token)", "h2o(budget=0.25)"),
)
#: a policy acts after every piece of a window: an eighth of it
PIECES = 8
#: a passage that is read twice, in tokens
PASSAGE = 64
#: of the sequences whose memory is measured
MEMORY = 2048


@dataclass(frozen=True)
class Setting:
    """A KV encoding and a cache policy; `table`: the title of the table that it belongs to."""

    kv: str = "bf16"
    cache: str = "full"
    table: str = "Encodings"

    @property
    def selects(self) -> bool:
        return any(self.cache.startswith(p.partition("{")[0]) for p in SELECTING)

    @property
    def compiled_in(self) -> str | None:
        """The policy that the artifact is compiled with: `full` leaves the choice to each session, which
        caches with recent rows do not."""
        return self.cache if self.selects else None if "recent" in self.kv else "full"

    @property
    def chosen(self) -> str | None:
        """The policy that a session chooses."""
        return self.cache if self.compiled_in == "full" else None


@dataclass(frozen=True)
class Task:
    """One measurement: `perplexity` (nats per token of each window), `recall` (0 or 1 per question), `copy`
    (nats per token of each passage), `bytes` (per token), `kept` (share of rows); of `size` tokens, `count`
    samples from the one numbered `first` on."""

    kind: str
    size: int
    count: int
    first: int = 0


BASE = Setting()
FULL_RUN = (
    Task("perplexity", 512, 60), Task("perplexity", 2048, 20), Task("perplexity", 4096, 10),
    Task("recall", 512, 100), Task("recall", 1024, 100), Task("recall", 2048, 100), Task("recall", 3500, 100),
    Task("copy", 1024, 30), Task("bytes", MEMORY, 4), Task("kept", MEMORY, 1),
)  # fmt: skip


def settings(encodings: Sequence[str], policies: Sequence[str], budgets: Sequence[float]) -> list[Setting]:
    """Everything that is measured, the base first."""
    return [
        BASE,
        *(Setting(kv=e) for e in encodings),
        *(
            Setting("bf16", p.format(b), f"Policies at {100 * b:.0f}% budget")
            for b in budgets
            for p in policies
        ),
        *(Setting("bf16", p, "Budgets that follow from the prompt") for p in FREE),
        *(Setting(kv, cache, "Encodings and policies together") for kv, cache in TOGETHER),
        *(
            Setting("bf16", p.format(b), "Chosen per query, nothing evicted but by mpcache")
            for b in budgets
            for p in SELECTING
        ),
    ]


# ---------------------------------------------------------------- measuring
@dataclass
class Bench:
    """A checkpoint compiled with each KV encoding, and the text that is measured on."""

    directory: Path
    text: Path
    work: Path
    others: int = 31

    def model(self, setting: Setting) -> Model:
        """The artifact for a KV encoding, which serves every policy that evicts; compiled anew where there is
        none of this version. TilewrightError if the encoding is refused."""
        cache = setting.compiled_in
        name = f"{setting.kv} {cache or ''}"
        path = self.work / f"{''.join(c if c.isalnum() else '-' for c in name)}.tw"
        try:
            return tw.load(path)
        except ArtifactError:
            tw.compile(self.directory, recipe="bf16", kv=setting.kv, cache=cache).save(path)
            return tw.load(path)

    @cached_property
    def ids(self) -> list[int]:
        return self.model(BASE).codec.encode(self.text.read_text("utf-8"), special=False)

    def values(self, setting: Setting, task: Task) -> list[float]:
        """The samples of one measurement."""
        model = self.model(setting)
        measure: Callable[[Model, Setting, Task], Iterator[float]] = getattr(self, task.kind)
        return [float(x) for x in measure(model, setting, task)]

    def perplexity(self, model: Model, setting: Setting, task: Task) -> Iterator[float]:
        whole = setting.cache == "full"
        forward = model if whole else in_pieces(model, setting.cache, task.size // PIECES)
        for window in windows_of(self.ids, task.size, task.first + task.count)[task.first :]:
            yield float(nats(np.asarray(forward(window))[:-1], window[1:]).mean())

    def recall(self, model: Model, setting: Setting, task: Task) -> Iterator[float]:
        asked = questions(
            lambda text: model.codec.encode(text, special=False),
            self.ids, task.size, self.others, task.first + task.count,
        )[task.first :]  # fmt: skip
        with model.session(cache=setting.chosen) as session:
            yield from map(float, recall(session, asked))

    def copy(self, model: Model, setting: Setting, task: Task) -> Iterator[float]:
        """A passage, text, the passage again: nats per token of the second time."""
        draw = np.random.default_rng(0)
        with model.session(cache=setting.chosen) as session:
            starts = draw.integers(0, len(self.ids) - task.size - 1, task.first + task.count)
            for start in starts[task.first :]:
                text = np.asarray(self.ids[start : start + task.size], np.int64)
                again = text[:PASSAGE]
                seq = session.add()
                session.step([(seq, text, "none")])
                [logits] = session.step([(seq, again, "all")])
                session.drop(seq)
                assert logits is not None
                yield float(nats(logits[:-1], again[1:]).mean())

    def bytes(self, model: Model, setting: Setting, task: Task) -> Iterator[float]:
        """Memory that the caches of further sequences take, per token that was read."""
        with model.session(task.count + 1, cache=setting.chosen) as session:
            self._fill(session, task.size)  # the step's own memory is touched once
            before = anonymous()
            for _ in range(task.count):
                self._fill(session, task.size)
            yield (anonymous() - before) / (task.count * task.size)

    def kept(self, model: Model, setting: Setting, task: Task) -> Iterator[float]:
        """The share of rows that a prompt leaves."""
        with model.session(cache=setting.chosen) as session:
            seq = self._fill(session, task.size)
            if session.caches is None:  # no policy: nothing is lost
                yield 1.0
                return
            cache = session.caches.access(seq)
            heads = [(n, h) for n in range(cache.layers) for h in range(cache.heads(n))]
            yield sum(cache.count(*at) for at in heads) / (len(heads) * task.size)

    def _fill(self, session: Session, tokens: int) -> int:
        seq = session.add()
        session.step([(seq, self.ids[:tokens], "none")])
        return seq


def nats(logits: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """The loss on each token."""
    return -log_softmax(logits)[np.arange(len(ids)), ids]


def anonymous() -> int:
    """Bytes of this process's own memory."""
    lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


# ---------------------------------------------------------------- results
Key = tuple[str, str, str, int]
#: one value, whatever the count
SINGLE = ("bytes", "kept")


@dataclass
class Results:
    """Values by encoding, policy and task, in the order of their numbers; a JSON line for each measurement,
    written when it is made."""

    path: Path

    @cached_property
    def values(self) -> dict[Key, list[float]]:
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        found: dict[Key, list[float]] = {}
        for x in map(json.loads, lines):
            found.setdefault((x["kv"], x["cache"], x["kind"], x["size"]), []).extend(x["values"])
        return found

    def add(self, setting: Setting, task: Task, values: list[float]) -> None:
        key = (setting.kv, setting.cache, task.kind, task.size)
        rounded = [round(v, 6) for v in values]
        self.values.setdefault(key, []).extend(rounded)
        line = dict(zip(("kv", "cache", "kind", "size"), key, strict=True)) | {"values": rounded}
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")

    def of(self, setting: Setting, task: Task) -> list[float] | None:
        """None if it was not measured."""
        return self.values.get((setting.kv, setting.cache, task.kind, task.size))

    def left(self, setting: Setting, task: Task) -> Task | None:
        """What of a task is still to be measured."""
        have = len(self.of(setting, task) or [])
        if have >= (1 if task.kind in SINGLE else task.count) or (setting.selects and task.kind != "recall"):
            return None
        return replace(task, first=have, count=task.count - have)


def run(
    bench: Bench, results: Results, wanted: Sequence[Setting], tasks: Sequence[Task], until: float
) -> dict[str, str]:
    """Measure what is not there yet, while `time.monotonic()` is below `until`. Gives the encodings that
    could not be measured, with the reason."""
    lacking: dict[str, str] = {}
    for setting in wanted:
        for task in tasks:
            left = results.left(setting, task)
            if setting.kv in lacking or left is None or time.monotonic() > until:
                continue
            try:
                values = bench.values(setting, left)
            except TilewrightError as e:
                lacking[setting.kv] = e.message
                continue
            results.add(setting, left, values)
            mean = f"{np.mean(results.of(setting, task) or values):.4f}"
            print(f"{setting.kv} {setting.cache}: {task.kind} {task.size}: {mean}", flush=True)
    return lacking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "directory", type=Path, nargs="?", default=ROOT / "examples" / "models" / "small-llama"
    )
    parser.add_argument("--text", type=Path, default=ROOT / "examples" / "heldout.txt")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "kv-and-tokens.md")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "kv_quality", help="folder for artifacts"
    )
    parser.add_argument("--samples", type=float, default=1.0, help="share of the samples of the full run")
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--only", default="", help="encodings and policies whose text contains this")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no measurement after these"
    )
    parser.add_argument("--page-only", action="store_true", help="write the page from what was measured")
    args = parser.parse_args()
    tasks = [replace(t, count=max(round(t.count * args.samples), 1)) for t in FULL_RUN]
    chosen = settings(ENCODINGS, POLICIES, [float(b) for b in args.budgets.split(",")])
    args.work.mkdir(parents=True, exist_ok=True)
    results = Results(args.page.with_suffix(".jsonl"))
    lacking: dict[str, str] = {}
    if not args.page_only:
        wanted = [s for s in chosen if s == BASE or args.only in f"{s.kv} {s.cache}"]
        until = time.monotonic() + 60 * args.minutes
        lacking = run(Bench(args.directory, args.text, args.work), results, wanted, tasks, until)
    from kv_page import page  # beside this file

    args.page.write_text(page(results, chosen, tasks, lacking), "utf-8")


if __name__ == "__main__":
    main()
