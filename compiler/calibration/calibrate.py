"""Calibration: runs the graph on samples a few ops at a time and solves weights once their inputs are known.

In: a module with encoded weights, samples, a weight store. Out: for every weight that has a calibrated
solver, where its streams lie: in a work folder, where a second run finds them. Held in memory: one segment's
weights and statistics, and the activations between segments.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.calibration.equalization import Factors, choose_factors, equalizer_of
from tilewright.calibration.fisher import fisher
from tilewright.calibration.samples import Sample
from tilewright.calibration.segments import Segment, SegmentRunner, give_back, segments_of
from tilewright.calibration.torch_ops import routed_rows
from tilewright.ir.encoding import EncodingError
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Module, Stored, Weight, walk_expr
from tilewright.ir.ops.base import Array
from tilewright.ir.solver import F32, Solver, Statistics, Streams, parse_stored, solve_rows
from tilewright.ir.text.graph_printer import print_module
from tilewright.ir.weights.safetensors import SafeTensors, write_safetensors
from tilewright.ir.weights.solved import FOLDER, Solution, solver_text
from tilewright.ir.weights.sources import WeightStore, not_finite
from tilewright.passes.channel_factors import Change
from tilewright.passes.patterns import View
from tilewright.passes.solvers.equalize import rescaled

#: columns of H made at once
BLOCK = 512
Progress = Callable[[str, int, int], None]


@dataclass
class Gathered:
    """Sums over the rows of one contraction's input."""

    square: Any
    total: NDArray[np.float64]
    absmax: NDArray[np.float32]
    rows: int = 0

    @classmethod
    def empty(cls, k: int) -> Gathered:
        import torch

        return cls(torch.zeros((k, k)), np.zeros(k), np.zeros(k, np.float32))

    def add(self, x: Array) -> None:
        import torch

        t = torch.from_numpy(np.ascontiguousarray(x.reshape(-1, x.shape[-1]), np.float32))
        for at in range(0, t.shape[1], BLOCK):  # the half above the diagonal; the rest mirrors it
            self.square[at : at + BLOCK, at:].addmm_(t[:, at : at + BLOCK].T, t[:, at:])
        size = t.abs()
        self.total += size.sum(0, dtype=torch.float64).numpy()
        if len(t):
            np.maximum(self.absmax, size.amax(0).numpy(), out=self.absmax)
        self.rows += len(t)

    def statistics(self) -> Statistics:
        n = max(self.rows, 1)
        h = self.square.mul_(2 / n).numpy()
        for at in range(0, len(h), BLOCK):
            h[at + BLOCK :, at : at + BLOCK] = h[at : at + BLOCK, at + BLOCK :].T
        return Statistics(h, (self.total / n).astype(np.float32), self.absmax, self.rows)


@dataclass
class Routed:
    """The same for every expert of a stacked weight."""

    experts: list[Gathered]

    @classmethod
    def of(cls, weight: Weight) -> Routed:
        return cls([Gathered.empty(_k(weight)) for _ in range(int(weight.type.shape[0]))])

    def add(self, x: Array, ids: Array) -> None:
        for e, gathered in enumerate(self.experts):
            gathered.add(routed_rows(x, ids, e))


def wanted(module: Module) -> dict[str, Weight]:
    """Weights whose solver needs statistics."""
    return {w.name: w for w in module.weights if (s := solver_of(w)) and any(p.calibrated for p in s.chain())}


def solver_of(w: Weight) -> Solver | None:
    text = solver_text(w)
    return parse_stored(text)[0] if text else None


def calibrate(
    module: Module,
    store: WeightStore,
    samples: Sequence[Sample],
    work: Path,
    max_ram: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, Solution], list[tuple[str, str]]]:
    """Solve every weight that needs statistics: what was found, by weight, and (where, why) of what was
    declined. The store reads the results from then on. RefusedError if a weight meets no linear, if memory
    would not suffice, or if an encoding does not fit its solver."""
    left = wanted(module)
    graph = module.graphs[0]
    segments = segments_of(module, graph, samples[0], set(left))
    _check_reached(left, segments)
    _check_memory(module, segments, len(samples), max_ram)
    folder = work / key_of(module, store, samples)
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(module, store, folder, left, len(segments), len(samples), progress)
    runner = SegmentRunner(module, graph, store, samples)
    run.inform(samples)
    todo = [n for n, s in enumerate(segments) if not run.finished(n, s)]
    for n, segment in enumerate(segments[: max(todo, default=-1) + 1]):
        run.segment(n, segment, runner)
    store.solved = folder
    found: dict[str, Solution] = {}
    for n, segment in enumerate(segments):
        if run.equalized(segment):
            found |= Factors.load(run.factors_file(n)).solutions(run.factors_file(n).name)
    for name in left:
        found[name] = replace(found.get(name, Solution()), streams=stored_streams(folder, name))
    return found, run.notes


