"""A graph cut where little is live, and run segment by segment over all samples: every weight is read once.

In: a graph, one sample for the sizes, the weights whose inputs are wanted. Out: segments; running one calls
back with those inputs. Ops of float32 run on PyTorch where it has them, every other op by its reference
semantics. A weight that is stored as bf16 meets activations rounded to bf16 on CPUs with such products, as it
does in PyTorch.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.calibration.samples import Sample
from tilewright.calibration.torch_ops import as_bf16, run_fast
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.interp.graph import Dims, Interpreter, bind_symbols, check_inputs
from tilewright.ir.interp.kv_cache import InterpStates
from tilewright.ir.numbers import hold
from tilewright.ir.ops.base import Array, find_op
from tilewright.ir.weights.sources import Weights
from tilewright.passes.lower.record import matrix_of
from tilewright.passes.solvers.products import fast_products, narrow_products

#: a place is a cut where at most so many times the least is live
SLACK = 1.25
#: samples after which freed memory is given back
TRIM = 8
Sink = Callable[[Array], None]
Routed = Callable[[Array, Array], None]


@dataclass(frozen=True)
class Segment:
    """Ops `lo`..`hi` of a graph. `linears`: (input, weight) pairs wanted; `experts`: stacked weights [E, N,
    K] wanted; `weights` read; elements live at the entry and at most made inside, for one sample."""

    lo: int
    hi: int
    linears: tuple[tuple[str, str], ...]
    experts: tuple[str, ...]
    weights: tuple[str, ...]
    entry: int
    peak: int

    @property
    def wanted(self) -> tuple[str, ...]:
        """The weights wanted, of linears and experts."""
        return (*(w for _, w in self.linears), *self.experts)


def segments_of(module: Module, graph: Graph, sample: Sample, names: set[str]) -> list[Segment]:
    """The graph up to the last op that reads one of the names, cut at its narrow places."""
    values = check_inputs(graph, sample)
    dims = Dims(bind_symbols(module.symbols, graph, values, {}))
    at = [n for n, op in enumerate(graph.ops) if _read([op], names) or _read([op], names, experts=True)]
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
    return [_segment(graph, dims, lo, hi, names, live[lo]) for lo, hi in zip(cuts, cuts[1:], strict=False)]


def last_segment(module: Module, graph: Graph, sample: Sample, lo: int) -> Segment:
    """What is left of a graph."""
    values = check_inputs(graph, sample)
    dims = Dims(bind_symbols(module.symbols, graph, values, {}))
    return _segment(graph, dims, lo, len(graph.ops), set(), _live(graph, dims, values)[lo])


def born_before(graph: Graph, segment: Segment) -> tuple[str, ...]:
    """Values that a segment reads and does not make."""
    ops = graph.ops[segment.lo : segment.hi]
    made = {f"%{r.name}" for op in ops for r in op.results}
    return tuple(dict.fromkeys(o for op in ops for o in op.operands if o[0] == "%" and o not in made))


def contraction(op: Op, experts: bool = False) -> tuple[str, str] | None:
    """(input, weight) of an op that multiplies by one matrix, or by one of many (`experts`), if that is a
    weight."""
    matrix = matrix_of(op)
    if (
        matrix is None
        or matrix.experts is not experts
        or matrix.windows
        or op.operands[matrix.operand][0] != "@"
    ):
        return None
    return op.operands[matrix.times], op.operands[matrix.operand][1:]


def _read(ops: Sequence[Op], names: set[str], experts: bool = False) -> dict[tuple[str, str], Op]:
    """The contractions that read one of the names, by (input, weight), in order."""
    found = ((contraction(op, experts), op) for op in ops)
    return {pair: op for pair, op in found if pair is not None and pair[1] in names}


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


def _segment(graph: Graph, dims: Dims, lo: int, hi: int, names: set[str], entry: int) -> Segment:
    ops = graph.ops[lo:hi]
    pairs = _read(ops, names)
    experts = {w: None for _, w in _read(ops, names, experts=True)}
    weights = {o[1:]: None for op in ops for o in op.operands if o[0] == "@"}
    peak = sum(math.prod(dims.shape(r.type)) for op in ops for r in op.results)
    return Segment(lo, hi, tuple(pairs), tuple(experts), tuple(weights), entry, peak)


def give_back() -> None:
    """Freed memory to the system, where the allocator can be told to: it keeps a gigabyte of it in pieces
    otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class SegmentRunner(Interpreter):
    """Runs segments in order, keeping for every sample what is live between them. Weights are read as they
    are stored in the checkpoint, not through their encodings."""

    def __init__(self, module: Module, graph: Graph, weights: Weights, samples: Sequence[Sample]) -> None:
        super().__init__(module, weights, keep=True)
        self.graph, self.last = graph, last_uses(graph)
        self.memory = [check_inputs(graph, s) for s in samples]
        self.dims = [Dims(bind_symbols(module.symbols, graph, v, {})) for v in self.memory]
        self.states = InterpStates(module.states)
        self._narrow: dict[str, Any] = {}

    def run_segment(
        self,
        segment: Segment,
        sinks: Mapping[str, Sink],
        told: Callable[[int], None],
        routed: Mapping[str, Routed] | None = None,
    ) -> None:
        """Run a segment on every sample; `sinks` get the values they name, `routed` inputs and expert ids by
        stacked weight."""
        with fast_products():
            self._run_segment(segment, sinks, told, routed or {})

    def _run_segment(
        self,
        segment: Segment,
        sinks: Mapping[str, Sink],
        told: Callable[[int], None],
        routed: Mapping[str, Routed],
    ) -> None:
        for n, (values, dims) in enumerate(zip(self.memory, self.dims, strict=True)):
            for at in range(segment.lo, segment.hi):
                op = self.graph.ops[at]
                for x, w in _read([op], set(routed), experts=True):
                    routed[w](values[x], values[op.operands[2]])
                self._op(op, values, dims, self.states)
                for r in op.results:
                    if f"%{r.name}" in sinks:
                        sinks[f"%{r.name}"](values[f"%{r.name}"])
                for o in {*op.operands, *(f"%{r.name}" for r in op.results)}:
                    if self.last.get(o, -1) <= at:
                        values.pop(o, None)
            if n % TRIM == TRIM - 1:
                give_back()  # what outlives a segment lies scattered between what does not
            told(n + 1)

    def weight(self, operand: str) -> Array:
        """A weight's values as the checkpoint has them."""
        return self._read(operand, {})

    def forget(self) -> None:
        """Drop the weights read."""
        self._cached.clear()
        self._narrow.clear()
        give_back()

    def _op(self, op: Op, values: dict[str, Array], dims: Dims, states: InterpStates) -> None:
        at = {k: dims.value(v) for k, v in op.attrs}
        stateless = not find_op(op.name).state
        args = [self._read(o, values) for o in op.operands] if stateless else []
        done = run_fast(op, at, args, lambda n: self._bf16(op.operands[n], args[n])) if stateless else None
        if done is None:
            super()._op(op, values, dims, states)
        else:
            values[f"%{op.result.name}"] = hold(
                done, op.result.type.dtype
            )  # rounded once, independent of where it is computed

    def _bf16(self, operand: str, value: Array) -> Any:
        """A weight as bf16 if it loses nothing by it and products of bf16 are faster here; kept as long as
        its values."""
        if not narrow_products() or operand[0] != "@":
            return None
        name = operand[1:]
        if name not in self._narrow:
            self._narrow[name] = as_bf16(value)
        return self._narrow[name]

    def _read(self, operand: str, values: Mapping[str, Array]) -> Array:
        if operand[0] == "@" and operand[1:] not in self._cached:
            assert self.weights is not None
            self._cached[operand[1:]] = self.weights(self._weight_map[operand[1:]])
        return super()._read(operand, values)
