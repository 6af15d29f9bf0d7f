"""How much every linear of an artifact loses by the encoding of its weight, on a text.

In: an artifact, the checkpoint directory it came from, windows of token ids. Out: a row per weight: encoding,
bits, relative error of the linear's output, ||x Q(W)^T - x W^T|| / ||x W^T|| over all tokens. Runs a few
layers at a time; holds no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tilewright.calibration.calibrate import Gathered
from tilewright.calibration.samples import SampleSize, cut
from tilewright.calibration.segments import Segment, SegmentRunner, segments_of
from tilewright.capture import capture_directory
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.graph.core import Weight
from tilewright.ir.solver import F32
from tilewright.ir.text.attributes import parse_type
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.driver import run_passes
from tilewright.passes.pipelines import MERGED, pipeline_text
from tilewright.passes.solvers.gptq import objective
from tilewright.runtime.artifact import Artifact
from tilewright.runtime.manifest import WEIGHTS, WeightEntry

#: elements decoded at once
PIECE = 1 << 22


@dataclass(frozen=True)
class LayerError:
    """`error` is None where a solver rescaled the weight's channels: its values are not those of the model
    then."""

    weight: str
    encoding: str
    bits: float
    error: float | None


def layer_errors(
    artifact: Artifact,
    folder: Path,
    windows: Sequence[NDArray[np.int64]],
    tick: Callable[[int, int], None] = lambda n, of: None,
) -> list[LayerError]:
    """One row for each linear's weight in the order of the graph. RefusedError if the folder's model has
    other weights."""
    module = run_passes(capture_directory(folder), pipeline_text(MERGED)).module
    graph, store = module.graphs[0], WeightStore(folder)
    entries = {e.name: e for e in artifact.manifest.weights}
    weights = {w.name: w for w in module.weights if found(entries, w.name)}
    samples = [s for w in windows for s in cut(w, graph, SampleSize(1, len(w)), str(folder))]
    segments = segments_of(module, graph, samples[0], set(weights))
    runner = SegmentRunner(module, graph, store, samples)
    out: list[LayerError] = []
    for n, segment in enumerate(segments):
        h = _gathered(runner, segment, weights)
        for x, name in segment.linears:
            entry = found(entries, name)
            assert entry is not None
            moved = entry.values == "rescaled"
            error = None if moved else relative(artifact, entry, weights[name], store, h[x])
            out.append(
                LayerError(entry.name, entry.encoding, 8 * entry.bytes / max(entry.elements, 1), error)
            )
        runner.forget()
        tick(n + 1, len(segments))
    return out


def found(entries: dict[str, WeightEntry], name: str) -> WeightEntry | None:
    """A weight's entry; that of the head's own copy where the embedding is stored beside it."""
    return entries.get(f"{name}.head") or entries.get(name)


def _gathered(runner: SegmentRunner, segment: Segment, weights: dict[str, Weight]) -> dict[str, F32]:
    sums = {x: Gathered.empty(int(weights[w].type.shape[-1])) for x, w in segment.linears}
    runner.run_segment(segment, {x: g.add for x, g in sums.items()}, lambda at: None)
    return {x: g.statistics().h for x, g in sums.items()}


def relative(artifact: Artifact, entry: WeightEntry, weight: Weight, store: WeightStore, h: F32) -> float:
    """sqrt(tr(E H E^T) / tr(W H W^T)), some rows at a time."""
    lost = whole = 0.0
    rows, k = (int(n) for n in weight.type.shape)
    unit = parse_encoding(entry.encoding).rows_together((rows, k))
    step = max(PIECE // k // unit * unit, unit)
    for lo in range(0, rows, step):
        hi = min(lo + step, rows)
        w = np.asarray(store.rows(weight, lo, hi), np.float32)
        lost += float(objective(decoded(artifact, entry, lo, hi) - w, h).sum())
        whole += float(objective(w, h).sum())
    return float(np.sqrt(max(lost, 0.0) / whole)) if whole > 0 else 0.0


def decoded(artifact: Artifact, entry: WeightEntry, lo: int, hi: int) -> F32:
    """Values of rows lo..hi of a stored matrix; lo is a multiple of the rows that lie together."""
    encoding, k = parse_encoding(entry.encoding), int(parse_type(entry.type).shape[-1])
    start, size = (encoding.nbytes((n, k)) if n else 0 for n in (lo, hi - lo))
    with artifact.file(WEIGHTS).open("rb") as f:
        f.seek(entry.offset + start)
        raw = np.frombuffer(f.read(size), np.uint8)
    return encoding.decode(encoding.unpack(raw, (hi - lo, k)))
