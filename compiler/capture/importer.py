"""`import_program`: a `torch.export` program as a module of Graph IR, operator by operator from a table.

In: an exported program, names of its inputs, results and symbols, and what each parameter is stored as. Out:
a module with one graph, every op placed at its line of the model's source. Raises `UnsupportedError` listing
every operator that is not supported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from tilewright.capture.aten import TABLE
from tilewright.capture.context import Capture, Importer, find_importer, place
from tilewright.capture.decompositions import decompositions
from tilewright.capture.elements import HALVES, PYTORCH, Table
from tilewright.capture.halves import rounded, widened
from tilewright.capture.symbols import Symbols, is_symbolic
from tilewright.capture.traced import Failure, NotImported, Traced, location
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Location, Module, WeightExpr
from tilewright.ir.graph.live import tidy
from tilewright.ir.ops.base import OpTypeError
from tilewright.ir.ops.common import same_shape
from tilewright.ir.types import SymbolRange, TensorType, type_text

#: operators that make a tensor's only element a Python number
ITEMS = ("aten.item.default", "aten._local_scalar_dense.default")
#: (name in the program, tensor) -> its type here and where its values come from
WeightOf = Callable[[str, Any], tuple[TensorType, WeightExpr]]
#: node -> where it stands
PlaceOf = Callable[[torch.fx.Node], Location | None]


def import_program(
    ep: ExportedProgram, *, graph_name: str, input_names: Sequence[str], result_names: Sequence[str],
    symbols: Mapping[str, SymbolRange], dims: Mapping[str, str], weight: WeightOf,
    meta: Mapping[str, object] | None = None,
    custom: Mapping[str, Importer] | None = None, weight_name: Callable[[str], str] = str, prefix: str = "",
    checks: bool = False,
    table: Table = PYTORCH,
) -> Module:  # fmt: skip
    """The program as a module with one graph.

    `input_names`: of the tensor inputs in order ("" drops one that is not read). `result_names`: of the
    tensors that it returns, each once. `dims`: PyTorch's symbols (`s27`) to names in `symbols`. `custom`:
    importers of own operators, `space::name` -> fn(context, *args, **kwargs). `weight_name` turns a
    parameter's name into the weight's; `prefix` is taken off module paths. `checks`: results that tell of
    indices outside their axis are added, and metadata of them (see `indices`). `table`: element types
    (`elements.RECIPE`: those of a language model)."""
    traced = _traced(decomposed(ep, custom or {}), input_names, result_names)
    return import_traced(
        traced, graph_name=graph_name, symbols=symbols, dims=dims, weight=weight, meta=meta, custom=custom,
        weight_name=weight_name, place_of=lambda node: location(node, prefix), checks=checks, table=table,
    )  # fmt: skip


def import_traced(
    traced: Traced, *, graph_name: str, symbols: Mapping[str, SymbolRange], dims: Mapping[str, str],
    weight: WeightOf, meta: Mapping[str, object] | None = None,
    custom: Mapping[str, Importer] | None = None, weight_name: Callable[[str], str] = str,
    place_of: PlaceOf | None = None, checks: bool = False, table: Table = PYTORCH,
) -> Module:  # fmt: skip
    """A graph of operators that the table has, as a module with one graph; arguments as in `import_program`.
    `place_of`: where an operator stands (default: its line in the model's source). Raises `NotImported`."""
    run = _Import(
        traced, custom or {}, _context(graph_name, dims, symbols, table), weight, weight_name,
        place_of or location,
    )  # fmt: skip
    run.context.b.symbols.update(symbols)
    run.context.b.meta.update(meta or {})
    run.context.checks.wanted = checks
    run.unknown()
    run.inputs()
    for node in traced.graph.nodes:
        if node.op == "call_function":
            run.call(node)
    run.report()
    run.outputs()
    return tidy(run.context.b.module())


def _traced(ep: ExportedProgram, input_names: Sequence[str], result_names: Sequence[str]) -> Traced:
    """An exported program with the names of its inputs and results."""
    nodes = {n.name: n for n in ep.graph.nodes if n.op == "placeholder"}
    specs = [(s, nodes[s.arg.name]) for s in ep.graph_signature.input_specs if s.arg.name in nodes]
    users = [n for s, n in specs if s.kind == InputKind.USER_INPUT]
    tensors = [n for n in users if isinstance(n.meta.get("val"), torch.Tensor)]
    if len(tensors) != len(input_names):
        raise ValueError(
            f"the program has {len(tensors)} tensor inputs, got {len(input_names)} names: "
            f"{', '.join(input_names)}"
        )
    named = dict(zip(tensors, input_names, strict=True))
    stored = {
        n: (str(s.target), ep.state_dict.get(str(s.target), ep.constants.get(str(s.target), n.meta["val"])))
        for s, n in specs
        if s.kind != InputKind.USER_INPUT
    }
    changed = [s.target for s in ep.graph_signature.output_specs if s.kind != OutputKind.USER_OUTPUT]
    inputs = tuple((n, named.get(n)) for n in users)
    return Traced(ep.graph, inputs, stored, result_names, tuple(map(str, changed)))


def _context(
    graph: str, dims: Mapping[str, str], symbols: Mapping[str, SymbolRange], table: Table
) -> Capture:
    return Capture(GraphBuilder(graph), Symbols(dims, symbols), table)


def decomposed(ep: ExportedProgram, custom: Mapping[str, Importer]) -> ExportedProgram:
    """The program in terms of operators that the table has, where PyTorch knows how to put it so. A program
    that is so already is not traced again: that would take twice as long as the export itself."""
    if all(_is_supported(n, custom) for n in ep.graph.nodes):
        return ep
    return ep.run_decompositions(decompositions(custom))


def _is_supported(node: Any, custom: Mapping[str, Importer]) -> bool:
    """Nothing to decompose: no inner program, no change in place, and an operator of the table."""
    if node.op != "call_function":
        return bool(node.op != "get_attr")
    if not _computes(node):
        return True
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and not schema.is_mutable and find_importer(str(node.target), custom))


