"""A user's backend in one file: tile programs as NumPy functions, on the target `numpy`.

Each kernel becomes Python text with a loop per grid axis and a line per statement; what an operation means
and how a buffer is laid out is asked of the IR. `tw.compile(module, ..., target="numpy")(x)` runs it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.backends.base import Array, Backend, Contraction, KernelFunction, KernelUse
from tilewright.backends.registry import register_backend
from tilewright.backends.walk import KernelBackend
from tilewright.ir.affine import Affine
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.interp.tile import bind_symbols, dims_of
from tilewright.ir.tile.core import (
    At,
    For,
    Index,
    Kernel,
    Let,
    Load,
    Pick,
    Schedule,
    Stmt,
    TileType,
    bind,
    walk,
)
from tilewright.ir.tile.expand import expand_encodings
from tilewright.ir.tile.memory import Stored, allocate, from_other, open_buffer
from tilewright.ir.tile.ops import TILE_OPS

TARGET = "numpy"


# ------------------------------------------------------------------ text
@dataclass
class Text:
    """The lines of one kernel, and the constants that they name `C[n]`."""

    lines: list[str]
    constants: list[Any]
    depth: int = 1

    def emit(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def constant(self, value: Any) -> str:
        self.constants.append(value)
        return f"C[{len(self.constants) - 1}]"


def value(name: str) -> str:
    return "v_" + re.sub(r"\W", "_", name)


def number(a: Affine) -> str:
    """An affine expression as Python: symbols and loop variables are variables, `%x` is a tile of rank 0."""
    return re.sub(r"%([\w.]+)", lambda m: f"int({value(m[1])})", str(a)).replace("/", "//")


def coords(index: Sequence[Index]) -> str:
    """One array of coordinates per dimension, broadcastable to the tile's shape."""
    rank, axis, parts = sum(not isinstance(i, At) for i in index), 0, []
    for i in index:
        if isinstance(i, At):
            parts.append(f"along(np.array([{number(i.start)}]), 0, {rank})")
            continue
        lanes = value(i.tile) if isinstance(i, Pick) else f"{number(i.start)} + np.arange({i.size})"
        parts.append(f"along({lanes}, {axis}, {rank})")
        axis += 1
    return f"[{', '.join(parts)}]"


def along(x: Array, axis: int, rank: int) -> Array:
    return x.astype(np.int64).reshape([-1 if k == axis else 1 for k in range(rank)])


def write(buffer: Stored, at: list[Array], x: Array) -> None:
    buffer.write(at, np.broadcast_to(x, np.broadcast_shapes(*(c.shape for c in at))))


def within(x: Array, left: int, attrs: Mapping[str, Any], t: TileType) -> Array:
    """What lies beyond the end of the loop's range is replaced."""
    inside = along(np.arange(x.shape[attrs["axis"]]), attrs["axis"], x.ndim) < left
    return np.where(inside, x, from_other(attrs["other"], t.dtype, ())).astype(x.dtype)


def block(text: Text, body: Sequence[Stmt]) -> None:
    for s in body:
        if isinstance(s, For):
            loop(text, s)
        elif isinstance(s, Let):
            text.emit(f"{value(s.name)} = {let(text, s)}")
        elif isinstance(s, Load):
            text.emit(f"{value(s.name)} = memory[{s.buffer!r}].read({coords(s.index)}, float('{s.other}'))")
        else:
            text.emit(f"write(memory[{s.buffer!r}], {coords(s.index)}, {value(s.value)})")


def let(text: Text, s: Let) -> str:
    attrs, t = text.constant(dict(s.attrs)), text.constant(s.type)
    if s.op == "index":
        return f"np.array({number(dict(s.attrs)['value'])}, np.int32)"  # type: ignore[arg-type]
    if s.op == "within":
        var = str(dict(s.attrs)["loop"])
        return f"within({value(s.args[0])}, end_{var} - {var}, {attrs}, {t})"
    return f"OPS[{s.op!r}].meaning([{', '.join(map(value, s.args))}], {attrs}, {t})"


def loop(text: Text, s: For) -> None:
    for c in s.carries:
        text.emit(f"{value(c.name)} = {value(c.init)}")
    text.emit(f"end_{s.var} = {number(s.hi)}")
    text.emit(f"for {s.var} in range({number(s.lo)}, end_{s.var}, {s.step}):")
    text.depth += 1
    block(text, s.body)
    names, yields = ([f(c) for c in s.carries] for f in (lambda c: value(c.name), lambda c: value(c.yields)))
    text.emit(f"{', '.join(names)}, = {', '.join(yields)}," if names else "pass")
    text.depth -= 1
    for c in s.carries:
        text.emit(f"{value(c.result)} = {value(c.name)}")


def sizes_of(kernel: Kernel) -> dict[str, int]:
    found = next((s for s in kernel.schedules if s.target == TARGET), None)
    if found is None:
        raise UnsupportedError(f"no schedule for {TARGET}", f"kernel @{kernel.name}")
    return dict(found.sizes)


def rendered(kernel: Kernel) -> Text:
    """`def k(memory, C, ...symbols)`. Rows of a block that lie outside read `else` and are not written."""
    bound = bind(expand_encodings(kernel), sizes_of(kernel))
    text = Text([f"def k({', '.join(['memory', 'C', *kernel.symbols])}):"], [])
    for a in bound.grid:
        text.emit(f"for {a.var} in range(0, {number(a.extent)}, {a.step}):")
        text.depth += 1
    block(text, bound.body)
    return text


# ------------------------------------------------------------------ the backend
@dataclass(frozen=True)
class NumpyBackend(KernelBackend):
    """`schedules`, `render` and `function`; the rest follows."""

    name: str = TARGET

    def schedules(self, kernel: Kernel, use: KernelUse) -> tuple[Schedule, ...]:
        known = {"BM": 16, "BN": 16, "BK": 16}
        if isinstance(use.work, Contraction):
            known["BK"] = math.gcd(use.work.k, 64)
        loops = [s for s in walk(kernel.body) if isinstance(s, For)]
        names = {x.step for x in (*kernel.grid, *loops) if isinstance(x.step, str)}
        return (Schedule(TARGET, tuple(sorted((n, known[n]) for n in names))),)

    def render(self, kernel: Kernel, target: str) -> str:
        return "\n".join(rendered(kernel).lines) + "\n"

    def function(self, kernel: Kernel, target: str) -> KernelFunction:
        text = rendered(kernel)
        scope: dict[str, Any] = {"np": np, "OPS": TILE_OPS, "along": along, "within": within, "write": write}
        exec("\n".join(text.lines), scope)

        def run(arrays: Mapping[str, Array], symbols: Mapping[str, int], threads: int) -> None:
            bound = bind(bind_symbols(expand_encodings(kernel), symbols), sizes_of(kernel))
            memory = {}
            for b in bound.params:
                memory |= open_buffer(b, dims_of(b), arrays[b.name].reshape(-1).view(np.uint8))
            for b in bound.locals:
                memory |= allocate(b, dims_of(b))
            scope["k"](memory, text.constants, *(symbols[s] for s in kernel.symbols))

        return run


BACKEND: Backend = NumpyBackend()
register_backend(TARGET, f"{__name__}:BACKEND")
