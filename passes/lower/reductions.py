"""Reductions as values that any region can request at coordinates: sums, extremes, products, truth, variance.

In: an emitter and coordinates. Out: tiles of the operand's own element type, summed in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Span
from tilewright.ir.tile.ops import identity
from tilewright.passes.lower.dims import affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.record import Form, Lowering, register_lowering

#: lanes of a row statistic. They determine the order of summation, so they are not a schedule parameter
LANES = 64
#: the tile operation that combines two elements, by reduction
_FOLD: dict[str, str] = {
    "sum": "add", "mean": "add", "var": "add", "logsumexp": "add", "prod": "mul", "max_reduce": "max",
    "min_reduce": "min",
    "any": "max", "all": "min",
}  # fmt: skip
Entry = At | Span | None
Map = Callable[[Tile], Tile]


def share(e: Emitter, operand: str, *dims: object) -> float | Tile:
    """1 / the number of elements in these dimensions, in the operand's element type."""
    known, counted = count(e, operand, *dims)
    whole = 1.0 / known if known else math.inf  # the mean of no elements is 0 times infinity, which is NaN
    return whole if counted is None else whole / counted


def count(e: Emitter, operand: str, *dims: object) -> tuple[int, Tile | None]:
    """The number of elements: a constant, and the factor known only at run time (None: there is none)."""
    counted, known = None, 1
    for d in dims:
        if isinstance(d, int):
            known *= d
        else:
            held = e.b.cast(e.type_of(operand).dtype, e.b.index_value(affine_dim(d)))
            counted = held if counted is None else counted * held
    return known, counted


def neutral(fn: str, dtype: str) -> float:
    """The neutral element of a reduction."""
    return 1 if fn == "mul" else identity(fn, dtype)  # type: ignore[return-value]


def fold(e: Emitter, operand: str, row: Coords, fn: str, f: Map) -> Tile:
    """reduce(fn) of f(x) over the whole row, as a rank-0 tile. f keeps the element type, except that bool
    becomes a byte."""
    n, dtype = e.shapes(operand)[-1], _dtype(e, operand)
    lanes = min(LANES, 1 << (n - 1).bit_length()) if isinstance(n, int) else LANES
    lanes = math.gcd(n, lanes) if isinstance(n, int) and e.reads_packed(operand) else lanes
    start = neutral(fn, dtype)
    e.emit(
        operand, (*row, Span(Affine(), lanes))
    )  # statistics are emitted here, once per row, outside the loop
    with e.loop(e.fresh_var("s"), 0, affine_dim(n), lanes, [e.b.const(start, dtype, (lanes,))]) as loop:
        x = f(e.emit(operand, (*row, Span(loop.var, lanes))))
        x = e.b.within(x, loop.var, 0, start) if not isinstance(n, int) or n % lanes else x
        loop.yield_(e.b.op(fn, loop.carried[0], x))
    return e.b.reshape(e.b.reduce(fn, loop.results[0], 0))


def _dtype(e: Emitter, operand: str) -> str:
    dtype = e.type_of(operand).dtype
    return "u8" if dtype == "bool" else dtype


# ------------------------------------------------------------------ over any axes
def _reduce(e: Emitter, op: Op, at: Coords) -> Tile:
    """A reduction over any axes: a loop over each, except that the last axis is in lanes."""
    shape = e.shapes(op.operands[0])
    axes: Sequence[int] = op.attr("axes")  # type: ignore[assignment]
    kept = iter(at)
    full: list[Entry] = []
    for axis in range(len(shape)):
        if axis in axes:
            if op.attr("keepdims"):
                next(kept)
            full.append(None)
        else:
            full.append(next(kept))
    y = e.once((op.result.name, at), lambda: _reduced(e, op, full))
    over = set(axes) if op.attr("keepdims") else set()
    sizes = [1 if axis in over else c.size for axis, c in enumerate(at) if isinstance(c, Span)]
    return e.whole(e.b.reshape(y, *sizes) if len(sizes) != len(y.shape) else y, at)


def _reduced(e: Emitter, op: Op, at: Sequence[Entry]) -> Tile:
    x, shape = op.operands[0], e.shapes(op.operands[0])
    over = [shape[k] for k, c in enumerate(at) if c is None]
    if op.name == "var":
        return _variance(e, op, at, over)
    if op.name == "logsumexp":
        return _logsumexp(e, op, at)
    out = _run(e, x, at, _FOLD[op.name], _as_numbers(e, x))
    if op.name == "mean":
        return out * share(e, x, *over)
    return e.b.op("ne", out, 0) if op.result.type.dtype == "bool" else out


def _as_numbers(e: Emitter, operand: str) -> Map:
    return lambda v: e.b.cast(_dtype(e, operand), v)


def _variance(e: Emitter, op: Op, at: Sequence[Entry], over: Sequence[object]) -> Tile:
    """The sum of squared differences from the mean, divided by max(count - correction, 0), so that too few
    elements give a division by 0."""
    x = op.operands[0]
    mean = _run(e, x, at, "add", lambda v: v) * share(e, x, *over)
    squares = _run(e, x, at, "add", lambda v: (v - mean) * (v - mean))
    known, counted = count(e, x, *over)
    less = int(str(op.attr("correction")))
    if counted is None:
        return squares / e.b.const(float(max(known - less, 0)), squares.dtype)
    return squares / e.b.op("max", counted * known - less, 0)


def _logsumexp(e: Emitter, op: Op, at: Sequence[Entry]) -> Tile:
    """log(sum(exp(x - m))) + m with m the largest value, or 0 if that is infinite."""
    x = op.operands[0]
    top = _run(e, x, at, "max", lambda v: v)
    top = e.b.select(e.b.op("lt", e.b.op("abs", top), math.inf), top, 0.0)
    return e.b.op("log", _run(e, x, at, "add", lambda v: e.b.op("exp", v - top))) + top


def _run(e: Emitter, x: str, at: Sequence[Entry], fn: str, f: Map) -> Tile:
    """fn of f(x) over the axes that are None."""
    shape = e.shapes(x)
    todo = [k for k, c in enumerate(at) if c is None]
    spans = [c.size for c in at if isinstance(c, Span)]
    # statistics that the loop reads are computed before it
    e.emit(x, tuple(At(Affine()) if c is None else c for c in at))

    def nest(depth: int, fixed: list[Entry], acc: Tile) -> Tile:
        if depth == len(todo):
            return e.b.op(fn, acc, f(e.emit(x, tuple(c for c in fixed if c is not None))))
        axis = todo[depth]
        with e.loop(e.fresh_var("s"), 0, affine_dim(shape[axis]), 1, [acc]) as loop:
            inner = list(fixed)
            inner[axis] = At(loop.var)
            loop.yield_(nest(depth + 1, inner, loop.carried[0]))
        return loop.results[0]

    if not spans and todo == [len(at) - 1] and fn != "mul":
        return fold(e, x, tuple(c for c in at if c is not None), fn, f)
    return nest(0, list(at), e.b.const(neutral(fn, _dtype(e, x)), _dtype(e, x), tuple(spans)))


for _name in _FOLD:
    register_lowering(Lowering(_name, Form.REDUCTION, _reduce))