class _Import:
    """One import under way. `failed`: what could not be imported: operator or message, place, node."""

    def __init__(
        self, traced: Traced, custom: Mapping[str, Importer], context: Capture, weight: WeightOf,
        weight_name: Callable[[str], str], place_of: PlaceOf,
    ) -> None:  # fmt: skip
        self.traced, self.custom, self.context, self.place_of = traced, custom, context, place_of
        self.weight, self.weight_name = weight, weight_name
        self.values: dict[Any, Any] = {}
        self.failed: list[Failure] = []

    # -------------------------------------------------------------- inputs
    def inputs(self) -> None:
        for node, name in self.traced.inputs:
            self._input(node, name)
        for node, (name, tensor) in self.traced.stored.items():
            if node.users:
                self.values[node] = self._stored(name, tensor)

    def _input(self, node: Any, name: str | None) -> None:
        val = node.meta.get("val")
        if name is None:
            self.values[node] = self.context.symbols.dim(val) if is_symbolic(val) else val
        elif name:
            self.values[node] = self._tensor_input(name, val)
        elif node.users:
            raise ValueError(f"the program reads input {node.name}, which was given no name")

    def _tensor_input(self, name: str, val: torch.Tensor) -> str:
        """An input under its own type; of half precision, its values in f32."""
        c, shape = self.context, self.context.symbols.shape(val.shape)
        half = self._half(val)
        x = c.b.add_input(name, TensorType(half or c.element(val.dtype), shape))
        return widened(c, x, half) if half else x

    def _stored(self, name: str, tensor: Any) -> str:
        type_, source = self.weight(name, tensor)
        out = self.context.b.weight(self.weight_name(name), type_, source)
        if tensor.dtype in HALVES:
            self.context.held[out] = HALVES[tensor.dtype]
        return out

    # -------------------------------------------------------------- operators
    def call(self, node: Any) -> None:
        """Import one node; what fails is noted, and stands for an input from there on so that all failures
        are found."""
        c = self.context
        val = node.meta.get("val")
        c.node, c.loc = node, self.place_of(node)
        try:
            self.values[node] = self._rounded(self._value(node, val), val)
            self._check(node, val)
        except UnsupportedError as e:
            self._fails(node, e.message + (f" ({e.hint})" if e.hint else ""))
            self.values[node] = self._stand_in(val)
        except OpTypeError as e:
            self._fails(node, f"{node.target}: {e}")
            self.values[node] = self._stand_in(val)
        except GuardOnDataDependentSymNode:
            self._fails(node, f"{node.target}: a size that depends on the data")
            self.values[node] = self._stand_in(val)

    def _fails(self, node: Any, what: str) -> None:
        self.failed.append(Failure(what, place(self.context.loc), node))

    def _value(self, node: Any, val: Any) -> Any:
        if is_symbolic(val):
            return self._number(node, val)
        if "getitem" in str(node.target):
            part = self.values[node.args[0]][node.args[1]]
            if part is None and node.users:
                raise UnsupportedError(f"{node.args[0].target}: result {node.args[1]} is not computed")
            return part
        if val is None and not node.users:
            return None
        fn = find_importer(str(node.target), self.custom)
        assert fn is not None, node.target
        return fn(self.context, *self._args(node.args), **self._args(node.kwargs))

    def _number(self, node: Any, val: Any) -> Any:
        """A size, or the scalar tensor whose `.item()` it is: what data decides may be computed with, and
        decides no size."""
        if str(node.target) in ITEMS:
            return self._args(node.args)[0]
        known = self.context.symbols.names
        if any(str(s) not in known for s in val.node.expr.free_symbols):
            hint = "keep it a tensor: do not compute with the result of .item() in Python or use it as a size"
            raise UnsupportedError("a Python number that depends on the data", "", hint)
        return self.context.symbols.dim(val) if isinstance(val, torch.SymInt) else val

    def _rounded(self, ours: Any, val: Any) -> Any:
        """Results in half precision rounded to it: inside an operator, PyTorch too computes in f32."""
        if isinstance(val, list | tuple):
            return tuple(self._rounded(x, v) for x, v in zip(ours, val, strict=True))
        half = self._half(val)
        return rounded(self.context, ours, half) if half and isinstance(ours, str) else ours

    def _half(self, val: Any) -> str | None:
        """The half type of a tensor, where the program has types of its own."""
        return HALVES.get(val.dtype) if isinstance(val, torch.Tensor) and self.context.exact else None

    def _args(self, x: Any) -> Any:
        if isinstance(x, torch.fx.Node):
            return self.values[x]
        if isinstance(x, list | tuple):
            return [self._args(y) for y in x]
        if isinstance(x, dict):
            return {k: self._args(v) for k, v in x.items()}
        return self.context.symbols.dim(x) if isinstance(x, torch.SymInt) else x

    def _check(self, node: Any, val: Any) -> None:
        """Our shapes and element types are PyTorch's: anything else is a fault of an importer."""
        pairs = (
            list(zip(self.values[node], val, strict=True))
            if isinstance(val, list | tuple)
            else [(self.values[node], val)]
        )
        for n, (ours, theirs) in enumerate(pairs):
            if isinstance(ours, str) and isinstance(theirs, torch.Tensor):
                want, have = self.context.result(n), self.context.type(ours)
                if have.dtype != want.dtype or not same_shape(have.shape, want.shape):
                    raise UnsupportedError(
                        f"{node.target}: imported as {type_text(have)}, but PyTorch has {type_text(want)}"
                    )

    def _stand_in(self, val: Any) -> Any:
        if isinstance(val, list | tuple):
            return tuple(self._stand_in(v) for v in val)
        if not isinstance(val, torch.Tensor):
            return val
        try:
            t = TensorType(self.context.element(val.dtype), self.context.symbols.shape(val.shape))
        except UnsupportedError:
            t = TensorType("f32", tuple(n if isinstance(n, int) else 1 for n in val.shape))
        return self.context.b.add_input(self.context.b.fresh("failed"), t)

    # -------------------------------------------------------------- results and errors
    def outputs(self) -> None:
        names = self.traced.results
        if self.traced.changed:
            what = ", ".join(self.traced.changed)
            hint = "do not keep state in buffers: pass it in and return it"
            raise UnsupportedError(f"the model modifies {what} while it runs", "", hint)
        (out,) = (n for n in self.traced.graph.nodes if n.op == "output")
        results = list(dict.fromkeys(n for n in out.args[0] if isinstance(n, torch.fx.Node)))
        if len(results) != len(names):
            raise ValueError(
                f"the program has {len(results)} results, got {len(names)} names: {', '.join(names)}"
            )
        for node, name in zip(results, names, strict=True):
            value = self._result(node)
            dtype = "bool" if isinstance(value, bool) else "f32" if isinstance(value, float) else "i32"
            self.context.b.output(
                value if isinstance(value, str) else self.context.operand(value, dtype), name
            )
        for name, value, _ in self.context.checks.found:
            self.context.b.output(value, name)
        self.context.b.meta.update(self.context.checks.metadata())

    def _result(self, n: torch.fx.Node) -> Any:
        """What the program returns, under its own type."""
        half = self._half(n.meta.get("val"))
        return self.context.op("cast", self.values[n], dtype=half) if half else self.values[n]

    def unknown(self) -> None:
        """UnsupportedError listing the operators that the table lacks, all at once."""
        for node in self.traced.graph.nodes:
            if (
                node.op == "call_function"
                and _computes(node)
                and find_importer(str(node.target), self.custom) is None
            ):
                self.failed.append(Failure(str(node.target), place(self.place_of(node)), node))
        self.report()

    def report(self) -> None:
        if self.failed:
            raise NotImported(tuple(self.failed))


def _computes(node: Any) -> bool:
    """Whether a node stands for an operator on tensors, not for a size, a part of a tuple or an assertion."""
    val = node.meta.get("val")
    return (
        not is_symbolic(val) and "getitem" not in str(node.target) and (val is not None or bool(node.users))
    )


assert TABLE, "the table of operators is filled by importing it"
