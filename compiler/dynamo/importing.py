"""One graph of PyTorch operators, as AOT autograd makes them, in Graph IR.

In: an `fx` graph without mutation, which of its placeholders are known tensors. Out: a module with the graph
@forward, the arrays its weights name, and how its symbols follow from arguments. Every op's place names the
node that it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.fx import Graph, GraphModule, Node

from tilewright.capture.importer import import_traced
from tilewright.capture.memory import MemoryWeights
from tilewright.capture.symbols import is_symbolic
from tilewright.capture.traced import Traced, location
from tilewright.dynamo.nodes import is_size, is_tensor, leaves, value_of
from tilewright.ir.graph.core import Location, Module
from tilewright.ir.types import SymbolRange

#: stands before PyTorch's name of a symbol, so that it is none of those that kernels give their own sizes
_PREFIX = "D_"


@dataclass(frozen=True)
class Known:
    """A placeholder whose tensor is known when the graph is compiled: the name of its weight, the tensor."""

    name: str
    tensor: torch.Tensor


@dataclass(frozen=True)
class Imported:
    """A captured graph. `arguments`: placeholders that the program reads, in order; `results`: the nodes that
    it computes, by name; `returned`: what the graph returns, in order: nodes and constants. Of those, views
    of a result or an argument are taken by PyTorch, so that they share its memory as in eager PyTorch."""

    module: Module
    arrays: Mapping[str, Any]
    arguments: tuple[Node, ...]
    results: Mapping[str, Node]
    returned: tuple[Any, ...]


def import_graph(gm: GraphModule, known: Mapping[str, Known], most: int) -> Imported:
    """`known`: by name of placeholder; `most`: of sizes that nothing else bounds. Raises NotImported naming
    each node that is not supported."""
    graph, returned = _without_passed(gm)
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    stored = {n: (known[n.name].name, known[n.name].tensor) for n in placeholders if n.name in known}
    for n in graph.nodes:
        if n.op == "get_attr":
            stored[n] = (f"constants.{n.target}", getattr(gm, str(n.target)))
    names = {n: _name(n) for n in placeholders if n not in stored}
    results = list(dict.fromkeys(_results(graph)))
    weights = MemoryWeights(dict(stored.values()), frozenset(k.name for k in known.values()))
    dims = symbol_names(graph)
    made = import_traced(
        Traced(graph, tuple(names.items()), stored, [f"{n.name}_out" for n in results]),
        graph_name="forward",
        symbols={ours: _range(graph, theirs, most) for theirs, ours in dims.items()},
        dims=dims,
        weight=weights,
        weight_name=weights.name,
        meta={"kind": "plain"},
        place_of=_place,
        checks=True,
    )
    read = tuple(n for n, name in names.items() if name)
    return Imported(made, weights.arrays, read, {f"{n.name}_out": n for n in results}, returned)


def _name(node: Node) -> str | None:
    if not isinstance(value_of(node), torch.Tensor):
        return None
    return node.name if node.users else ""


def _place(node: Node) -> Location:
    at = location(node)
    return Location(at.file, at.line, node.name) if at else Location("", 0, node.name)


# ------------------------------------------------------------------ results
def _without_passed(gm: GraphModule) -> tuple[Graph, tuple[Any, ...]]:
    """A copy of the graph that returns only what it computes and no views of that, and all that it returned:
    nodes of the copy, and constants."""
    graph, copies = Graph(), dict[Node, Node]()
    returned = graph.graph_copy(gm.graph, copies)
    listed = tuple(returned) if isinstance(returned, list | tuple) else (returned,)
    bases = [viewed(n)[0] for n in listed if isinstance(n, Node)]
    graph.output([n for n in bases if n.op == "call_function" and not is_size(n)])
    return graph, listed


def viewed(node: Node) -> tuple[Node, tuple[Node, ...]]:
    """The node that a chain of views begins at, and the views, first to last. A result that PyTorch would
    lay out otherwise than contiguously is the beginning of none: its views might not be views of ours."""
    base, chain = node, list[Node]()
    while is_view(base) and isinstance(base.args[0], Node):
        chain.append(base)
        base = base.args[0]
    if chain and base.op != "placeholder" and not value_of(base).is_contiguous():
        return node, ()
    return base, tuple(reversed(chain))


def is_view(node: Node) -> bool:
    """An operator whose one result shares its first argument's memory under strides that follow from it."""
    schema = getattr(node.target, "_schema", None)
    if (
        node.op != "call_function"
        or schema is None
        or len(schema.returns) != 1
        or "as_strided" in schema.name
    ):
        return False
    info = schema.returns[0].alias_info
    one = isinstance(value_of(node), torch.Tensor) and bool(node.args) and isinstance(node.args[0], Node)
    return one and info is not None and not info.is_write


