"""Fisher information of weights (SqueezeLLM, Kim et al. 2023): the mean squared gradient over samples.

In: a captured language model, a weight store, samples, the requested weights. Out: one file a weight, [N, K].
Forward segment by segment with what enters each kept on disk, then backward from the last: in memory are one
segment's weights, their gradients, and for every sample the gradient of what lies between two segments. The
loss is the cross-entropy of the next token.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.calibration.samples import Sample
from tilewright.calibration.segments import (
    Segment,
    SegmentRunner,
    born_before,
    contraction,
    last_segment,
    segments_of,
)
from tilewright.calibration.torch_ops import on_tensors
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.ops.base import Array, find_op
from tilewright.ir.solver import F32
from tilewright.ir.text.graph_printer import op_text
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.solvers.products import fast_products

#: (what is done, how many of how many)
Told = Callable[[str, int, int], None]
INSTEAD = "use wlsq, which weights by the inputs alone and works for any model"


def fisher(
    module: Module,
    store: WeightStore,
    samples: Sequence[Sample],
    files: Mapping[str, Path],
    work: Path,
    told: Told | None = None,
) -> None:
    """Write the file of every weight named. RefusedError if the model has no next token, or an op on the way
    no gradient."""
    names = {n for n, path in files.items() if not path.exists()}
    if not names:
        return
    graph = module.graphs[0]
    _check_language_model(module, graph)
    if any(s["ids"].shape[-1] < 2 for s in samples):
        raise RefusedError(
            "Fisher information needs samples of at least two tokens: a single token has no next token",
            "calibrate",
        )
    every = {
        pair[1] for op in graph.ops if (pair := contraction(op)) is not None
    }  # cut at them all: a segment's weights are in memory
    segments = segments_of(module, graph, samples[0], every)
    _check_read_once(segments, names)
    segments.append(last_segment(module, graph, samples[0], segments[-1].hi))
    first = next(n for n, s in enumerate(segments) if any(w in names for _, w in s.linears))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    steps = 2 * len(segments) - 1 - first
    runner = SegmentRunner(module, graph, store, samples)
    for n, segment in enumerate(segments):
        for s, values in enumerate(runner.memory if n >= first else ()):
            np.savez(_entry(work, n, s), **{o: values[o] for o in born_before(graph, segment)})  # type: ignore[arg-type]
        if n + 1 < len(segments):
            what = f"Fisher information, forward {n + 1} of {len(segments)}"
            runner.run_segment(segment, {}, _telling(told, what, n, steps, len(samples)))
            runner.forget()
    runner.memory.clear()
    backward = _Backward(runner, names, samples)
    for n in reversed(range(first, len(segments))):
        what = f"Fisher information, backward {len(segments) - n} of {len(segments) - first}"
        found = backward.run(
            segments[n], work, n, _telling(told, what, steps - 1 - (n - first), steps, len(samples))
        )
        for name, x in found.items():
            part = files[name].with_suffix(".part")
            with part.open("wb") as f:
                np.save(f, x)
            part.replace(files[name])
    shutil.rmtree(work)


def _entry(work: Path, n: int, s: int) -> Path:
    return work / f"{n}.{s}.npz"


def _telling(told: Told | None, what: str, done: int, steps: int, samples: int) -> Callable[[int], None]:
    return lambda at: told(what, done * samples + at, steps * samples) if told else None


def _check_language_model(module: Module, graph: Graph) -> None:
    vocab, logits = dict(module.meta).get("vocab"), graph.outputs[0]
    types = {f"%{r.name}": r.type for op in graph.ops for r in op.results}
    if (
        {v.name for v in graph.inputs} - {"pos"} != {"ids"}
        or logits not in types
        or types[logits].shape[-1] != vocab
    ):
        inputs = ", ".join(v.name for v in graph.inputs)
        what = f"Fisher information needs token ids in and logits out; this model takes {inputs}"
        raise RefusedError(what, "calibrate", INSTEAD)


def _check_read_once(segments: Sequence[Segment], names: set[str]) -> None:
    read = [w for s in segments for w in {w for _, w in s.linears}]
    for name in sorted(names):
        if read.count(name) > 1:
            what = (
                f"Fisher information of @{name}, which is shared by several layers, would need the "
                "gradients of all of them at once"
            )
            raise RefusedError(what, "calibrate", INSTEAD)
        if name not in read:
            raise RefusedError(
                f"Fisher information is not supported for experts: @{name}", "calibrate", INSTEAD
            )


class _Backward:
    """Gradients segment by segment, from the loss on."""

    def __init__(self, runner: SegmentRunner, names: set[str], samples: Sequence[Sample]) -> None:
        self.runner, self.graph, self.names, self.samples = runner, runner.graph, names, samples
        self.gradients: list[dict[str, Any]] = [{} for _ in samples]
        self.moved = _moved(runner.graph, names)

    def run(self, segment: Segment, work: Path, n: int, told: Callable[[int], None]) -> dict[str, F32]:
        """The mean squared gradients of a segment's weights."""
        import torch

        ops = self.graph.ops[segment.lo : segment.hi]
        weights = {o: self._weight(o) for op in ops for o in op.operands if o[0] == "@"}
        read = {
            f"@{w}" for _, w in segment.linears if w in self.names
        }  # a table that is looked up here may be a head elsewhere
        wanted = {o: w.requires_grad_() for o, w in weights.items() if o in read}
        sums = {o: torch.zeros_like(w) for o, w in wanted.items()}
        for s in range(len(self.samples)):
            with np.load(_entry(work, n, s)) as held:
                entries = {o: torch.from_numpy(held[o]) for o in held.files}
            leaves = {
                o: x.requires_grad_() for o, x in entries.items() if o in self.moved and x.is_floating_point()
            }
            with fast_products(), torch.enable_grad():
                outs, ups = self._forward(ops, {**weights, **entries}, s)
                if outs:
                    inputs = [*leaves.values(), *wanted.values()]
                    found = torch.autograd.grad(outs, inputs, ups, allow_unused=True)
                    for o, g in zip([*leaves, *wanted], found, strict=True):
                        if g is not None and o in sums:
                            sums[o] += g.square() / len(self.samples)
                        elif g is not None:
                            self.gradients[s][o] = self.gradients[s].get(o, 0) + g
            _entry(work, n, s).unlink()
            told(s + 1)
        return {o[1:]: x.numpy() for o, x in sums.items()}

    def _weight(self, operand: str) -> Any:
        import torch

        x = self.runner.weight(operand)
        self.runner.forget()
        return torch.from_numpy(np.array(x))

    def _forward(self, ops: Sequence[Op], values: dict[str, Any], s: int) -> tuple[list[Any], list[Any]]:
        """Values whose gradients are known, and those gradients; at the end of the graph the loss."""
        import torch

        outs, ups = [], []
        for op in ops:
            args = [
                values[o] if o[0] == "%" or contraction(op) is not None else values[o].detach()
                for o in op.operands
            ]
            at = {k: self.runner.dims[s].value(v) for k, v in op.attrs}
            for r, x in zip(op.results, self._results(op, at, args, s), strict=True):
                o = f"%{r.name}"
                values[o] = x
                if o == self.graph.outputs[0]:
                    outs.append(_loss(x, self.samples[s]["ids"]))
                    ups.append(torch.ones(()))
                if o in self.gradients[s]:
                    outs.append(x)
                    ups.append(self.gradients[s].pop(o))
        return outs, ups

    def _results(self, op: Op, at: Mapping[str, Any], args: Sequence[Any], s: int) -> Sequence[Any]:
        import torch

        if any(a.requires_grad for a in args):
            out = on_tensors(op, at, args)
            if out is None:
                where = f"{op.loc.file}:{op.loc.line}" if op.loc else ""
                what = f"Fisher information needs a gradient that this op does not have:\n    {op_text(op)}"
                raise RefusedError(what, where, INSTEAD)
            return out
        types = [r.type.with_(shape=self.runner.dims[s].shape(r.type)) for r in op.results]
        arrays: list[Array] = [a.numpy() for a in args]
        with np.errstate(all="ignore"):
            found = find_op(op.name).meaning(arrays, at, types)
        return [torch.from_numpy(np.array(x)) for x in (found if isinstance(found, tuple) else (found,))]


def _moved(graph: Graph, names: set[str]) -> set[str]:
    """Values that a change of the weights moves. A table that is also the head counts as the head alone."""
    out: set[str] = set()
    for op in graph.ops:
        if any(o in out for o in op.operands) or (pair := contraction(op)) is not None and pair[1] in names:
            out |= {f"%{r.name}" for r in op.results}
    return out


def _loss(logits: Any, ids: Array) -> Any:
    import torch

    rows, following = logits[..., :-1, :], torch.from_numpy(np.asarray(ids, np.int64)[..., 1:])
    return torch.nn.functional.cross_entropy(rows.reshape(-1, logits.shape[-1]), following.reshape(-1))
