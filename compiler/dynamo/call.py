"""One call of a native program with PyTorch's tensors.

In: a loaded program and the graph that it was made from. Out: results as tensors of their own. Arguments are
read where they lie; only those that are not contiguous are copied. Sizes that do not change are worked out
once.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from tilewright.backends.native import NativeProgram, graph_entry
from tilewright.capture.symbols import is_symbolic
from tilewright.dynamo.importing import Imported, sizes_of, symbol_names
from tilewright.dynamo.nodes import value_of
from tilewright.dynamo.returned import giver
from tilewright.ir.errors import RefusedError
from tilewright.ir.plan.core import Plan
from tilewright.runtime.checks import Check, read_checks
from tilewright.runtime.errors import SessionError
from tilewright.runtime.library import Library, NativeSession

#: what an array without elements points to
_EMPTY = ctypes.create_string_buffer(64)
_NOTHING = ctypes.addressof(_EMPTY)
#: element types of results that only this program reads
_HIDDEN: Mapping[str, torch.dtype] = {
    "f32": torch.float32, "f64": torch.float64, "i32": torch.int32, "i64": torch.int64, "bool": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Bound:
    """A program over its weights: its library, a session, and the arguments of its native call."""

    library: Library
    session: NativeSession
    arguments: tuple[object, ...]


class Call:
    """What one call takes and gives. Calls of one object take turns: the arrays that they fill are kept."""

    def __init__(self, ready: NativeProgram, imported: Imported, names: Sequence[str], threads: int) -> None:
        program = ready.program
        entry = graph_entry(program.plans[0])
        self.threads = threads
        self.inputs = [names.index(t.name) for t in entry.inputs]
        self.ranges = [name for name, _, _ in ready.library.ranges()]
        self.symbols = _sources(imported, names, self.ranges)
        outputs = [(t.name, t.dtype) for t in entry.outputs]
        results, hidden = imported.results, _HIDDEN
        dtypes = [value_of(results[n]).dtype if n in results else hidden[t] for n, t in outputs]
        self.like = [torch.empty(0, dtype=t) for t in dtypes]  # `new_empty` takes a third of `empty`'s time
        shapes = _shapes(program.plans[0])
        self.ranks = [len(s) for s in shapes]
        self.sizes = sizes_of([d for s in shapes for d in s], self.ranges)
        self.fixed = None if self.ranges else self._shaped(())
        made = [n for n, _ in outputs]
        self.checks = [(c, made.index(c.name)) for c in read_checks(dict(program.meta), made)]
        self.give = [giver(x, made, names, self.ranges) for x in imported.returned]
        self.taken, self.made = _Pointers(len(self.inputs)), _Pointers(len(self.like))
        self.values = (ctypes.c_int64 * max(len(self.ranges), 1))()

    def bind(self, ready: NativeProgram) -> Bound:
        """The program over its weights, ready to be called: any number of them, of the same program."""
        number = ready.library.graph("forward")
        assert number is not None
        native = NativeSession(ready.library, 0, self.threads)
        return Bound(
            ready.library,
            native,
            (native.handle, number, self.values, *self.taken.arrays, *self.made.arrays),
        )

    def symbols_of(self, args: Sequence[Any]) -> list[int]:
        """The values of the program's symbols."""
        return [args[i] if d is None else args[i].size(d) for i, d in self.symbols]

    def __call__(self, bound: Bound, args: Sequence[Any], symbols: Sequence[int]) -> list[Any]:
        given = [x if (x := args[i]).is_contiguous() else x.contiguous() for i in self.inputs]
        made = [like.new_empty(size) for size, like in self.fixed or self._shaped(symbols)]
        if symbols:
            self.values[: len(symbols)] = list(symbols)
        self.taken.fill(given)
        self.made.fill(made)
        if bound.library.dll.tw_run(*bound.arguments):
            raise SessionError(bound.library.error())
        for check, i in self.checks:
            self._look(check, made[i], symbols)
        return [give(args, made, symbols) for give in self.give]

    def native_call(self, bound: Bound) -> Callable[[], object]:
        """The native call alone, on what the last call was given."""
        self.kept = [like.new_empty(size) for size, like in self.fixed or ()]
        self.made.fill(self.kept)
        return lambda: bound.library.dll.tw_run(*bound.arguments)

    def _look(self, check: Check, value: torch.Tensor, symbols: Sequence[int]) -> None:
        try:
            check.look(value.item(), dict(zip(self.ranges, symbols, strict=True)))
        except SessionError as why:
            raise IndexError(str(why)) from None

    def _shaped(self, symbols: Sequence[int]) -> list[tuple[tuple[int, ...], torch.Tensor]]:
        """Size of each result, and a tensor of its type."""
        sizes, at, out = self.sizes(*symbols), 0, []
        for rank, like in zip(self.ranks, self.like, strict=True):
            out.append((tuple(sizes[at : at + rank]), like))
            at += rank
        return out


class _Pointers:
    """Addresses and bytes of tensors, as the C interface takes them."""

    def __init__(self, count: int) -> None:
        self.data = (ctypes.c_void_p * max(count, 1))()
        self.bytes = (ctypes.c_int64 * max(count, 1))()
        self.arrays = self.data, self.bytes
        self._pack = struct.Struct(f"={count}Q").pack_into

    def fill(self, tensors: Sequence[torch.Tensor]) -> None:
        self._pack(self.data, 0, *[x.data_ptr() or _NOTHING for x in tensors])
        self._pack(self.bytes, 0, *[x.nbytes for x in tensors])


def _shapes(plan: Plan) -> list[tuple[Any, ...]]:
    types = {b.name: b.type for b in plan.buffers} | {v.name: v.type for v in plan.inputs}
    return [types[r.lstrip("%")].shape for _, r in plan.outputs]


def _sources(imported: Imported, names: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, int | None]]:
    """Where the value of each symbol is found: an argument that is a number, or an axis of a tensor."""
    found: dict[str, tuple[int, int | None]] = {}
    nodes = {n.name: n for n in _placeholders(imported)}
    ours = symbol_names(next(iter(nodes.values())).graph) if nodes else {}
    for i, name in enumerate(names):
        value = value_of(nodes[name])
        if is_symbolic(value):
            found.setdefault(ours.get(str(value.node.expr), ""), (i, None))
        elif isinstance(value, torch.Tensor):
            for axis, d in enumerate(value.shape):
                if is_symbolic(d):
                    found.setdefault(ours.get(str(d.node.expr), ""), (i, axis))
    if missing := [n for n in wanted if n not in found]:
        raise RefusedError(f"no argument says the size {', '.join(missing)}", "torch.compile")
    return [found[n] for n in wanted]


def _placeholders(imported: Imported) -> list[Node]:
    graph = next(n.graph for n in (*imported.arguments, *imported.results.values()))
    return [n for n in graph.nodes if n.op == "placeholder"]
