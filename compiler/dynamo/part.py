"""A graph compiled into this process: called with PyTorch's tensors, returns PyTorch's tensors.

In: a graph, known tensors, options. Out: a callable over the memory of its arguments. Nothing is copied but
arguments that are not contiguous; results are tensors of their own. Known tensors are packed once, and again
when one of them has changed since.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from tilewright.api import Compiled, Making
from tilewright.backends.native import NativeProgram, graph_entry
from tilewright.backends.storage import place_weights
from tilewright.calibration.solving import Calibration
from tilewright.capture.memory import array_of
from tilewright.capture.symbols import Symbols, is_symbolic
from tilewright.dynamo.importing import (
    Imported,
    Known,
    example_sizes,
    import_graph,
    sizes_of,
    symbol_names,
    viewed,
)
from tilewright.dynamo.nodes import value_of
from tilewright.dynamo.options import Options
from tilewright.dynamo.report import Partition
from tilewright.ir.errors import RefusedError, VerifyError
from tilewright.ir.plan.core import UNBOUNDED, Plan
from tilewright.ir.weights.sources import WeightStore
from tilewright.runtime.checks import Check, read_checks
from tilewright.runtime.errors import SessionError
from tilewright.runtime.library import NativeSession

_P, _I64 = ctypes.c_void_p, ctypes.c_int64
#: what an array without elements points to
_NOTHING = ctypes.addressof(ctypes.create_string_buffer(64))
#: element types of results that only this program reads
_HIDDEN: Mapping[str, torch.dtype] = {
    "f32": torch.float32, "f64": torch.float64, "i32": torch.int32, "i64": torch.int64, "bool": torch.bool,
}  # fmt: skip
Give = Callable[[Sequence[Any], Sequence[Any], Sequence[int]], Any]


class Part:
    """One compiled graph. Any number of threads may call it; they take turns."""

    def __init__(self, gm: GraphModule, known: Mapping[str, Known], options: Options) -> None:
        """Raises NotImported, NoKernel, and what building raises."""
        began = time.perf_counter()
        self.names = [n.name for n in gm.graph.nodes if n.op == "placeholder"]
        self.single = not isinstance(_output(gm), list | tuple)
        self.threads = options.threads or torch.get_num_threads()
        self._lock, self._gm, self._options = threading.Lock(), gm, options
        self._known = {name: k for name, k in known.items() if name in self.names}
        self._places = [(self.names.index(name), k.name) for name, k in self._known.items()]
        self._seen = [_identity(self._known[self.names[i]].tensor) for i, _ in self._places]
        self._compile_for(example_sizes(gm.graph))
        ops, program = sum(n.op == "call_function" for n in gm.graph.nodes), self._made.program
        size = place_weights(program.weights)[1]
        self.report = Partition(ops, len(program.kernels), size, time.perf_counter() - began)

    def _compile_for(self, sizes: Sequence[int]) -> None:
        """With room for these sizes, and for much larger ones where as much memory can be reserved."""
        tight = 1 << max((2 * n for n in sizes), default=1).bit_length()
        for most in dict.fromkeys((max(UNBOUNDED, tight), max(256, tight), tight)):
            try:
                return self._compile(most)
            except (SessionError, VerifyError) as why:
                if most == tight:
                    raise RefusedError(str(why), "torch.compile") from why

    def _compile(self, most: int) -> None:
        options, imported = self._options, import_graph(self._gm, self._known, most)
        store = WeightStore(memory=imported.arrays)
        making = Making(
            imported.module, store, Calibration(None, None, 128, 512, 0), None, None, None, None, None,
            options.target,
        )  # fmt: skip
        recipe, record = making.program(options.recipe)
        self._made = Compiled(record, store, recipe, options.target, None, None, making)
        self._call = Call(_native(self._made, self.threads), imported, self.names, self.threads)
        self.most = most

    def __call__(self, *args: Any) -> list[Any]:
        with self._lock:
            if self._places and (now := [_identity(args[i]) for i, _ in self._places]) != self._seen:
                self._pack_again(args, now)
            symbols = self._call.symbols_of(args)
            if symbols and max(symbols) > self.most:
                with unset_fake_temporarily():
                    self._compile_for(symbols)
                symbols = self._call.symbols_of(args)
            return self._call(args, symbols)

    def _pack_again(self, args: Sequence[Any], now: list[tuple[int, int]]) -> None:
        """The same program over its tensors as they are now."""
        for i, name in self._places:
            self._known[self.names[i]] = Known(name, args[i])
            if name in self._made.store.memory:
                self._made.store.memory[name] = array_of(args[i])
        self._made._ready = None
        self._call.bind(_native(self._made, self.threads))
        self._seen = now


def _output(gm: GraphModule) -> Any:
    return next(n.args[0] for n in gm.graph.nodes if n.op == "output")


def _identity(x: torch.Tensor) -> tuple[int, int]:
    """Where a tensor lies, and how often it was changed in place; tensors of inference mode do not count."""
    return x.data_ptr(), 0 if x.is_inference() else x._version


def _native(compiled: Compiled, threads: int) -> NativeProgram:
    ready = compiled.executable(threads)
    if not isinstance(ready, NativeProgram):
        raise RefusedError("torch.compile takes CPU levels only", f"target {compiled.target}")
    return ready


class Call:
    """What one call of the native program takes and gives."""

    def __init__(self, ready: NativeProgram, imported: Imported, names: Sequence[str], threads: int) -> None:
        program = ready.program
        entry = graph_entry(program.plans[0])
        self.imported, self.names, self.threads = imported, list(names), threads
        self.inputs = [names.index(t.name) for t in entry.inputs]
        self.ranges = [name for name, _, _ in ready.library.ranges()]
        self.symbols = _sources(imported, names, self.ranges)
        shapes = _shapes(program.plans[0])
        self.ranks = [len(s) for s in shapes]
        self.sizes = sizes_of([d for s in shapes for d in s], self.ranges)
        outputs = [t.name for t in entry.outputs]
        self.dtypes = [
            value_of(imported.results[t.name]).dtype if t.name in imported.results else _HIDDEN[t.dtype]
            for t in entry.outputs
        ]
        self.checks = [(c, outputs.index(c.name)) for c in read_checks(dict(program.meta), outputs)]
        self.give = [_giver(x, outputs, self.names, self.ranges) for x in imported.returned]
        self.bind(ready)

    def bind(self, ready: NativeProgram) -> None:
        library = ready.library
        number = library.graph("forward")
        assert number is not None
        self.number, self.library = number, library
        self.native = NativeSession(library, 0, self.threads)
        self.run = library.dll.tw_run
        nin, nout = len(self.inputs), len(self.dtypes)
        self.arrays = (_P * (nin or 1)), (_I64 * (nin or 1)), (_P * (nout or 1)), (_I64 * (nout or 1))
        self.values = _I64 * max(len(self.ranges), 1)

    def symbols_of(self, args: Sequence[Any]) -> list[int]:
        """The values of the program's symbols."""
        return [args[i] if d is None else args[i].size(d) for i, d in self.symbols]

    def __call__(self, args: Sequence[Any], symbols: Sequence[int]) -> list[Any]:
        given = [x if (x := args[i]).is_contiguous() else x.contiguous() for i in self.inputs]
        made = self._results(symbols)
        pin, nin, pout, nout = self.arrays
        code = self.run(
            self.native.handle, self.number, self.values(*symbols),
            pin(*[x.data_ptr() or _NOTHING for x in given]), nin(*[x.nbytes for x in given]),
            pout(*[x.data_ptr() or _NOTHING for x in made]), nout(*[x.nbytes for x in made]),
        )  # fmt: skip
        if code:
            raise SessionError(self.library.error())
        for check, i in self.checks:
            self._look(check, made[i], symbols)
        return [give(args, made, symbols) for give in self.give]

    def _look(self, check: Check, value: torch.Tensor, symbols: Sequence[int]) -> None:
        try:
            check.look(value.item(), dict(zip(self.ranges, symbols, strict=True)))
        except SessionError as why:
            raise IndexError(str(why)) from None

    def _results(self, symbols: Sequence[int]) -> list[torch.Tensor]:
        sizes, at, out = self.sizes(*symbols), 0, []
        for rank, dtype in zip(self.ranks, self.dtypes, strict=True):
            out.append(torch.empty(tuple(sizes[at : at + rank]), dtype=dtype))
            at += rank
        return out


