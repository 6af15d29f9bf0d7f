"""`tilewright bench` of encoders and vision models: how many inputs per second their graphs compute.

In: a model with a task. Out: rows of a table, or JSON. Tokenizers and the preparation of images are not part
of what is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from tilewright.cli.common import print_json, table
from tilewright.runtime.tasks.runner import only_input

if TYPE_CHECKING:
    from tilewright.runtime.model import Model
    from tilewright.runtime.task_entry import TaskEntry

#: calls that are timed in each repetition, after one that is not
CALLS = 5


@dataclass(frozen=True)
class GraphSpeed:
    """Of one graph: the median seconds of a call with `batch` inputs, `tokens` in each text (0: images)."""

    graph: str
    batch: int
    tokens: int
    call_s: float

    @property
    def inputs_s(self) -> float:
        return self.batch / self.call_s


def bench_task(model: Model, batch: int, tokens: int, repeats: int, as_json: bool) -> None:
    """Print the speed of every graph. `tokens`: at most so many, as far as the model takes them."""
    entry = model.manifest.task
    assert entry is not None
    found = [_speed(model, g, x, batch, n, repeats) for g, n, x in _inputs(model, entry, batch, tokens)]
    if as_json:
        rows = [{**asdict(s), "inputs_s": round(s.inputs_s, 2)} for s in found]
        print_json({"task": entry.name, "level": model.level, "graphs": rows})
        return
    for s in found:
        what = f"texts of {s.tokens} tokens" if s.tokens else "images"
        rate = f"{s.inputs_s:,.1f} {what} per second, {1000 * s.call_s:.2f} ms per call of {s.batch}"
        click.echo(table([(s.graph, rate)], ""))


def _inputs(
    model: Model, entry: TaskEntry, batch: int, tokens: int
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Graph, tokens and arrays of each: one token repeated, and black images."""
    if entry.text is not None:
        n = min(tokens, entry.text.longest)
        names = [t.name for t in model.graph(entry.text.graph).entry.inputs]
        values = {"input_ids": entry.text.pad, "attention_mask": 1, "token_type_ids": 0}
        yield entry.text.graph, n, {k: np.full((batch, n), values.get(k, 0), np.int64) for k in names}
    if entry.image is not None:
        i = entry.image
        name = only_input(model.graph(i.graph))
        yield i.graph, 0, {name: np.zeros((batch, i.channels, i.height, i.width), np.float32)}


def _speed(
    model: Model, graph: str, arrays: dict[str, Any], batch: int, tokens: int, repeats: int
) -> GraphSpeed:
    ready = model.graph(graph)
    times = []
    for _ in range(repeats):
        ready.run(arrays)
        for _ in range(CALLS):
            began = time.perf_counter()
            ready.run(arrays)
            times.append(time.perf_counter() - began)
    return GraphSpeed(graph, batch, tokens, statistics.median(times))
