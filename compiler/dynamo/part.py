"""A graph compiled into this process: called with PyTorch's tensors, returns PyTorch's tensors.

In: a graph, known tensors, options. Out: a callable over the memory of its arguments. Nothing is copied but
arguments that are not contiguous; results are tensors of their own. Known tensors are packed once, and again
when one of them has changed since.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx import GraphModule

from tilewright.api import Compiled, Making
from tilewright.backends.native import NativeProgram
from tilewright.backends.storage import place_weights
from tilewright.calibration.solving import Calibration
from tilewright.capture.memory import array_of
from tilewright.dynamo.call import Call
from tilewright.dynamo.importing import (
    Known,
    example_sizes,
    import_graph,
)
from tilewright.dynamo.options import Options
from tilewright.dynamo.report import Partition
from tilewright.ir.errors import RefusedError, VerifyError
from tilewright.ir.plan.core import UNBOUNDED
from tilewright.ir.weights.sources import WeightStore
from tilewright.runtime.errors import SessionError


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

    def native_call(self, args: Sequence[Any]) -> Callable[[], object]:
        """The call of the native program alone, on these arguments: for measuring."""
        self(*args)
        return self._call.native_call()

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
    try:
        return x.data_ptr(), x._version
    except RuntimeError:
        return x.data_ptr(), 0


def _native(compiled: Compiled, threads: int) -> NativeProgram:
    ready = compiled.executable(threads)
    if not isinstance(ready, NativeProgram):
        raise RefusedError("torch.compile takes CPU levels only", f"target {compiled.target}")
    return ready
