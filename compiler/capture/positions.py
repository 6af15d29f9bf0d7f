"""How many positions a captured model has tables for: a fact of its graph, whatever its configuration says.

In: a graph over `pos` and the sequence symbol. Out: the number of positions and where the table is read, or
None: a model without a table (rotary, ALiBi by formula) computes any position. An index is evaluated, not
matched, so offsets and casts count.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.numbers import HELD
from tilewright.ir.types import evaluate_dim, symbol
from tilewright.ir.weights.sources import WeightStore

#: positions of a table beyond its end that are looked at
BEYOND = 8
#: an index of pairs of positions is evaluated for at most so many
PAIRS = 4200


@dataclass(frozen=True)
class Table:
    """`count` positions have an entry; `where`: the model's source line that reads them."""

    count: int
    where: str


def position_table(module: Module, graph_name: str = "forward", seq: str = "S") -> Table | None:
    """The table with the fewest positions; None if there is none."""
    g = module.graph(graph_name)
    found = [t for op in g.ops for t in (*_gathered(module, g, op, seq), *_sliced(module, g, op, seq))]
    return min(found, key=lambda t: t.count, default=None)


def _gathered(module: Module, g: Graph, op: Op, seq: str) -> Iterator[Table]:
    """A gather of a fixed number of entries whose index is made from positions alone."""
    if op.name not in ("gather", "gather_elements"):
        return
    size = module.operand_type(g, op.operands[0]).shape[int(str(op.attr("axis")))]
    behind = _behind(g, op.operands[1])
    if not isinstance(size, int) or behind is None:
        return
    shape = module.operand_type(g, op.operands[1]).shape
    along = [n for n, d in enumerate(shape) if not isinstance(d, int) and symbol(seq) in d.free_symbols]
    n = size + BEYOND if len(along) == 1 else min(size + BEYOND, PAIRS)
    if not along:
        return
    index = _evaluated(module, g, behind, op.operands[1], n, seq)
    outside = np.argwhere((index < 0) | (index >= size))
    if len(outside):
        yield Table(int(outside[:, along].max(axis=1).min()), op.loc.text if op.loc else "")


def _behind(g: Graph, operand: str) -> list[Op] | None:
    """The ops that make an index, in order; None if it reads more than positions and constants."""
    made = {f"%{r.name}": op for op in g.ops for r in op.results}
    wanted, needed = [operand], set[int]()
    while wanted:
        o = wanted.pop()
        if o in made and id(made[o]) not in needed:
            needed.add(id(made[o]))
            wanted += made[o].operands
        elif o not in made and o != "%pos":
            return None
    return [op for op in g.ops if id(op) in needed]


def _evaluated(
    module: Module, g: Graph, ops: Sequence[Op], operand: str, n: int, seq: str
) -> NDArray[np.int64]:
    """The index of one sequence of n tokens."""
    probe = Graph("probe", g.inputs, tuple(ops), (operand,), ("index",))
    sizes = {name: n if name == seq else 1 for name, _ in module.symbols}
    inputs = {}
    for v in g.inputs:
        shape = tuple(evaluate_dim(d, sizes) for d in v.type.shape)
        inputs[v.name] = np.broadcast_to(np.arange(n) if v.name == "pos" else 0, shape).astype(
            HELD[v.type.dtype]
        )
    open_ended = tuple((name, replace(r, lo=1, hi=None)) for name, r in module.symbols)
    one = replace(module, graphs=(probe,), symbols=open_ended)
    return np.asarray(Interpreter(one, WeightStore()).run("probe", inputs, symbols=sizes)["index"], np.int64)


def _sliced(module: Module, g: Graph, op: Op, seq: str) -> Iterator[Table]:
    """A slice, as long as the sequence, of an axis of fixed size."""
    if op.name != "slice":
        return
    size = module.operand_type(g, op.operands[0]).shape[int(str(op.attr("axis")))]
    ends = (op.attr("start"), op.attr("stop"))
    if not isinstance(size, int) or not any(symbol(seq) in getattr(d, "free_symbols", ()) for d in ends):
        return

    def reaches_out(n: int) -> bool:
        return any(not 0 <= evaluate_dim(d, {seq: n}) <= size for d in ends)

    most = range(1, size + BEYOND)
    count = bisect(most, False, key=reaches_out)
    if 0 < count < len(most):
        yield Table(count, op.loc.text if op.loc else "")
