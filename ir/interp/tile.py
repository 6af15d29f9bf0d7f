"""The meaning of tile programs, in NumPy: what both renderers are tested against.

In: a kernel, flat arrays of stored bits, symbol values, schedule sizes. Out: output arrays written in place.
Operations mean what `tileops` says, bit for bit; knows nothing of targets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.affine import Affine
from tilewright.ir.errors import RefusedError, VerifyError
from tilewright.ir.numbers import HELD
from tilewright.ir.text.tile_printer import print_statement
from tilewright.ir.tile.bounds import MAX_BYTES, check_sizes
from tilewright.ir.tile.core import (
    At,
    Buffer,
    For,
    GridAxis,
    Index,
    Kernel,
    Let,
    Load,
    Pick,
    Stmt,
    Store,
    TileType,
    bind,
    index_shape,
)
from tilewright.ir.tile.expand import expand_encodings
from tilewright.ir.tile.memory import Array, Stored, allocate, buffer_bytes, from_other, open_buffer
from tilewright.ir.tile.ops import TILE_OPS


def run_kernel(
    kernel: Kernel,
    arrays: Mapping[str, Array],
    symbols: Mapping[str, int],
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Runs every instance of the grid, in order. `arrays`: one C-contiguous array of stored bits per
    parameter. `sizes`: schedule parameters, by default those of the first schedule. RefusedError if the
    inputs do not fit."""
    sizes = dict(kernel.schedules[0].sizes if kernel.schedules else ()) if sizes is None else sizes
    kernel = bind_symbols(expand_encodings(kernel), symbols)
    memory: dict[str, Stored] = {}
    for b in kernel.params:
        memory.update(open_buffer(b, dims_of(bind(kernel, sizes).buffer(b.name)), _flat(b, arrays)))
    bound: dict[tuple[int, ...], Kernel] = {}
    for start, heights in instances(kernel, sizes):
        key = tuple(heights.values())
        if key not in bound:
            bound[key] = bind(kernel, {**sizes, **heights})
            check_sizes(bound[key], {})
        _Instance(bound[key], memory, start).run()


def bind_symbols(kernel: Kernel, symbols: Mapping[str, int]) -> Kernel:
    """The kernel with symbols replaced and its schedules kept."""
    missing = [s for s in kernel.symbols if s not in symbols]
    if missing:
        raise RefusedError(
            f"kernel @{kernel.name} needs a value for {', '.join(missing)}",
            hint="pass every symbol of its extents",
        )
    return bind(kernel, {s: symbols[s] for s in kernel.symbols})


def dims_of(b: Buffer) -> tuple[int, ...]:
    """A bound buffer's dims. Raises RefusedError if one is unknown, negative or beyond 2^48 bytes."""
    if not all(d.is_const and d.integral() and d.as_int() >= 0 for d in b.dims):
        raise RefusedError(f"buffer %{b.name}: dims {', '.join(map(str, b.dims))} are not integers")
    dims = tuple(d.as_int() for d in b.dims)
    if buffer_bytes(b, dims) > MAX_BYTES:
        raise RefusedError(f"buffer %{b.name}: {b.dtype}{list(dims)} is beyond 2^48 bytes")
    return dims


def instances(kernel: Kernel, sizes: Mapping[str, int]) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """(first coordinate of each grid axis, heights of `rows` axes by their size's name), outer axis
    slowest."""
    axes = [list(_blocks(a, sizes)) for a in kernel.grid]
    for choice in itertools.product(*axes):
        start = {a.var: at for a, (at, _) in zip(kernel.grid, choice, strict=True)}
        heights = {str(a.step): h for a, (_, h) in zip(kernel.grid, choice, strict=True) if a.rows}
        yield start, heights


