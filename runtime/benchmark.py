"""Speed of a compiled language model: prefill and decode, medians of several runs.

In: a model. Out: tokens per second, and what they move and compute, so that a caller can hold them against
the machine's limits. Independent of how limits are measured.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.runtime.cpu import available_bytes
from tilewright.runtime.errors import SessionError
from tilewright.runtime.manifest import Manifest
from tilewright.runtime.model import Model
from tilewright.runtime.session import Session

#: decode steps between two readings of the memory bandwidth
SLICE = 8
#: hours that a workload may take
LONGEST = 2.0
ASK_LESS = "reduce --batch, --prefill, --decode or --repeats"


@dataclass(frozen=True)
class Workload:
    """`prefill` tokens read, then `decode` tokens made one by one after `context` tokens, for `batch`
    sequences at once."""

    prefill: int = 512
    decode: int = 64
    context: int = 0
    batch: int = 1
    repeats: int = 3


@dataclass(frozen=True)
class Speed:
    """Tokens per second of all sequences together; bytes one decode step reads; operations one prefill token
    takes. `decode_share`: the median, over slices of a few steps, of GB/s to the better of the readings just
    before and after (None without readings); `dram_gb_s`: the median reading."""

    prefill_tok_s: float
    decode_tok_s: float
    decode_bytes: float
    prefill_ops: float
    decode_gb_s: float
    prefill_gop_s: float
    peak_rss_mb: float
    threads: int
    decode_share: float | None = None
    dram_gb_s: float | None = None


def measure(model: Model, work: Workload, reading: Callable[[], float] | None = None) -> Speed:
    """Alternates prefill and decode `repeats` times and takes medians. `reading`: the memory's GB/s at this
    moment, requested between slices of the decode."""
    start = work.context or work.prefill
    need = max(work.prefill, start + work.decode)
    if need > model.library.context:
        raise SessionError(
            f"the workload needs {need} positions, the context holds {model.library.context}",
            "bench",
            "reduce the workload",
        )
    _check_room(model, need, work.batch)
    prefills: list[float] = []
    slices: list[_Slice] = []
    with model.session(max_sequences=work.batch) as session:
        threads = session.native.threads
        _check_time(session, work, model.library.vocab)
        _prefill(
            session, work.batch, min(work.prefill, 16), model.library.vocab
        )  # first touch of weights and code
        for _ in range(work.repeats):
            prefills.append(_prefill(session, work.batch, work.prefill, model.library.vocab))
            slices += _decode(session, work, start, model.library.vocab, reading)
    prefill_s, step_s = statistics.median(prefills), statistics.median(s.step_s for s in slices)
    moved = decode_bytes(model.manifest, start + work.decode / 2, work.batch)
    ops = 2.0 * matrix_elements(model.manifest)
    prefill_rate = work.batch * work.prefill / prefill_s
    return Speed(
        prefill_rate, work.batch / step_s, moved, ops, moved / step_s / 1e9, prefill_rate * ops / 1e9,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, threads,
        statistics.median(moved / s.step_s / 1e9 / max(s.before,
        s.after) for s in slices) if reading else None,
        statistics.median(x for s in slices for x in (s.before, s.after)) if reading else None,
    )  # fmt: skip


def _check_room(model: Model, positions: int, batch: int) -> None:
    """SessionError if keys and values of all sequences would take more memory than there is."""
    need = batch * sum(s.bytes * min(positions / s.context, 1.0) for s in model.manifest.states)
    room = available_bytes()
    if need > room:
        message = (
            f"keys and values of {batch:,} sequences take {need / 1e9:,.0f} GB, {room / 1e9:,.0f} GB are free"
        )
        raise SessionError(message, "bench", ASK_LESS)


def _check_time(session: Session, work: Workload, vocab: int) -> None:
    """SessionError if the prefills alone, at the speed of one short one, would take longer than anybody
    waits."""
    few = min(work.prefill, 16)
    spent = min(_prefill(session, 1, few, vocab) for _ in range(2)) / few
    hours = spent * work.prefill * work.batch * work.repeats / 3600
    if hours > LONGEST:
        raise SessionError(f"the workload would take some {hours:,.0f} hours", "bench", ASK_LESS)


def _ids(n: int, vocab: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(0, vocab, n)


def _prefill(session: Session, batch: int, n: int, vocab: int) -> float:
    seqs = [session.add() for _ in range(batch)]
    began = time.perf_counter()
    session.step([(s, _ids(n, vocab, s), "last") for s in seqs])
    spent = time.perf_counter() - began
    for s in seqs:
        session.drop(s)
    return spent


@dataclass(frozen=True)
class _Slice:
    """Some decode steps in a row: the median of their seconds, and the memory's GB/s before and after
    them."""

    step_s: float
    before: float
    after: float


def _decode(
    session: Session, work: Workload, start: int, vocab: int, reading: Callable[[], float] | None
) -> list[_Slice]:
    seqs = [session.add() for _ in range(work.batch)]
    session.step([(s, _ids(start, vocab, s), None) for s in seqs])
    ids = _ids(work.decode, vocab, 7)
    slices: list[_Slice] = []
    before = reading() if reading else 0.0
    for at in range(0, work.decode, SLICE):
        steps = [_timed(session, [(s, [i], "last") for s in seqs]) for i in ids[at : at + SLICE]]
        after = reading() if reading else 0.0
        slices.append(_Slice(statistics.median(steps), before, after))
        before = after
    for s in seqs:
        session.drop(s)
    return slices


def _timed(session: Session, items: Sequence[tuple[int, list[int], str]]) -> float:
    began = time.perf_counter()
    session.step(items)
    return time.perf_counter() - began


def decode_bytes(m: Manifest, context: float, batch: int) -> float:
    """Bytes that one decode step reads: every weight that is read whole, and the keys and values so far."""
    weights = sum(w.bytes for w in m.weights if w.read == "whole")
    return weights + batch * sum(s.bytes * min(context / s.context, 1.0) for s in m.states)


def matrix_elements(m: Manifest) -> int:
    """Weights that every token is multiplied with, the head apart: prefill computes it for one row only."""
    head = max(
        (w.elements for w in m.weights if w.read == "whole" and _rows(w.type) == m.limits["vocab"]), default=0
    )
    return sum(w.elements for w in m.weights if w.read == "whole" and w.type.count(",") == 1) - head


def _rows(type_text: str) -> int:
    """The first dimension of `f32[4096, 256]`."""
    first = type_text.partition("[")[2].partition(",")[0].strip(" ]")
    return int(first) if first.isdigit() else 0


def peak_kind(m: Manifest) -> str:
    """Which peak prefill is compared with: `int8`, `bf16` or `f32`, from the activations' encoding."""
    activations = str(m.recipe.get("activations", "f32"))
    return "int8" if activations.startswith("int") else "bf16" if activations.startswith("bf16") else "f32"