def _results(graph: Graph) -> list[Node]:
    (out,) = (n for n in graph.nodes if n.op == "output")
    return [n for n in out.args[0] if isinstance(n, Node)]


# ------------------------------------------------------------------ symbols
def symbol_names(graph: Graph) -> dict[str, str]:
    """Our names of all symbols that sizes of the graph's tensors are made of; one name for two that its
    operators take to be equal."""
    found: dict[str, None] = {}
    for node in graph.nodes:
        for x in leaves(value_of(node)):
            dims = x.shape if isinstance(x, torch.Tensor) else [x] if is_symbolic(x) else []
            for d in dims:
                if is_symbolic(d):
                    found.update(dict.fromkeys(sorted(map(str, d.node.expr.free_symbols))))
    names = {s: f"{_PREFIX}{s}" for s in found}
    for node in graph.nodes:
        for kept, same in _equal_lengths(node):
            names.update({s: names[kept] for s, ours in names.items() if ours == names[same]})
    return names


def _equal_lengths(node: Node) -> list[tuple[str, str]]:
    """Pairs of symbols that must be equal for attention's keys and values to be of one length: PyTorch does
    not look at the length of the values."""
    if node.op != "call_function" or "scaled_dot_product" not in str(node.target):
        return []
    shapes = [value_of(x).shape for x in node.args[1:3] if isinstance(x, Node) and is_tensor(x)]
    lengths = [s[-2].node.expr for s in shapes if len(s) > 1 and is_symbolic(s[-2])]
    if len(lengths) != 2:
        return []
    apart = sympy.expand(lengths[0] - lengths[1]).as_coefficients_dict()
    one = [str(s) for s, k in apart.items() if k == 1 and s.is_Symbol]
    other = [str(s) for s, k in apart.items() if k == -1 and s.is_Symbol]
    return [(one[0], other[0])] if len(one) == len(other) == 1 and len(apart) == 2 else []


def _range(graph: Graph, name: str, most: int) -> SymbolRange:
    env = next(e for n in graph.nodes if (e := _shape_env(value_of(n))) is not None)
    known = next((r for s, r in env.var_to_range.items() if str(s) == name), None)
    lo: Any = getattr(known, "lower", 0)
    hi: Any = getattr(known, "upper", None)
    least = max(0, int(lo)) if getattr(lo, "is_Integer", False) else 0
    return SymbolRange(least, max(least, min(most, int(hi) if getattr(hi, "is_Integer", False) else most)))


def example_sizes(graph: Graph) -> list[int]:
    """What the symbols of a graph were when it was captured."""
    names = symbol_names(graph)
    env = next((e for n in graph.nodes if (e := _shape_env(value_of(n))) is not None), None)
    hints = getattr(env, "backed_var_to_val", None) or getattr(env, "var_to_val", {})
    return [int(v) for s, v in hints.items() if str(s) in names and getattr(v, "is_Integer", False)]


def _shape_env(value: Any) -> Any:
    for x in leaves(value):
        dims = x.shape if isinstance(x, torch.Tensor) else [x]
        for d in dims:
            if is_symbolic(d):
                return d.node.shape_env
    return None


Sizes = Callable[..., Sequence[int]]


def sizes_of(dims: Sequence[Any], symbols: Sequence[str]) -> Sizes:
    """A function from values of our symbols, in order, to the values of these dimensions."""
    if all(isinstance(d, int) for d in dims):
        fixed = tuple(dims)
        return lambda *_: fixed
    expressions = [sympy.sympify(d) for d in dims]
    free = {str(s): s for e in expressions for s in e.free_symbols}
    made: Sizes = sympy.lambdify([free.get(n, sympy.Symbol(n)) for n in symbols], expressions, modules="math")
    return made
