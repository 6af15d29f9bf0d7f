"""Runs plans: every call's kernel on stored bytes, with the tile interpreter or a given `runner`.

In: a program, inputs by name, weights. Out: results by name as held arrays. Caches live in the runner between
steps, in the layouts of their encodings; memory starts as poison, since memory is not guaranteed to be zero.
Given a runner of compiled kernels, the same walk gives the compiled results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tilewright.ir.encoding import Encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import CacheStream
from tilewright.ir.interp.graph import Dims, bind_symbols, check_inputs
from tilewright.ir.interp.tile import run_kernel
from tilewright.ir.numbers import from_bits, hold, to_bits
from tilewright.ir.ops.base import Array
from tilewright.ir.plan.core import Call, Plan, Program, counted_after
from tilewright.ir.tile.core import Buffer, Kernel
from tilewright.ir.tile.memory import poisoned, poisoned_bytes
from tilewright.ir.types import TensorType
from tilewright.ir.weights.sources import Weights, encoded

#: runs one kernel on arrays of stored bits by parameter name, under a binding of its symbols
Runner = Callable[[Kernel, Mapping[str, Array], Mapping[str, int]], None]


class PlanRunner:
    """Plans of one program, with `slots` sequences in its caches."""

    def __init__(
        self, program: Program, weights: Weights | None = None, runner: Runner = run_kernel, slots: int = 4
    ) -> None:
        self.program, self.weights, self.runner, self.slots = program, weights, runner, slots
        self._weights = {w.name: w for w in program.weights}
        self._packed: dict[tuple[str, str], Array] = {}
        self.caches: dict[str, Array] = {}
        for s in program.states:
            for c in s.streams:
                self.caches[f"@{s.name}.{c.name}"] = _empty_cache(c, slots)

    def run(
        self, plan_name: str, inputs: Mapping[str, Array], symbols: Mapping[str, int] | None = None
    ) -> dict[str, Array]:
        """Results of one plan. `symbols` beyond those that the inputs' shapes give; Q and slots are known
        here."""
        plan = next((p for p in self.program.plans if p.name == plan_name), None)
        if plan is None:
            raise RefusedError(
                f"no plan @{plan_name}", "", f"plans: {', '.join('@' + p.name for p in self.program.plans)}"
            )
        held = check_inputs(plan, inputs)
        known = {
            "slots": self.slots,
            **({"Q": _most_rows(held)} if "%blocks" in held else {}),
            **(symbols or {}),
        }
        dims = Dims(bind_symbols(self.program.symbols, plan, held, known), (n for n, _ in plan.counted))
        memory = {"%" + v.name: to_bits(held["%" + v.name], v.type.dtype) for v in plan.inputs}
        counted = list(zip(counted_after(self.program, plan), plan.counted, strict=True))
        _allocate(plan, dims, memory)
        for n, call in enumerate(plan.calls):
            self._call(call, memory, dims)
            for name, ref in (c for after, c in counted if after == n):
                dims.count(name, memory[ref], self.program.symbols)
                _allocate(plan, dims, memory)
        types = {
            **{"%" + v.name: v.type for v in plan.inputs},
            **{"%" + b.name: b.type for b in plan.buffers},
        }
        return {name: self._result(ref, memory, types, dims) for name, ref in plan.outputs}

    def _call(self, call: Call, memory: Mapping[str, Array], dims: Dims) -> None:
        kernel = self.program.kernel(call.kernel)
        bound: dict[str, int] = {k: int(str(dims.value(v))) for k, v in call.symbols}
        if not all(c.holds({**dims.symbols, **bound}) for c in call.when):
            return
        arrays = {b.name: self._array(a, b, memory) for b, a in zip(kernel.params, call.args, strict=True)}
        self.runner(kernel, arrays, bound)

    def _array(self, arg: str, b: Buffer, memory: Mapping[str, Array]) -> Array:
        if arg in memory:
            return memory[arg]
        if arg in self.caches:
            return self.caches[arg]
        name = arg[1:]
        if arg[0] != "@" or name not in self._weights or self.weights is None:
            raise RefusedError(
                f"call reads {arg}, which is neither a buffer, a cache nor a weight that is given"
            )
        key = (name, f"{b.dtype} {b.encoding}")
        if key not in self._packed:
            weight = self._weights[name]
            x = self.weights(weight)
            streams = encoded(self.weights, weight, b.encoding, x.astype(np.float32)) if b.encoding else {}
            packed = b.encoding.pack(streams, x.shape) if b.encoding else _bits(x, b.dtype)
            self._packed[key] = np.asarray(packed, order="C")
        return self._packed[key]

    def _result(
        self, ref: str, memory: Mapping[str, Array], types: Mapping[str, TensorType], dims: Dims
    ) -> Array:
        if ref not in memory:
            raise RefusedError(f"the plan returns {ref}, which is neither an input nor a buffer")
        t, shape = types[ref], dims.shape(types[ref])
        dtype, encoding = t.stored
        if encoding is None:
            return from_bits(memory[ref].reshape(shape), dtype)
        return hold(encoding.decode(encoding.unpack(memory[ref], shape)), t.dtype)


def _allocate(plan: Plan, dims: Dims, memory: dict[str, Array]) -> None:
    """Memory for the buffers whose sizes are known by now."""
    for b in plan.buffers:
        if "%" + b.name not in memory and dims.knows(b.type):
            memory["%" + b.name] = _poison(b.type.encoding, b.type.dtype, dims.shape(b.type))


def _bits(x: Array, dtype: str) -> Array:
    return to_bits(hold(x, dtype), dtype)


def _poison(encoding: Encoding | None, dtype: str, shape: tuple[int, ...]) -> Array:
    """Memory as a kernel may find it: what no call has written shows in the results."""
    dtype, packed = TensorType(dtype, (), encoding).stored
    return poisoned(dtype, shape) if packed is None else poisoned_bytes(packed.nbytes(shape))


def _empty_cache(c: CacheStream, slots: int) -> Array:
    """Counts and sums begin with zero; rows hold nothing, and each sequence's lie in its own memory."""
    if c.name == "home":
        return np.arange(slots, dtype=np.int32)[:, None] + np.zeros(c.shape, np.int32)
    if c.name in ("gone", "score", "skip", "seen"):
        return to_bits(np.zeros((slots, *c.shape), np.float32 if c.dtype == "f32" else np.int32), c.dtype)
    return _poison(c.encoding, c.dtype, (slots, *c.shape))


def _most_rows(held: Mapping[str, Array]) -> int:
    blocks: Any = held["%blocks"]
    return int(blocks[:, 1].max(initial=1))
