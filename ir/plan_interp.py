"""The meaning of a plan: its calls run one by one on the tile interpreter, over plain byte buffers.

In: a program, inputs, weights as packed bytes, caches. Out: results by name. What the compiled step function is tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Encoding
from tilewright.ir.encodings.dense import Dense
from tilewright.ir.graph import State, Weight
from tilewright.ir.numbers import STORED, from_bits, to_bits
from tilewright.ir.plan import Call, Plan, PlanBuffer, Program
from tilewright.ir.tile_interp import run_kernel
from tilewright.ir.types import TensorType, evaluate_dim

Array = NDArray[np.generic]
Runner = Callable[..., None]


def memory_form(t: TensorType) -> tuple[str, Encoding | None]:
    """(dtype, packed encoding) of the bytes that hold a tensor."""
    e = t.encoding
    return (e.dtype, None) if isinstance(e, Dense) and e.order == "rows" else (t.dtype, e)


def to_memory(x: Array, t: TensorType) -> Array:
    """Values as the bytes a kernel reads."""
    dtype, encoding = memory_form(t)
    if encoding is None:
        return np.ascontiguousarray(to_bits(x, dtype))
    return encoding.pack(encoding.encode(np.asarray(x, np.float32)), x.shape)


@dataclass
class PlanStates:
    """Caches as raw bytes, by `kv.0.k`; zero at first."""

    states: tuple[State, ...]
    slots: int
    raw: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for s in self.states:
            for stream, encoding, dim in (("k", s.k, s.k_dim), ("v", s.v, s.v_dim)):
                size = encoding.nbytes((self.slots, s.heads, s.context, dim))
                self.raw[f"{s.name}.{stream}"] = np.zeros(size, np.uint8)


def run_plan(
    program: Program, name: str, inputs: Mapping[str, Array], weights: Callable[[Weight], Array],
    states: PlanStates, symbols: Mapping[str, int], runner: Runner = run_kernel,
) -> dict[str, Array]:  # fmt: skip
    """Results of one step. `symbols`: T, R, NB, Q and their like; `weights(w)` gives packed bytes; `runner` runs one kernel on
    arrays by parameter name (the tile interpreter, or compiled code)."""
    plan = next(p for p in program.plans if p.name == name)
    values = {"slots": states.slots, **symbols}
    memory = _allocate(plan, inputs, values)
    packed: dict[str, Array] = {}
    for call in plan.calls:
        if all(c.holds(values) for c in call.when):
            _call(program, call, memory, packed, weights, states, values, runner)
    out = {}
    for result, ref in plan.outputs:
        t = next(b.type for b in (*plan.buffers, *plan.inputs) if b.name == ref[1:])
        out[result] = _read(memory[ref[1:]], t, values)
    return out


def _shape(t: TensorType, values: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate_dim(d, values) for d in t.shape)


def _allocate(plan: Plan, inputs: Mapping[str, Array], values: Mapping[str, int]) -> dict[str, Array]:
    memory: dict[str, Array] = {v.name: to_memory(inputs[v.name], v.type) for v in plan.inputs}
    for b in plan.buffers:
        memory[b.name] = _empty(b, values)
    return memory


def _empty(b: PlanBuffer, values: Mapping[str, int]) -> Array:
    dtype, encoding = memory_form(b.type)
    shape = _shape(b.type, values)
    if encoding is not None:
        return np.zeros(encoding.nbytes(shape), np.uint8)
    return np.zeros(shape, STORED[dtype])


def _read(raw: Array, t: TensorType, values: Mapping[str, int]) -> Array:
    dtype, encoding = memory_form(t)
    shape = _shape(t, values)
    if encoding is not None:
        return encoding.decode(encoding.unpack(raw.view(np.uint8).reshape(-1), shape))
    return from_bits(raw, dtype).reshape(shape)


def _call(
    program: Program, call: Call, memory: dict[str, Array], packed: dict[str, Array], weights: Callable[[Weight], Array],
    states: PlanStates, values: Mapping[str, int], runner: Runner,
) -> None:  # fmt: skip
    kernel = program.kernel(call.kernel)
    arrays: dict[str, Array] = {}
    for p, a in zip(kernel.params, call.args, strict=True):
        if a[0] == "%":
            arrays[p.name] = memory[a[1:]]
        elif a[1:] in states.raw:
            arrays[p.name] = states.raw[a[1:]]
        else:
            if a not in packed:
                packed[a] = weights(next(w for w in program.weights if w.name == a[1:]))
            arrays[p.name] = packed[a]
    symbols = {s: evaluate_dim(d, values) for s, d in call.symbols}  # type: ignore[arg-type]
    if all(n.extent.bind(symbols).as_int() > 0 for n in kernel.grid if n.extent.bind(symbols).is_const):
        runner(kernel, arrays, symbols)
