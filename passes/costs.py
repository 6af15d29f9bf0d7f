"""What a graph computes and reads: arithmetic from the ops' cost records, bytes of weights as stored.

In: a module, a value for each of its symbols. Out: a row for each kind of op. Says nothing of time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.ops.base import OPS
from tilewright.ir.types import TensorType, evaluate_dim
from tilewright.passes.lower.dims import nbytes
from tilewright.passes.lower.record import lowering_of
from tilewright.passes.patterns import View


@dataclass(frozen=True)
class Cost:
    """`count` ops of one name. `operations`: arithmetic operations, None where the op's record does not say;
    `weight_bytes`: bytes of weights read, scales and padding included."""

    op: str
    count: int
    operations: int | None
    weight_bytes: int


def costs_of(module: Module, graph: Graph, sizes: Mapping[str, int]) -> tuple[Cost, ...]:
    """A row for each kind of op that computes or reads a weight, the most operations first. `sizes`: values
    of all symbols, and of CONTEXT where the graph reads caches. KeyError if one is missing."""
    view = View(module, graph)
    found: dict[str, Cost] = {}
    for op in graph.ops:
        before = found.get(op.name, Cost(op.name, 0, 0, 0))
        own = operations(view, op, sizes)
        total = None if own is None or before.operations is None else before.operations + own
        read = before.weight_bytes + sum(_weights_read(view, op, sizes))
        found[op.name] = Cost(op.name, before.count + 1, total, read)
    rows = [c for c in found.values() if c.operations != 0 or c.weight_bytes]
    return tuple(sorted(rows, key=lambda c: (-(c.operations or 0), -c.weight_bytes, c.op)))


def operations(view: View, op: Op, sizes: Mapping[str, int]) -> int | None:
    """Arithmetic operations of one op; None if its record has no cost."""
    record = OPS[op.name]
    if record.cost is None:
        return None
    types = [view.type(o) for o in op.operands[bool(record.state) :]]
    return evaluate_dim(cast(int, record.cost(types, dict(op.attrs))), sizes)


def _weights_read(view: View, op: Op, sizes: Mapping[str, int]) -> Iterator[int]:
    """Bytes of each weight that an op reads: of one that is picked from, the part that can be picked."""
    record = lowering_of(op)
    for n, o in enumerate(op.operands):
        if o[1:] not in view.weights or o[0] != "@":
            continue
        t = view.type(o)
        share = 1.0
        if record is not None and record.picks == n:
            share = _elements(op.results[0].type, sizes) / max(_elements(t, sizes), 1)
        elif (
            record is not None
            and record.matrix is not None
            and record.matrix.experts
            and record.matrix.operand == n
        ):
            chosen = math.prod(_shape(op.results[0].type, sizes)[:-1])
            share = chosen / max(_shape(t, sizes)[0], 1)
        yield round(nbytes(t, sizes) * min(share, 1.0))


def _shape(t: TensorType, sizes: Mapping[str, int]) -> list[int]:
    return [evaluate_dim(d, sizes) for d in t.shape]


def _elements(t: TensorType, sizes: Mapping[str, int]) -> int:
    return math.prod(_shape(t, sizes))
