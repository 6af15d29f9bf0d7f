"""Lane maps: coordinates of lanes, calls of functions in the instruction table, rearranged registers.

In: registers by name. Out: expressions that join, split, extract or call by type. Independent of tile
operations.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tilewright.backends.cpp.context import Context, Lanes, Pos, ctype, lane_count
from tilewright.backends.cpp.nodes import Node
from tilewright.backends.cpp.target import CTYPE, symbol
from tilewright.ir.numbers import int_range


def spelled(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def lane_coords(pos: Pos, lanes: Lanes) -> list[Pos]:
    """Coordinates of every lane, in lane order."""
    return [tuple(at) for at in (lane_steps(lanes, len(pos)) + pos).tolist()] if lanes else [pos]


@cache
def lane_steps(lanes: Lanes, rank: int) -> NDArray[np.int64]:
    """The distance of every lane from the first, in elements per axis, int64[lanes, rank]. The array is
    cached: do not write to it."""
    out = []
    for digits in itertools.product(*[range(n) for _, n in lanes]):
        at = [0] * rank
        step = {axis: 1 for axis, _ in lanes}
        for (axis, n), digit in reversed(list(zip(lanes, digits, strict=True))):
            if axis is not None:
                at[axis] += digit * step[axis]
                step[axis] *= n
        out.append(at)
    steps = np.array(out, np.int64).reshape(len(out), rank)
    steps.setflags(write=False)
    return steps


def units(shape: Sequence[int], lanes: Lanes) -> Iterator[Pos]:
    """Positions of the registers that cover a tile."""
    steps = [1] * len(shape)
    for axis, n in lanes:
        if axis is not None:
            steps[axis] *= n
    return itertools.product(*[range(0, n, s) for n, s in zip(shape, steps, strict=True)])


def call(ctx: Context, name: str, dtypes: Sequence[str], result: str, args: Sequence[str], lanes: int) -> str:
    """The table function on registers of `lanes`; lane by lane on scalars if the table has no entry for that
    width."""
    types = tuple(spelled(d, lanes) for d in dtypes)
    if ctx.target.has(name, *types):
        return f"{symbol(name, types)}({', '.join(args)})"
    if lanes == 1:
        raise KeyError(f"{ctx.target.name} has no {name}({', '.join(types)})")
    one = symbol(name, tuple(dtypes))
    each = [f"{one}({', '.join(f'{a}[{i}]' for a in args)})" for i in range(lanes)]
    return f"{ctype(result, lanes)}{{{', '.join(each)}}}"


def shuffle(a: str, b: str, index: Sequence[int]) -> str:
    return f"__builtin_shufflevector({a}, {b}, {', '.join(map(str, index))})"


def halves(pos: Pos, lanes: Lanes) -> tuple[tuple[Pos, Lanes], tuple[Pos, Lanes]]:
    """The lower and the upper half of a request."""
    (axis, n), rest = lanes[0], lanes[1:]
    span = n // 2
    for other, size in rest:
        span *= size if other == axis else 1
    upper = tuple(p + (span if k == axis else 0) for k, p in enumerate(pos))
    half = ((axis, n // 2), *rest)
    return (pos, half), (upper, half)


def joined(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int, element: str) -> str:
    """A register wider than the operation allows: both halves are computed, then joined."""
    (p0, h), (p1, _) = halves(pos, lanes)
    a, b = ctx.get(node, p0, h), ctx.get(node, p1, h)
    n = lane_count(lanes)
    if n == 2:
        return ctx.let(d, f"{element}x2", f"{element}x2{{{a}, {b}}}")
    return ctx.let(d, f"{element}x{n}", shuffle(a, b, range(n)))


def regather(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int, own: Lanes) -> str:
    """Lanes in any map, taken from registers whose map is `own` (one axis, or scalars)."""
    n = lane_count(lanes)
    where = [_place(c, own) for c in lane_coords(pos, lanes)] if lanes else [_place(pos, own)]
    regs = {base: ctx.get(node, base, own) for base, _ in dict.fromkeys(where)}
    if n == 1:
        return f"{regs[where[0][0]]}[{where[0][1]}]"
    width = lane_count(own)
    names = list(regs)
    if own and len(names) <= 2:
        index = [names.index(base) * width + k for base, k in where]
        return ctx.let(
            d,
            ctype(node.dtype, n),
            shuffle(
                regs[names[0]], regs[names[-1]], index if len(names) == 2 else [i % width for i in index]
            ),
        )
    parts = [f"{regs[base]}[{k}]" if own else regs[base] for base, k in where]
    return ctx.let(d, ctype(node.dtype, n), f"{ctype(node.dtype, n)}{{{', '.join(parts)}}}")


def _place(at: Pos, own: Lanes) -> tuple[Pos, int]:
    if not own:
        return at, 0
    ((axis, n),) = own
    base = tuple(p // n * n if k == axis else p for k, p in enumerate(at))
    return base, at[axis or 0] - base[axis or 0]


def literal(value: object, dtype: str) -> str:
    """A constant of this dtype as C++."""
    if dtype in ("f32", "f64"):
        return _float(float(str(value)), dtype)
    if dtype in ("bf16", "f16"):
        from tilewright.ir.numbers import to_bits

        return (
            f"(uint16_t){int(to_bits(np.array([float(str(value))], np.float32), dtype).view(np.uint16)[0])}"
        )
    if dtype == "bool":
        return "true" if value and float(str(value)) else "false"
    lo, hi = int_range(dtype)
    n = min(max(int(float(str(value))) if not isinstance(value, int) else value, lo), hi)
    if n == -(1 << 63):
        return "INT64_MIN"
    return f"({CTYPE[dtype]}){n}{'ll' if dtype == 'i64' else 'u' if dtype == 'u32' else ''}"


def _float(x: float, dtype: str) -> str:
    tail = "f" if dtype == "f32" else ""
    if x != x:
        return f'__builtin_nan{tail}("")'
    if x in (float("inf"), float("-inf")):
        return f"{'-' if x < 0 else ''}__builtin_inf{tail}()"
    if dtype == "f32":
        with np.errstate(over="ignore"):
            single = float(np.float32(x))
        return _float(single, "f32") if single in (float("inf"), float("-inf")) else f"{single!r}f"
    return repr(x)