@dataclass
class _Run:
    """One calibration under way."""

    module: Module
    store: WeightStore
    folder: Path
    left: dict[str, Weight]
    segments: int
    samples: int
    progress: Progress | None
    notes: list[tuple[str, str]] = field(default_factory=list)

    def inform(self, samples: Sequence[Sample]) -> None:
        """Fisher information of the weights whose solvers ask for it."""
        asked = {
            n: self.fisher_file(n) for n, w in self.left.items() if _informed(w) and not done(self.folder, n)
        }
        fisher(self.module, self.store, samples, asked, self.folder / "forward", self.progress)

    def fisher_file(self, name: str) -> Path:
        return self.folder / f"{_stem(name)}.fisher"

    def segment(self, n: int, segment: Segment, runner: SegmentRunner) -> None:
        """Run a segment and solve what is left of it."""
        names = [w for _, w in segment.linears if not done(self.folder, w)]
        experts = {w: Routed.of(self.left[w]) for w in segment.experts if not done(self.folder, w)}
        gathered = {x: Gathered.empty(_k(self.left[w])) for x, w in segment.linears if w in names}
        what = f"calibrating, segment {n + 1} of {self.segments}"
        sinks, routed = {x: g.add for x, g in gathered.items()}, {w: r.add for w, r in experts.items()}
        runner.run_segment(segment, sinks, lambda at: self.tell(what, n, at / 2), routed)
        seen = {x: g.statistics() for x, g in gathered.items()}
        runner.forget()
        gathered.clear()
        factors = self._factors(n, segment, seen)
        inputs = {w: x for x, w in segment.linears}
        for at, name in enumerate(names):
            self.tell(f"solving {name[-22:]}", n, self.samples / 2 * (1 + at / len(names)))
            t, statistics = factors.inputs.get(inputs[name]), seen[inputs[name]]
            if _informed(self.left[name]):
                statistics = replace(statistics, fisher=np.load(self.fisher_file(name)))
            statistics = statistics if t is None else rescaled(statistics, t)
            if all(inputs[later] != inputs[name] for later in names[at + 1 :]):
                del seen[inputs[name]]  # of a whole layer they take hundreds of megabytes
            weight = self.left[name]
            save(
                self.folder,
                name,
                self.solve(weight, self.values(weight), statistics, factors.changes.get(name)),
            )
            self.fisher_file(name).unlink(missing_ok=True)  # as large as the weight in float32
            give_back()
        for name in list(experts):
            self.tell(f"solving {name[-22:]}", n, self.samples)
            save(self.folder, name, self.solve_experts(self.left[name], experts.pop(name)))
            give_back()

    def solve_experts(self, weight: Weight, seen: Routed) -> Streams:
        """The streams of a stacked weight, every expert by what it was given. One without tokens is rounded
        to nearest."""
        values = self.values(weight)
        if equalizer_of(solver_of(weight)):
            self.notes.append((f"@{weight.name}", "the inputs of experts depend on their router"))
        found = [
            self.solve(weight, w, g.statistics(), None) for w, g in zip(values, seen.experts, strict=True)
        ]
        return {stream: np.stack([f[stream] for f in found]) for stream in found[0]}

    def finished(self, n: int, segment: Segment) -> bool:
        whole = not self.equalized(segment) or self.factors_file(n).exists()
        return whole and all(done(self.folder, w) for w in segment.wanted)

    def equalized(self, segment: Segment) -> bool:
        return any(equalizer_of(solver_of(self.left[w])) for _, w in segment.linears)

    def factors_file(self, n: int) -> Path:
        return self.folder / f"segment{n}.safetensors"

    def _factors(self, n: int, segment: Segment, seen: Mapping[str, Statistics]) -> Factors:
        """The segment's factors: kept ones if something of it is solved by them, else chosen and kept."""
        if not self.equalized(segment):
            return Factors()
        if not self.factors_file(n).exists():
            solvers = {name: s for name, w in self.left.items() if (s := solver_of(w))}
            self.tell("choosing channel factors", n, self.samples / 2)
            found = choose_factors(
                View(self.module, self.module.graphs[0]), segment, solvers, self.values, seen
            )
            found.save(self.factors_file(n))
        out = Factors.load(self.factors_file(n))
        self.notes += list(out.declined.items())
        return out

    def values(self, weight: Weight) -> F32:
        """A weight's values, all of them numbers."""
        w = np.asarray(self.store.load(weight), np.float32)
        if not np.isfinite(w).all():
            raise not_finite(self.store, weight)
        return w

    def solve(self, weight: Weight, w: F32, seen: Statistics, change: Change | None) -> Streams:
        """The streams that a weight's solver finds for w [N, K]. RefusedError naming the weight."""
        solver, encoding, where = solver_of(weight), weight.type.encoding, f"weight @{weight.name}"
        assert solver is not None and encoding is not None
        if not np.isfinite(seen.h).all():
            raise RefusedError(
                "its inputs contain NaN or infinite values on these samples", where, "try a different text"
            )
        try:
            return solve_rows(solver, w if change is None else change.on(w), seen, encoding)
        except EncodingError as why:
            raise RefusedError(str(why), where) from why

    def tell(self, what: str, n: int, at: float) -> None:
        if self.progress:
            self.progress(what, n * self.samples + int(at), self.segments * self.samples)


