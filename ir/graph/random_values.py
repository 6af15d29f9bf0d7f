"""Random inputs and weights for any graph, from a seed: what `--check-each`, `exec` and tests run on.

In: a module, a graph, sizes of some symbols. Out: arrays that are legal inputs: indices within what they
index, a step's tokens as whole runs of sequences with their query-block table. Independent of passes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.graph.core import Apply, Graph, Inline, Module, Stored, Value, Weight, WeightExpr
from tilewright.ir.interp.graph import Dims, bounded
from tilewright.ir.numbers import HELD, hold
from tilewright.ir.ops.base import Array
from tilewright.ir.plan.core import Program
from tilewright.ir.plan.step import BLOCK, block_rows, block_table
from tilewright.ir.solver import Streams
from tilewright.ir.text.graph_printer import source_text
from tilewright.ir.types import FLOATS
from tilewright.ir.weights.solved import streams_of
from tilewright.ir.weights.sources import WeightStore

Ints = NDArray[np.int32]
#: inputs of a step that are made together
_MADE = ("pos", "seq", "blocks", "rows")
#: operand slots that hold indices, by op: (slot of the indices, slot of what they index, axis attribute or
#: axis)
_INDEXED = {
    "gather": (1, 0, "axis"), "gather_elements": (1, 0, "axis"), "select_rows": (1, 0, 0),
    "index_put": (1, 0, 0),
    "scatter": (1, 0, "axis"), "grouped_linear": (2, 1, 0), "take_tokens": (1, 0, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A step over `lengths[s]` new tokens of sequence s, the first at position `starts[s]`."""

    lengths: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def seq(self) -> Ints:
        return np.repeat(np.arange(len(self.lengths), dtype=np.int32), self.lengths)

    @property
    def pos(self) -> Ints:
        runs = [np.arange(a, a + n) for a, n in zip(self.starts, self.lengths, strict=True)]
        return np.concatenate(runs).astype(np.int32) if runs else np.zeros(0, np.int32)

    def blocks(self, most: int = BLOCK) -> Ints:
        """The table of query blocks of at most `most` rows."""
        return block_table(self.seq, self.pos, most)

    @property
    def last_rows(self) -> Ints:
        return np.cumsum([n for n in self.lengths if n]).astype(np.int32) - 1


