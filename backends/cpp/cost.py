"""The estimated cost of a contraction's schedule: instruction counts, register pressure and latency.

In: a kernel, one of its schedules, a target, a number of rows. Out: cycles per row and column, good for
ranking only; measurement (`tilewright tune`) has the last word. It depends on the shapes of tiles only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tilewright.backends.cpp.target import BYTES, Target
from tilewright.ir.tile.core import Kernel, Let, Load, Schedule, TileType, bind, walk
from tilewright.ir.tile.expand import expand_encodings

#: dots, loads and other vector instructions issued per cycle
DOTS, LOADS, OTHERS = 2, 2, 2
#: cycles from a dot to the next one on the same accumulator
LATENCY = 5
#: cycles for a value that does not fit in registers: a store and a load
SPILL = 1.0
#: instructions around a tile: loop control, addresses, statements that are not dots
AROUND = 12


def predicted(kernel: Kernel, schedule: Schedule, target: Target, rows: int) -> float:
    """Cycles per element of the result, assuming that all data is in the first-level cache."""
    sizes = dict(schedule.sizes)
    axis = next((a for a in kernel.grid if a.rows and isinstance(a.step, str)), None)
    tall = sizes[str(axis.step)] if axis else 1
    blocks = -(-rows // tall)
    high = -(-rows // blocks)  # blocks are balanced
    bound = bind(expand_encodings(kernel), sizes | ({str(axis.step): high} if axis else {}))
    lets = [s for s in walk(bound.body) if isinstance(s, Let)]
    dots = [s for s in lets if s.op == "dot"]
    if not dots:
        return float(len(lets))
    types = {s.name: s.type for s in walk(bound.body) if isinstance(s, Let | Load)}
    once = {name for name, _ in schedule.stages}
    cycles = sum(_dot(s, types, target) for s in dots) + AROUND
    decode = sum(
        _vectors(s, target) / OTHERS for s in lets if s.op not in ("dot", "const") and len(s.type.shape) == 2
    )
    cycles += decode / blocks if once else decode
    cycles = max(
        cycles, LATENCY * _steps(dots[0], types, target)
    )  # independent accumulators do not wait for each other
    width = sum(_extent(s.type.shape[1]) for s in dots)
    depth = _extent(types[dots[0].args[1]].shape[1])
    return blocks * (cycles + _spilled(dots, target)) / (rows * width * depth)


def _dot(s: Let, types: Mapping[str, TileType], target: Target) -> float:
    """Cycles per dot: the larger of what dots and what loads take, with one broadcast per row and one vector
    per column block."""
    rows, columns = (
        _extent(s.type.shape[0]),
        -(-_extent(s.type.shape[1]) * BYTES[s.type.dtype] // target.bytes),
    )
    return _steps(s, types, target) * max(rows * columns / DOTS, (rows + columns) / LOADS)


def _steps(s: Let, types: Mapping[str, TileType], target: Target) -> int:
    a, b = (types[n] for n in s.args[1:3])
    entry = target.dot(s.type.dtype, a.dtype, b.dtype)
    return -(-_extent(a.shape[1]) // (entry.grain if entry else 1))


def _vectors(s: Let, target: Target) -> float:
    count = 1
    for n in s.type.shape:
        count *= _extent(n)
    return count * BYTES.get(s.type.dtype, 1) / target.bytes


def _spilled(dots: Sequence[Let], target: Target) -> float:
    """How many accumulators do not fit in registers; an integer dot of a block needs a float accumulator
    too."""
    held = sum(_vectors(s, target) for s in dots)
    held *= 2 if dots[0].type.dtype == "i32" else 1
    return SPILL * max(0.0, held - (target.regs - 4)) * 2


def _extent(n: int | str) -> int:
    return n if isinstance(n, int) else 1