def _blocks(a: GridAxis, sizes: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    extent = a.extent.bind(sizes).as_int()
    step = sizes[a.step] if isinstance(a.step, str) else a.step
    if step < 1:
        raise RefusedError(f"grid {a.var}: step {step}", hint="sizes must be at least 1")
    if not a.rows:
        yield from ((at, step) for at in range(0, extent, step))
        return
    if not isinstance(a.step, str):
        raise RefusedError(
            f"grid rows {a.var} is bound to {step}: but the size of a `rows` axis must vary with the block",
            hint="pass the sizes to run_kernel instead",
        )
    count = -(-extent // step)
    for b in range(count):
        lo, hi = b * extent // count, (b + 1) * extent // count
        yield lo, hi - lo


def _flat(b: Buffer, arrays: Mapping[str, Array]) -> NDArray[np.uint8]:
    a = arrays.get(b.name)
    if a is None:
        raise RefusedError(f"no array for parameter %{b.name}", hint=f"got {', '.join(sorted(arrays))}")
    if not a.flags.c_contiguous:
        raise RefusedError(
            f"array for %{b.name} is not C-contiguous", hint="pass numpy.ascontiguousarray(...)"
        )
    return a.reshape(-1).view(np.uint8)


class _Instance:
    """One instance of the grid: its variables, values and locals."""

    def __init__(self, kernel: Kernel, memory: Mapping[str, Stored], start: Mapping[str, int]) -> None:
        self.kernel, self.env = kernel, dict(start)
        self.ends: dict[str, int] = {}
        self.values: dict[str, Array] = {}
        self.types: dict[str, TileType] = {}
        self.memory = dict(memory)
        for b in kernel.locals:
            self.memory.update(allocate(b, dims_of(b)))

    def run(self) -> None:
        self.block(self.kernel.body)

    def block(self, body: tuple[Stmt, ...]) -> None:
        for s in body:
            if isinstance(s, Let):
                self.let(s)
            elif isinstance(s, Load):
                self.values[s.name] = self.stream(s).read(self.coords(s.index), s.other)
                self.types[s.name] = s.type
            elif isinstance(s, Store):
                shape = index_shape(s.index, self.types)
                self.stream(s).write(self.coords(s.index), np.broadcast_to(self.values[s.value], shape))  # type: ignore[arg-type]
            else:
                self.loop(s)

    def stream(self, s: Load | Store) -> Stored:
        if s.buffer not in self.memory:
            raise VerifyError(
                f"no buffer or stream %{s.buffer}", f"kernel @{self.kernel.name}", source=print_statement(s)
            )
        return self.memory[s.buffer]

    def let(self, s: Let) -> None:
        args = [self.values[a] for a in s.args]
        attrs = dict(s.attrs)
        self.types[s.name] = s.type
        if s.op == "index":
            value: Array = np.array(self.number(attrs["value"]), np.int32)  # type: ignore[arg-type]
        elif s.op == "within":
            value = self.within(args[0], attrs, s.type)
        else:
            value = TILE_OPS[s.op].meaning(args, attrs, s.type)
        self.values[s.name] = value

    def within(self, x: Array, attrs: Mapping[str, object], t: TileType) -> Array:
        loop, axis = str(attrs["loop"]), int(str(attrs["axis"]))
        left = self.ends[loop] - self.env[loop]
        inside = np.arange(x.shape[axis]) < left
        shape = [-1 if k == axis else 1 for k in range(x.ndim)]
        return np.where(inside.reshape(shape), x, from_other(float(str(attrs["other"])), t.dtype, ())).astype(
            HELD[t.dtype]
        )

    def loop(self, s: For) -> None:
        lo, hi, step = self.number(s.lo), self.number(s.hi), s.step
        assert isinstance(step, int), f"loop {s.var}: unbound step {step}"
        carried = [self.values[c.init] for c in s.carries]
        self.ends[s.var] = hi
        for c in s.carries:
            self.types[c.name] = self.types[c.result] = c.type
        for at in range(lo, hi, step):
            self.env[s.var] = at
            self.values.update((c.name, v) for c, v in zip(s.carries, carried, strict=True))
            self.block(s.body)
            carried = [self.values[c.yields] for c in s.carries]
        self.values.update((c.result, v) for c, v in zip(s.carries, carried, strict=True))

    def number(self, a: Affine) -> int:
        total: int | Fraction = a.const
        for name, c in a.terms:
            total += c * (int(self.values[name[1:]].item()) if name.startswith("%") else self.env[name])
        if isinstance(total, Fraction) and total.denominator != 1:
            raise VerifyError(f"index {a} is {total}, not an integer", f"kernel @{self.kernel.name}")
        return int(total)

    def coords(self, index: tuple[Index, ...]) -> list[NDArray[np.int64]]:
        """One coordinate array per dimension, broadcastable to the tile's shape."""
        rank = sum(not isinstance(i, At) for i in index)
        out: list[NDArray[np.int64]] = []
        axis = 0
        for i in index:
            if isinstance(i, At):
                out.append(np.full((1,) * rank, self.number(i.start), np.int64))
                continue
            if isinstance(i, Pick):
                along = self.values[i.tile].astype(np.int64)
            else:
                assert isinstance(i.size, int), f"unbound size {i.size}"
                along = self.number(i.start) + np.arange(i.size, dtype=np.int64)
            out.append(along.reshape([-1 if k == axis else 1 for k in range(rank)]))
            axis += 1
        return out