def random_inputs(
    module: Module, graph: str, seed: int = 0, symbols: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """One legal set of inputs. `symbols` fixes sizes; the others are small and differ from each other where
    ranges allow."""
    g, rng = module.graph(graph), np.random.default_rng(seed)
    sizes = choose_sizes(module, symbols or {})
    most = block_rows(module.symbols)
    step = step_of(g, sizes, symbols or {}, most)
    dims = Dims(sizes)
    bounds = index_bounds(module, g, dims)
    out: dict[str, Array] = {}
    for v in g.inputs:
        shape = dims.shape(v.type)
        if step is not None and v.name in _MADE:
            out[v.name] = _step_input(v.name, step, shape, most)
        else:
            out[v.name] = _random(v, shape, rng, bounds.get("%" + v.name))
    return out


def signatures(program: Program) -> Module:
    """A program's inputs, weights and symbols as a module of empty graphs, for which inputs and weights can
    be made."""
    graphs = tuple(Graph(p.name, p.inputs, (), ()) for p in program.plans)
    return Module(graphs, program.weights, program.states, program.symbols)


def choose_sizes(module: Module, given: Mapping[str, int]) -> dict[str, int]:
    """A value for every symbol: as given, else 2, 3, 5, … within its range."""
    sizes, primes = {}, [3, 5, 2, 7, 4, 6, 9, 11]
    for n, (name, r) in enumerate(module.symbols):
        wanted = given.get(name, primes[n % len(primes)])
        sizes[name] = wanted if name in given else max(r.lo, wanted if r.hi is None else min(r.hi, wanted))
    return {**sizes, **{k: n for k, n in given.items() if k not in sizes}}


def step_of(g: Graph, sizes: dict[str, int], given: Mapping[str, int], most: int = BLOCK) -> Step | None:
    """The step that a graph over flat tokens takes, with sizes of its rows and query-block table (`most` rows
    in one block) set to fit; None for other graphs.
    """
    types = {v.name: v.type for v in g.inputs}
    if not {"pos", "seq"} <= set(types) or types["pos"].rank != 1:
        return None
    n = Dims(sizes).dim(types["pos"].shape[0])
    first = n - n // 3
    step = Step((first, n - first), (0, 0)) if n > first else Step((n,), (0,))
    if "blocks" in types and not isinstance(types["blocks"].shape[0], int):
        sizes[str(types["blocks"].shape[0])] = len(step.blocks(most))
    if (
        "rows" in types
        and str(types["rows"].shape[0]) not in given
        and not isinstance(types["rows"].shape[0], int)
    ):
        sizes[str(types["rows"].shape[0])] = min(n, max(2, len(step.lengths)))
    return step


def _step_input(name: str, step: Step, shape: tuple[int, ...], most: int) -> Array:
    if name == "rows":
        n = int(sum(step.lengths))
        return (n - 1 - np.arange(shape[0]) % max(n, 1)).astype(np.int32)[::-1].copy()
    return step.blocks(most) if name == "blocks" else step.pos if name == "pos" else step.seq


def index_bounds(module: Module, g: Graph, dims: Dims) -> dict[str, int]:
    """For every operand used as indices, the smallest axis that it indexes."""
    out: dict[str, int] = {}
    for op in g.ops:
        if op.name in _INDEXED:
            slot, target, axis = _INDEXED[op.name]
            shape = module.operand_type(g, op.operands[target]).shape
            where = int(str(op.attr(axis) if isinstance(axis, str) else axis))
            size = dims.dim(shape[where])
            out[op.operands[slot]] = min(size, out.get(op.operands[slot], size))
    return out


def _random(v: Value, shape: tuple[int, ...], rng: np.random.Generator, bound: int | None) -> Array:
    if v.name == "pos" and v.type.dtype not in FLOATS and shape:
        return np.broadcast_to(np.arange(shape[-1], dtype=HELD[v.type.dtype]), shape).copy()
    if v.type.dtype == "bool":
        return rng.random(shape) < 0.8
    if v.type.dtype in FLOATS:
        return hold(rng.standard_normal(shape).astype(np.float32), v.type.dtype)
    return rng.integers(0, bound or 8, shape).astype(HELD[v.type.dtype])


class RandomWeights(WeightStore):
    """Values for any weight without a file. Equal expressions get equal values, and an expression over known
    ones is computed from them, so that a module and what passes make of it see the same numbers. Inline
    constants are kept."""

    def __init__(self, seed: int = 0, scale: float = 0.3) -> None:
        super().__init__()
        self.seed, self.scale = seed, scale
        self.shapes: dict[WeightExpr, tuple[int, ...]] = {}

    def learn(self, module: Module) -> RandomWeights:
        """Take the shapes of the module's weights: stored tensors first, then expressions over tensors of
        unknown shape."""
        for w in module.weights:
            if isinstance(w.source, Stored):
                self.shapes[w.source] = _ints(w)
        for w in module.weights:
            if not self._known(w.source):
                self.shapes[w.source] = _ints(w)
        return self

    def load(self, weight: Weight) -> Array:
        if not self._known(weight.source):
            self.shapes[weight.source] = _ints(weight)
        return super().load(weight)

    def evaluate(self, e: WeightExpr) -> Array:
        if e not in self.shapes:
            return super().evaluate(e)
        rng = np.random.default_rng([self.seed, zlib.crc32(source_text(e).encode("utf-8", "replace"))])
        return (rng.standard_normal(self.shapes[e]) * self.scale).astype(np.float32)

    def raw(self, e: Stored) -> tuple[Array, str]:
        return self.evaluate(e), "f32"

    def streams(self, weight: Weight, lo: int, hi: int) -> Streams | None:
        """Random values are rounded to nearest, whatever a solver found for the real ones."""
        encoding = weight.type.encoding
        if encoding is None or not streams_of(weight.source):
            return None
        return encoding.encode(np.asarray(self.load(weight)[lo:hi], np.float32))

    def _known(self, e: WeightExpr) -> bool:
        if e in self.shapes or isinstance(e, Inline):
            return True
        return isinstance(e, Apply) and all(map(self._known, e.args))


def _ints(w: Weight) -> tuple[int, ...]:
    return bounded(tuple(int(d) for d in w.type.shape))
