"""A graph cut where little is live, and run stretch by stretch over all samples: every weight is read once.

In: a graph, one sample for the sizes, the weights whose inputs are wanted. Out: stretches; running one calls back with those
inputs. Contractions and attention run in float32 on PyTorch; every other op by its reference meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tilewright.ir.graph import Graph, Module, Op
from tilewright.ir.graph_interp import Dims, Interpreter, bind_symbols, check_inputs
from tilewright.ir.kvstate import InterpStates
from tilewright.ir.numbers import hold
from tilewright.ir.ops.base import Array
from tilewright.ir.weights import Weights
from tilewright.samples import Sample

#: a place is a cut where at most so many times the least is live
SLACK = 1.25
Sink = Callable[[Array], None]


@dataclass(frozen=True)
class Stretch:
    """Ops `lo`..`hi` of a graph. `linears`: (input, weight) pairs wanted; `weights` read; elements live at the entry and at most
    made inside, for one sample."""

    lo: int
    hi: int
    linears: tuple[tuple[str, str], ...]
    weights: tuple[str, ...]
    entry: int
    peak: int


def stretches_of(module: Module, graph: Graph, sample: Sample, names: set[str]) -> list[Stretch]:
    """The graph up to the last op that reads one of the names, cut at its narrow places."""
    values = check_inputs(graph, sample)
    dims = Dims(bind_symbols(module.symbols, graph, values, {}))
    at = [n for n, op in enumerate(graph.ops) if wanted_linear(op, names)]
    if not at:
        return []
    live = _live(graph, dims, values)
    inner = live[at[0] : at[-1] + 1]
    narrow = SLACK * min(inner)
    cuts, found = [0], False
    for n in range(at[-1]):
        found = found or n in at
        if found and live[n + 1] <= narrow:
            cuts.append(n + 1)
            found = False
    cuts.append(at[-1] + 1)
    return [_stretch(graph, dims, lo, hi, names, live[lo]) for lo, hi in zip(cuts, cuts[1:], strict=False)]


def wanted_linear(op: Op, names: set[str]) -> bool:
    return op.name == "linear" and op.operands[1][1:] in names


def _live(graph: Graph, dims: Dims, values: Mapping[str, Array]) -> list[int]:
    """Elements live before each op."""
    sizes = {o: x.size for o, x in values.items()}
    sizes |= {f"%{r.name}": math.prod(dims.shape(r.type)) for op in graph.ops for r in op.results}
    last = last_uses(graph)
    born = {f"%{r.name}": n for n, op in enumerate(graph.ops) for r in op.results}
    change = [0] * (len(graph.ops) + 2)
    for o, size in sizes.items():
        if o in last:
            change[born.get(o, -1) + 1] += size
            change[last[o] + 1] -= size
    return [int(x) for x in np.cumsum(change)]


def last_uses(graph: Graph) -> dict[str, int]:
    """The op after which a value is not needed. Results of the graph are not needed either."""
    return {o: n for n, op in enumerate(graph.ops) for o in op.operands if o[0] == "%"}


def _stretch(graph: Graph, dims: Dims, lo: int, hi: int, names: set[str], entry: int) -> Stretch:
    ops = graph.ops[lo:hi]
    pairs = {(op.operands[0], op.operands[1][1:]): None for op in ops if wanted_linear(op, names)}
    weights = {o[1:]: None for op in ops for o in op.operands if o[0] == "@"}
    peak = sum(math.prod(dims.shape(r.type)) for op in ops for r in op.results)
    return Stretch(lo, hi, tuple(pairs), tuple(weights), entry, peak)


class StretchRunner(Interpreter):
    """Runs stretches in order, keeping for every sample what is live between them. Weights are read as they are stored in the
    checkpoint, not through their encodings."""

    def __init__(self, module: Module, graph: Graph, weights: Weights, samples: Sequence[Sample]) -> None:
        super().__init__(module, weights, keep=True)
        self.graph, self.last = graph, last_uses(graph)
        self.memory = [check_inputs(graph, s) for s in samples]
        self.dims = [Dims(bind_symbols(module.symbols, graph, v, {})) for v in self.memory]
        self.states = InterpStates(module.states)

    def run_stretch(self, stretch: Stretch, sinks: Mapping[str, Sink], told: Callable[[int], None]) -> None:
        """Run a stretch on every sample; `sinks` get the values they name."""
        for n, (values, dims) in enumerate(zip(self.memory, self.dims, strict=True)):
            for at in range(stretch.lo, stretch.hi):
                op = self.graph.ops[at]
                self._op(op, values, dims, self.states)
                for r in op.results:
                    if f"%{r.name}" in sinks:
                        sinks[f"%{r.name}"](values[f"%{r.name}"])
                for o in {*op.operands, *(f"%{r.name}" for r in op.results)}:
                    if self.last.get(o, -1) <= at:
                        values.pop(o, None)
            told(n + 1)

    def forget(self) -> None:
        """Drop the weights read."""
        self._kept.clear()

    def _op(self, op: Op, values: dict[str, Array], dims: Dims, states: InterpStates) -> None:
        fast = _FAST.get(op.name)
        done = fast(op, [self._read(o, values) for o in op.operands]) if fast else None
        if done is None:
            super()._op(op, values, dims, states)
        else:
            values[f"%{op.result.name}"] = hold(done, op.result.type.dtype)

    def _read(self, operand: str, values: Mapping[str, Array]) -> Array:
        if operand[0] == "@" and operand[1:] not in self._kept:
            assert self.weights is not None
            self._kept[operand[1:]] = self.weights(self._weight_map[operand[1:]])
        return super()._read(operand, values)


def _linear(op: Op, args: Sequence[Array]) -> Array | None:
    import torch

    x, w = (torch.from_numpy(np.ascontiguousarray(a, np.float32)) for a in args[:2])
    y: Array = (x @ w.T).numpy()
    return y + args[2] if len(args) == 3 else y


def _attend(op: Op, args: Sequence[Array]) -> Array | None:
    """Plain causal or full attention; None: the reference meaning."""
    import torch

    at = dict(op.attrs)
    if len(args) > 3 or at["flat"] or at["softcap"] or at["window"] or args[0].shape[1] != args[1].shape[1]:
        return None
    q, k, v = (torch.from_numpy(np.ascontiguousarray(a, np.float32)).transpose(1, 2) for a in args)
    group = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=bool(at["causal"]), scale=float(str(at["scale"])))
    out: Array = np.ascontiguousarray(y.transpose(1, 2).numpy())
    return out


_FAST: Mapping[str, Callable[[Op, Sequence[Array]], Array | None]] = {"linear": _linear, "attend": _attend}
