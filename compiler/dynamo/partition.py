"""A graph split into parts that are compiled and operators that stay in PyTorch.

In: a graph, known tensors, options. Out: a function of the graph's arguments, and what became of each
operator. Parts are tried whole; nodes that turn out to be not supported are left out of them, and
the rest is split again by PyTorch's own partitioner.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

from tilewright.capture.context import find_importer
from tilewright.capture.symbols import is_symbolic
from tilewright.capture.traced import NotImported
from tilewright.dynamo.importing import Known, is_view, symbol_names
from tilewright.dynamo.nodes import computes, is_part, is_random, is_size, place_of, unreadable, value_of
from tilewright.dynamo.options import Options
from tilewright.dynamo.part import Part
from tilewright.dynamo.report import GraphReport, gathered
from tilewright.ir.errors import TilewrightError, UnsupportedError
from tilewright.passes.lower.program import NoKernel

Function = Callable[..., Any]


@dataclass
class Split:
    """One graph on its way. `left`: nodes that stay in PyTorch, with the reason; `built`: parts by the names
    of their nodes, which are compiled once however often the graph is split; `parts`: those of the last
    attempt."""

    gm: GraphModule
    known: Mapping[str, Known]
    options: Options
    left: dict[str, str] = field(default_factory=dict)
    built: dict[tuple[str, ...], Part] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)

    def run(self) -> Function:
        """The graph as a function; raises UnsupportedError under `strict`, naming every node that is left."""
        for node in self.gm.graph.nodes:
            if node.op == "call_function" and not is_size(node) and (why := why_not(node)):
                self.left[node.name] = why
        while (function := self._try()) is None:
            pass
        if self.left and self.options.strict:
            raise UnsupportedError(*_listed(self.report("")))
        return function

    def _try(self) -> Function | None:
        """None: more nodes were found that have to be left."""
        self.parts = []
        if not any(computes(n) for n in self.gm.graph.nodes if n.name not in self.left):
            whole: Function = _module(self.gm)
            return whole
        if not self.left:
            return self._part(self.gm)
        partitioner = CapabilityBasedPartitioner(
            _module(self.gm),
            _Supported(self.left),
            allows_single_node_partition=True,
        )
        parts = partitioner.propose_partitions()
        fused: GraphModule = partitioner.fuse_partitions([p for p in parts if any(map(_worth, p.nodes))])
        compiled: dict[str, Part] = {}
        for node in [n for n in fused.graph.nodes if n.op == "call_module"]:
            inner = getattr(fused, str(node.target))
            _give_symbols(fused.graph, node, inner)
            part = self._part(inner)
            if part is None:
                return None
            compiled[str(node.target)] = part
        for name, part in compiled.items():
            setattr(fused, name, _Called(part))
        fused.recompile()
        function: Function = fused
        return function

    def _part(self, gm: GraphModule) -> Part | None:
        key = tuple(n.name for n in gm.graph.nodes)
        if key not in self.built:
            try:
                self.built[key] = Part(gm, self.known, self.options)
            except NotImported as why:
                self._leave({_owner(f.node).name: f.what for f in why.failed}, gm, why)
                return None
            except NoKernel as why:
                nodes = {n.name: n for n in gm.graph.nodes}
                named = {
                    _owner(nodes[at.scope]).name: f"{op}: {text}"
                    for op, text, at in why.problems
                    if at is not None and at.scope in nodes
                }
                self._leave(named, gm, why)
                return None
            except TilewrightError as why:
                self._leave({}, gm, why)
                return None
        self.parts.append(self.built[key])
        return self.built[key]

    def _leave(self, found: Mapping[str, str], gm: GraphModule, why: TilewrightError) -> None:
        """Leave these nodes; all of the part if none of them is a node of it."""
        names = {n.name for n in gm.graph.nodes if computes(n)}
        chosen = {k: v for k, v in found.items() if k in names} or dict.fromkeys(names, why.message)
        self.left.update(chosen)

    def report(self, kind: str) -> GraphReport:
        nodes = [n for n in self.gm.graph.nodes if computes(n)]
        found = [
            (str(n.target).removesuffix(".default"), self.left[n.name], place_of(n))
            for n in nodes
            if n.name in self.left
        ]
        return GraphReport(kind, len(nodes), gathered(found), tuple(p.report for p in self.parts))


def why_not(node: Node) -> str:
    """Why a node cannot be compiled, as far as its operator and its tensors say; an empty string if they say
    nothing."""
    if is_random(node):
        return "random numbers are PyTorch's"
    for n in (node, *node.all_input_nodes):
        if found := unreadable(n):
            return found
    if is_part(node):
        return ""
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable:
        return "changes a tensor in place" if schema is not None else "not an operator"
    return "" if find_importer(str(node.target), {}) else "no importer"


def _owner(node: Node) -> Node:
    """The operator that a result belongs to."""
    return node.args[0] if is_part(node) and isinstance(node.args[0], Node) else node


def _listed(report: GraphReport) -> tuple[str, str, str]:
    lines = "\n".join(f"  {x.text}: {x.why}" for x in report.left)
    hint = "leave out strict=True to run them in PyTorch"
    return f"{report.in_pytorch} of {report.ops} ops are not supported:\n{lines}", "torch.compile", hint


# ------------------------------------------------------------------ graphs
def _module(gm: GraphModule) -> GraphModule:
    """A copy, which may be changed."""
    new = Graph()
    new.output(new.graph_copy(gm.graph, {}))
    return GraphModule(gm, new)


def _worth(node: Node) -> bool:
    """More than a view."""
    return computes(node) and not is_view(node)


class _Supported(OperatorSupportBase):
    def __init__(self, left: Mapping[str, str]) -> None:
        self.left = left

    def is_node_supported(self, submodules: Mapping[str, torch.nn.Module], node: Node) -> bool:
        if node.op != "call_function" or is_size(node):
            return False
        return _owner(node).name not in self.left and node.name not in self.left


def _give_symbols(graph: Graph, call: Node, inner: GraphModule) -> None:
    """Pass a part the sizes that its tensors are made of and none of its arguments shows."""
    shown = set()
    for n in inner.graph.nodes:
        if n.op == "placeholder":
            value = value_of(n)
            dims = value.shape if isinstance(value, torch.Tensor) else [value]
            shown |= {str(d.node.expr) for d in dims if is_symbolic(d)}
    for name in symbol_names(inner.graph):
        if name in shown:
            continue
        source = _holder(graph, call, name)
        if source is None:
            continue
        first = next(iter(inner.graph.nodes))
        with inner.graph.inserting_before(first):
            extra = inner.graph.placeholder(f"size_{name}")
        extra.meta["val"] = value_of(source)
        call.args = (source, *call.args)
    inner.recompile()


def _holder(graph: Graph, call: Node, name: str) -> Node | None:
    """A node whose value is the symbol."""
    for n in graph.nodes:
        if n.op == "placeholder" and is_symbolic(value_of(n)) and str(value_of(n).node.expr) == name:
            return n
    for n in graph.nodes:
        if n.op != "placeholder" or not isinstance(value_of(n), torch.Tensor):
            continue
        for axis, d in enumerate(value_of(n).shape):
            if is_symbolic(d) and str(d.node.expr) == name:
                with graph.inserting_before(call):
                    size = graph.call_function(torch.ops.aten.sym_size.int, (n, axis))
                size.meta["val"] = d
                return size
    return None


class _Called(torch.nn.Module):
    """A part where the rest of a graph calls it: one result is not a tuple."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args: Any) -> Any:
        out = self.part(*args)
        return out[0] if self.part.single else tuple(out)