def _shapes(plan: Plan) -> list[tuple[Any, ...]]:
    types = {b.name: b.type for b in plan.buffers} | {v.name: v.type for v in plan.inputs}
    return [types[r.lstrip("%")].shape for _, r in plan.outputs]


def _sources(imported: Imported, names: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, int | None]]:
    """Where the value of each symbol is found: an argument that is a number, or an axis of a tensor."""
    found: dict[str, tuple[int, int | None]] = {}
    nodes = {n.name: n for n in _placeholders(imported)}
    for i, name in enumerate(names):
        value = value_of(nodes[name])
        if is_symbolic(value):
            found.setdefault(f"D_{value.node.expr}", (i, None))
        elif isinstance(value, torch.Tensor):
            for axis, d in enumerate(value.shape):
                if is_symbolic(d):
                    found.setdefault(f"D_{d.node.expr}", (i, axis))
    if missing := [n for n in wanted if n not in found]:
        raise RefusedError(f"no argument says the size {', '.join(missing)}", "torch.compile")
    return [found[n] for n in wanted]


def _placeholders(imported: Imported) -> list[Node]:
    graph = next(n.graph for n in (*imported.arguments, *imported.results.values()))
    return [n for n in graph.nodes if n.op == "placeholder"]


def _giver(x: Any, outputs: Sequence[str], names: Sequence[str], ranges: Sequence[str]) -> Give:
    """How a returned value is made from arguments, results and values of symbols."""
    if not isinstance(x, Node):
        return lambda args, made, symbols: x
    if not isinstance(value_of(x), torch.Tensor):
        return _number(x, ranges)
    base, views = viewed(x)
    if base.op == "placeholder":
        place = names.index(base.name)
        give: Give = lambda args, made, symbols: args[place]  # noqa: E731
    else:
        at = outputs.index(f"{base.name}_out")
        give = lambda args, made, symbols: made[at]  # noqa: E731
    for view in views:
        give = _view(give, view, ranges)
    return give


def _number(x: Node, ranges: Sequence[str]) -> Give:
    """A size, which symbols decide, or a number that is known."""
    value = value_of(x)
    if not is_symbolic(value):
        return lambda args, made, symbols: value
    size = sizes_of([Symbols(symbol_names(x.graph)).dim(value)], ranges)
    return lambda args, made, symbols: size(*symbols)[0]


def _view(give: Give, node: Node, ranges: Sequence[str]) -> Give:
    """The operator `node` on what `give` gives."""
    target, spelled = node.target, (node.args[1:], node.kwargs)
    assert callable(target)
    if not any(isinstance(a, Node) for a in pytree.tree_leaves(spelled)):
        rest, named = spelled
        return lambda args, made, symbols: target(give(args, made, symbols), *rest, **named)
    leaves, spec = pytree.tree_flatten(spelled)
    numbers = [_number(a, ranges) if isinstance(a, Node) else a for a in leaves]

    def run(args: Sequence[Any], made: Sequence[Any], symbols: Sequence[int]) -> Any:
        filled = [n(args, made, symbols) if callable(n) else n for n in numbers]
        rest, named = pytree.tree_unflatten(filled, spec)
        return target(give(args, made, symbols), *rest, **named)

    return run
