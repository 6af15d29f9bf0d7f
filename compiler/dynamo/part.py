"""A graph compiled into this process: called with PyTorch's tensors, returns PyTorch's tensors.

In: a graph, known tensors, options. Out: a callable over the memory of its arguments. Nothing is copied but
arguments that are not contiguous; results are tensors of their own. Known tensors are packed once, and again
when one of them has changed since.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule

from tilewright.api import Compiled, Making
from tilewright.backends.native import NativeProgram
from tilewright.backends.storage import place_weights
from tilewright.calibration.solving import Calibration
from tilewright.capture.memory import array_of
from tilewright.dynamo.call import Bound, Call
from tilewright.dynamo.importing import Known, example_sizes, import_graph
from tilewright.dynamo.options import Options
from tilewright.dynamo.report import Partition
from tilewright.ir.errors import RefusedError, VerifyError
from tilewright.ir.plan.core import UNBOUNDED
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.pack_tokens import PackTokens
from tilewright.runtime.errors import SessionError

LOG = logging.getLogger("tilewright")
State = list[tuple[int, int]]


@dataclass(frozen=True)
class _Pack:
    """A program over the tensors that it was packed from; `state`: as they were then, None once one of them
    is gone; `alive`: references that end with them."""

    state: State | None
    bound: Bound
    alive: tuple[object, ...]


class Part:
    """One compiled graph. Any number of threads may call it; they take turns."""

    def __init__(self, gm: GraphModule, known: Mapping[str, Known], options: Options) -> None:
        """Raises NotImported, NoKernel, and what building raises."""
        began = time.perf_counter()
        self.names = [n.name for n in gm.graph.nodes if n.op == "placeholder"]
        self.single = not isinstance(_output(gm), list | tuple)
        self.threads = options.threads or torch.get_num_threads()
        self._lock, self._gm, self._options = threading.Lock(), gm, options
        own = {name: k for name, k in known.items() if name in self.names}
        self._places = [(self.names.index(name), k.name) for name, k in own.items()]
        self._compile_for(example_sizes(gm.graph), own)
        _tell_unpacked(self._made)
        ops, program = sum(n.op == "call_function" for n in gm.graph.nodes), self._made.program
        size = place_weights(program.weights)[1]
        self.report = Partition(ops, len(program.kernels), size, time.perf_counter() - began)

    def _compile_for(self, sizes: Sequence[int], known: Mapping[str, Known]) -> None:
        """With room for these sizes, and for much larger ones where as much memory can be reserved."""
        tight = 1 << max((2 * n for n in sizes), default=1).bit_length()
        for most in dict.fromkeys((max(UNBOUNDED, tight), max(256, tight), tight)):
            try:
                return self._compile(most, known)
            except (SessionError, VerifyError) as why:
                if most == tight:
                    raise RefusedError(str(why), "torch.compile") from why

    def _compile(self, most: int, known: Mapping[str, Known]) -> None:
        options, imported = self._options, import_graph(self._gm, known, most)
        store = WeightStore(memory=imported.arrays)
        making = Making(imported.module, store, Calibration(), target=options.target)
        recipe, record = making.program(options.recipe)
        self._made = Compiled(record, store, recipe, options.target, None, None, making)
        ready = _native(self._made, self.threads)
        self._stored = frozenset(imported.arrays)
        self._call, self.most = Call(ready, imported, self.names, self.threads), most
        first = [k.tensor for k in known.values()]
        self._packs: dict[tuple[int, ...], _Pack] = {}
        self._last = self._kept(first, list(map(_identity, first)), ready)

    # -------------------------------------------------------------- calls
    def __call__(self, *args: Any) -> list[Any]:
        with self._lock:
            symbols = self._call.symbols_of(args) if self._call.symbols else ()
            if symbols and max(symbols) > self.most:
                symbols = self._grown(args)
            pack = self._pack(args) if self._places else self._last
            return self._call(pack.bound, args, symbols)

    def _grown(self, args: Sequence[Any]) -> list[int]:
        """Compiled again with room for the sizes of these arguments, which are returned."""
        known = {self.names[i]: Known(name, args[i]) for i, name in self._places}
        with unset_fake_temporarily():
            self._compile_for(self._call.symbols_of(args), known)
        return self._call.symbols_of(args)

    def native_call(self, args: Sequence[Any]) -> Callable[[], object]:
        """The call of the native program alone, on these arguments: for measuring."""
        self(*args)
        return self._call.native_call(self._last.bound)

    # -------------------------------------------------------------- packed weights
    def _pack(self, args: Sequence[Any]) -> _Pack:
        """The program over the known tensors of these arguments as they are now. Modules of one class share a
        part, so that several packs are kept, each as long as its tensors live."""
        state = [_identity(args[i]) for i, _ in self._places]
        if state != self._last.state or any(changes < 0 for _, changes in state):
            self._last = self._found(args, state)
        return self._last

    def _found(self, args: Sequence[Any], state: State) -> _Pack:
        held = self._packs.get(tuple(at for at, _ in state))
        if held is not None and held.state == state and all(changes >= 0 for _, changes in state):
            return held
        memory = self._made.store.memory
        memory.update({name: array_of(args[i]) for i, name in self._places if name in self._stored})
        return self._kept([args[i] for i, _ in self._places], state, _native(self._made, self.threads))

    def _kept(self, tensors: Sequence[torch.Tensor], state: State, ready: NativeProgram) -> _Pack:
        """A pack that lasts as long as its tensors; nothing else keeps them alive, or their library."""
        key, own = tuple(at for at, _ in state), weakref.ref(self)

        def ended(_: object) -> None:
            if (part := own()) is not None:
                part._drop(key)

        pack = _Pack(state, self._call.bind(ready), tuple(weakref.ref(x, ended) for x in tensors))
        self._packs[key], self._made._ready = pack, None
        for _, name in self._places:
            self._made.store.memory.pop(name, None)
        return pack

    def _drop(self, key: tuple[int, ...]) -> None:
        gone = self._packs.pop(key, None)
        if gone is self._last:
            self._last = replace(self._last, state=None)


def _tell_unpacked(made: Compiled) -> None:
    """Say why attentions were not packed, where that was asked for."""
    notes = (n for n in made.record.notes if n.pass_name == PackTokens.name and not n.applied)
    for what, reason in dict.fromkeys((n.what if n.loc is None else n.loc.text, n.reason) for n in notes):
        LOG.warning("tilewright: not packed at %s: %s", what, reason)


def _output(gm: GraphModule) -> Any:
    return next(n.args[0] for n in gm.graph.nodes if n.op == "output")


def _identity(x: torch.Tensor) -> tuple[int, int]:
    """Where a tensor lies, and how often it was changed in place: -1 where PyTorch does not count."""
    try:
        return x.data_ptr(), x._version
    except RuntimeError:
        return x.data_ptr(), -1


def _native(compiled: Compiled, threads: int) -> NativeProgram:
    ready = compiled.executable(threads)
    if not isinstance(ready, NativeProgram):
        raise RefusedError("torch.compile takes CPU levels only", f"target {compiled.target}")
    return ready
