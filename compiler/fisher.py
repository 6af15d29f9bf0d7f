"""Fisher information of weights (SqueezeLLM, Kim et al. 2023): how far the loss moves with each, as the mean over samples of its
squared gradient.

In: a captured language model, a weight store, samples, the weights asked for. Out: one file a weight, [N, K]. Forward stretch by
stretch with what enters each kept on disk, then backward from the last: in memory are one stretch's weights, their gradients, and
for every sample the gradient of what lies between two stretches. The loss is the cross-entropy of the next token.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.ir.errors import RefusedError
from tilewright.ir.graph import Graph, Module, Op
from tilewright.ir.graph_interp import Dims, bind_symbols, check_inputs
from tilewright.ir.graph_print import op_text
from tilewright.ir.ops.base import Array, find_op
from tilewright.ir.solver import F32
from tilewright.ir.weights import WeightStore
from tilewright.passes.solvers.products import fast_products
from tilewright.samples import Sample
from tilewright.stretches import Stretch, StretchRunner, born_before, last_stretch, stretches_of, wanted_linear
from tilewright.torch_ops import on_tensors

#: (what is done, how many of how many)
Told = Callable[[str, int, int], None]
INSTEAD = "use wlsq, which weighs by what is multiplied alone, for any model"


def fisher(
    module: Module, store: WeightStore, samples: Sequence[Sample], files: Mapping[str, Path], work: Path, told: Told | None = None
) -> None:
    """Write the file of every weight named. RefusedError if the model has no next token, or an op on the way no gradient."""
    names = {n for n, path in files.items() if not path.exists()}
    if not names:
        return
    graph = module.graphs[0]
    _check_language_model(module, graph)
    stretches = stretches_of(module, graph, samples[0], names)
    _check_read_once(stretches, names)
    stretches.append(last_stretch(module, graph, samples[0], stretches[-1].hi))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    steps = 2 * len(stretches) - 1
    runner = StretchRunner(module, graph, store, samples)
    for n, stretch in enumerate(stretches):
        for s, values in enumerate(runner.memory):
            np.savez(_entry(work, n, s), **{o: values[o] for o in born_before(graph, stretch)})  # type: ignore[arg-type]
        if n + 1 < len(stretches):
            what = f"Fisher information, forward {n + 1} of {len(stretches)}"
            runner.run_stretch(stretch, {}, _telling(told, what, n, steps, len(samples)))
            runner.forget()
    backward = _Backward(module, graph, store, names, samples)
    for n in reversed(range(len(stretches))):
        what = f"Fisher information, backward {len(stretches) - n} of {len(stretches)}"
        found = backward.run(stretches[n], work, n, _telling(told, what, steps - n - 1, steps, len(samples)))
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
    if {v.name for v in graph.inputs} - {"pos"} != {"ids"} or logits not in types or types[logits].shape[-1] != vocab:
        inputs = ", ".join(v.name for v in graph.inputs)
        what = f"Fisher information needs token ids in and logits out; this model takes {inputs}"
        raise RefusedError(what, "calibrate", INSTEAD)


def _check_read_once(stretches: Sequence[Stretch], names: set[str]) -> None:
    read = [w for s in stretches for w in {w for _, w in s.linears}]
    for name in sorted(names):
        if read.count(name) > 1:
            what = f"Fisher information of @{name}, which several layers share, would need its gradients from all of them at once"
            raise RefusedError(what, "calibrate", INSTEAD)
        if name not in read:
            raise RefusedError(f"Fisher information of experts is not known: @{name}", "calibrate", INSTEAD)


class _Backward:
    """Gradients stretch by stretch, from the loss on."""

    def __init__(self, module: Module, graph: Graph, store: WeightStore, names: set[str], samples: Sequence[Sample]) -> None:
        self.graph, self.names, self.samples = graph, names, samples
        self.runner = StretchRunner(module, graph, store, ())
        self.dims = [Dims(bind_symbols(module.symbols, graph, check_inputs(graph, s), {})) for s in samples]
        self.gradients: list[dict[str, Any]] = [{} for _ in samples]
        self.moved = _moved(graph, names)

    def run(self, stretch: Stretch, work: Path, n: int, told: Callable[[int], None]) -> dict[str, F32]:
        """The mean squared gradients of a stretch's weights."""
        import torch

        ops = self.graph.ops[stretch.lo : stretch.hi]
        weights = {o: self._weight(o) for op in ops for o in op.operands if o[0] == "@"}
        wanted = {o: w.requires_grad_() for o, w in weights.items() if o[1:] in self.names}
        sums = {o: torch.zeros_like(w) for o, w in wanted.items()}
        for s in range(len(self.samples)):
            with np.load(_entry(work, n, s)) as held:
                entries = {o: torch.from_numpy(held[o]) for o in held.files}
            leaves = {o: x.requires_grad_() for o, x in entries.items() if o in self.moved}
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
            args = [values[o] if o[0] == "%" or op.name == "linear" else values[o].detach() for o in op.operands]
            at = {k: self.dims[s].value(v) for k, v in op.attrs}
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
        types = [r.type.with_(shape=self.dims[s].shape(r.type)) for r in op.results]
        arrays: list[Array] = [a.numpy() for a in args]
        with np.errstate(all="ignore"):
            found = find_op(op.name).meaning(arrays, at, types)
        return [torch.from_numpy(np.array(x)) for x in (found if isinstance(found, tuple) else (found,))]


def _moved(graph: Graph, names: set[str]) -> set[str]:
    """Values that a change of the weights moves. A table that is also the head counts as the head alone."""
    out: set[str] = set()
    for op in graph.ops:
        if any(o in out for o in op.operands) or wanted_linear(op, names):
            out |= {f"%{r.name}" for r in op.results}
    return out


def _loss(logits: Any, ids: Array) -> Any:
    import torch

    rows = logits.reshape(-1, logits.shape[-1])
    return torch.nn.functional.cross_entropy(rows[:-1], torch.from_numpy(np.asarray(ids, np.int64).reshape(-1)[1:]))