def _informed(w: Weight) -> bool:
    solver = solver_of(w)
    return solver is not None and any(s.informed for s in solver.chain())


def _k(w: Weight) -> int:
    return int(w.type.shape[-1])


def _check_reached(left: dict[str, Weight], segments: Sequence[Segment]) -> None:
    met = {w for s in segments for w in s.wanted}
    missing = [n for n in left if n not in met]
    if missing:
        hint = (
            f"use a solver that needs no samples for them, for example in [rules]: {missing[0]!r} = "
            "'clip(int4(group=32))'"
        )
        raise RefusedError(
            f"no linear of the graph reads {', '.join(missing)}, so that their inputs cannot be recorded",
            "calibrate",
            hint,
        )


def _check_memory(module: Module, segments: Sequence[Segment], samples: int, max_ram: int) -> None:
    """Activations of all samples at both ends of a segment, its weights, and what solving its largest matrix
    takes."""
    weights = module.weight_map()
    most = fixed = 0
    for s in segments:
        ks = {x: _k(weights[w]) for x, w in s.linears}
        held = sum(4 * int(np.prod([int(d) for d in weights[w].type.shape])) for w in s.weights)
        held *= 4 if any(_informed(weights[w]) for w in s.wanted) else 2
        squares = sum(4 * k * k for k in ks.values())
        squares += sum(4 * int(weights[w].type.shape[0]) * _k(weights[w]) ** 2 for w in s.experts)
        largest = max((_k(weights[w]) for w in s.wanted), default=0)
        here = held + squares + 28 * largest**2 + 4 * s.peak
        if here + 4 * samples * s.entry > most:
            most, fixed = here + 4 * samples * s.entry, here
    if max_ram and most > max_ram:
        fit = max((max_ram - fixed) * samples // max(most - fixed, 1), 0)
        hint = f"use at most {fit} samples" if fit else f"{fixed / 1e9:.2f} GB are needed for a single layer"
        raise RefusedError(
            f"needs about {most / 1e9:.2f} GB, allowed are {max_ram / 1e9:.2f} GB", "--max-ram", hint
        )


# ------------------------------------------------------------------ the work folder
def key_of(module: Module, store: WeightStore, samples: Sequence[Sample]) -> str:
    """A name for these weights, solvers and samples together."""
    h = hashlib.sha256(print_module(module).encode())
    for sample in samples:
        for name, x in sorted(sample.items()):
            h.update(f"{name} {x.dtype} {x.shape}".encode() + np.ascontiguousarray(x).tobytes())
    for file in sorted(
        {e.file for w in module.weights for e in walk_expr(w.source) if isinstance(e, Stored)}
    ):
        if file == "memory":
            for name, x in sorted(store.memory.items()):
                h.update(name.encode() + np.ascontiguousarray(x).tobytes())
        else:
            stat = os.stat(store.file(file).path)
            h.update(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode())
    return h.hexdigest()[:20]


def _stem(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:20]


def done(folder: Path, name: str) -> bool:
    return streams_file(folder, name).exists()


def streams_file(folder: Path, name: str) -> Path:
    return folder / f"{_stem(name)}.safetensors"


def save(folder: Path, name: str, streams: Streams) -> None:
    """One weight's streams as a file that is there whole or not at all, so that a killed run leaves nothing
    half-done."""
    write_safetensors(streams_file(folder, name), streams)


def stored_streams(folder: Path, name: str) -> tuple[tuple[str, Stored], ...]:
    """A weight's streams as sources, by name."""
    file = streams_file(folder, name)
    return tuple((stream, Stored(f"{FOLDER}{file.name}", stream)) for stream in SafeTensors(file).entries)
