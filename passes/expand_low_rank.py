"""Linear layers whose weight has a low-rank part, as linear layers: y = x W' + (x R) L.

In: a module whose weights are encoded. Out: the same, where each weight `E + lowrank(r)` has become three:
the rest of its values as E, and the factors. `encode-weights` ends with this, so that the passes behind it
see nothing but linear layers.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir.encoding import Factors
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Apply, Graph, Module, Op, Weight
from tilewright.ir.graph.live import tidy
from tilewright.ir.weights.solved import solver_text
from tilewright.passes.base import PassContext

_PASS = "encode-weights"


def expand_low_rank(module: Module, ctx: PassContext) -> Module:
    """RefusedError where such a weight is read by another op, or stored by a solver."""
    found = {w.name: f for w in module.weights if (f := _factors(w)) is not None}
    if not found:
        return module
    for graph in module.graphs:
        module = _graph(module, module.graph(graph.name), found)
    for name, f in found.items():
        ctx.applied("low rank", f"@{name}", f"stored as {f.base} beside factors of rank {f.rank}")
    return tidy(module)


def rest_of(name: str) -> str:
    """What the weight that holds the rest of another's values is called."""
    return f"{name}.rest"


def _factors(w: Weight) -> Factors | None:
    found = w.type.encoding.factors if w.type.encoding is not None else None
    if found is not None and solver_text(w) is not None:
        raise RefusedError(
            f"the solver {solver_text(w)} cannot find a low-rank part", f"@{w.name}",
            "use the encoding without a solver, or without + lowrank",
        )  # fmt: skip
    return found


def _graph(module: Module, graph: Graph, found: dict[str, Factors]) -> Module:
    b = GraphBuilder.over(module, graph, _PASS)
    for op in graph.ops:
        reads = [o for o in op.operands if o[0] == "@" and o[1:] in found]
        if reads:
            _expand(b, op, reads[0], found[reads[0][1:]])
        else:
            b.copy(op)
    for n, o in enumerate(graph.outputs):
        b.output(b.mapped(o), graph.results[n] if graph.results else None)
    return b.module()


def _expand(b: GraphBuilder, op: Op, weight: str, f: Factors) -> None:
    """The factors first: their sum is what the bias and all that follows is added to."""
    if op.name != "linear" or op.operands[1] != weight or weight in (op.operands[0], *op.operands[2:]):
        raise RefusedError(
            f"{op.name} reads it, but only weights of linear layers can have a low-rank part",
            f"{weight} as {b.weights[weight[1:]].type.encoding}",
            f'store it without + lowrank, with a line like "{weight[1:]}" = "{f.base}" under [rules]',
        )
    x, _, *bias = (b.mapped(o) for o in op.operands)
    left, right = (_part(b, weight[1:], f, side) for side in ("left", "right"))
    product = b.op("linear", b.op("linear", x, right, loc=op.loc), left, loc=op.loc)
    rest = b.op("linear", x, _part(b, weight[1:], f, "rest"), *bias, loc=op.loc)
    b.replace(f"%{op.result.name}", b.op("add", rest, product, loc=op.loc))


def _part(b: GraphBuilder, name: str, f: Factors, part: str) -> str:
    """One of the three weights."""
    w = b.weights[name]
    source = Apply("low_rank", (w.source,), (("part", part), ("rank", f.rank)))
    if part == "rest":
        return b.weight(rest_of(name), w.type.with_(encoding=f.base), source)
    n, k = w.type.shape
    shape = (n, f.rank) if part == "left" else (f.rank, k)
    stored = f.encoding.arranged("panel")
    return b.weight(f"{name}.{part}", replace(w.type, shape=shape, encoding=stored), source)
