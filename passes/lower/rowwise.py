"""Ops that look along a row: norms, softmax, reductions, rotary, top-k. Each is a value that any region can ask for at
coordinates; its per-row statistics are emitted once per row, in a fixed order of summation.

In: an emitter and coordinates. Out: tiles. Importing this module adds the forms to the emitter's table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tilewright.ir.affine import Affine
from tilewright.ir.graph import Op
from tilewright.ir.tile import At, Span
from tilewright.ir.tilebuild import Tile
from tilewright.passes.lower.dims import RunTimeSize, affine_dim
from tilewright.passes.lower.emit import SPECIAL, Coords, Emitter
from tilewright.passes.lower.views import CannotEmit

#: lanes of a row statistic: part of the meaning (order of summation), hence no schedule parameter
LANES = 64


def row_length(e: Emitter, operand: str) -> int:
    d = e.shapes(operand)[-1]
    if not isinstance(d, int):
        raise RunTimeSize(f"row length {d} is known at run time only")
    return d


def share(e: Emitter, *dims: object) -> float | Tile:
    """One over the number of elements that these dimensions hold."""
    count, known = None, 1
    for d in dims:
        if isinstance(d, int):
            known *= d
        else:
            held = e.b.cast("f32", e.b.index_value(affine_dim(d)))
            count = held if count is None else count * held
    whole = 1.0 / known if known else math.inf  # the mean of nothing is 0 times infinity, no number
    return whole if count is None else whole / count


def fold(e: Emitter, operand: str, row: Coords, fn: str, f: Callable[[Tile], Tile]) -> Tile:
    """reduce(fn) of f(x) over the whole row, as a rank-0 tile."""
    n = e.shapes(operand)[-1]
    neutral = 0.0 if fn == "add" else float("-inf") if fn == "max" else float("inf")
    lanes = min(LANES, 1 << (n - 1).bit_length()) if isinstance(n, int) else LANES
    lanes = math.gcd(n, lanes) if isinstance(n, int) and e.reads_packed(operand) else lanes
    e.emit(operand, (*row, Span(Affine(), lanes)))  # what it needs once per row is made here, outside the loop
    with e.loop(e.fresh_var("s"), 0, affine_dim(n), lanes, [e.b.const(neutral, "f32", (lanes,))]) as loop:
        x = f(e.emit(operand, (*row, Span(loop.var, lanes))))
        x = e.b.within(x, loop.var, 0, neutral) if not isinstance(n, int) or n % lanes else x
        loop.yield_(e.b.op(fn, loop.carried[0], x))
    return e.b.reshape(e.b.reduce(fn, loop.results[0], 0))


def _last_axis(op: Op, rank: int) -> None:
    axis = op.attr("axis")
    if axis != rank - 1:
        raise CannotEmit(f"{op.name} along axis {axis} of rank {rank}")


def _unspan(at: Coords) -> Coords:
    if any(isinstance(c, Span) and c.size != 1 for c in at):
        raise CannotEmit("a row statistic over several rows at once")
    return tuple(At(c.start) for c in at)


def _rms_norm(e: Emitter, op: Op, at: Coords) -> Tile:
    x = op.operands[0]
    _last_axis(op, len(at))
    row, name = _unspan(at[:-1]), op.result.name

    def scale() -> Tile:
        mean = fold(e, x, row, "add", lambda v: v * v) * share(e, e.shapes(x)[-1])
        return e.b.op("rsqrt", mean + float(op.attr("eps")))  # type: ignore[arg-type]

    r = e.once((name, row), scale)
    y = e.emit(x, (*row, at[-1])) * r
    if len(op.operands) > 1:
        w = e.emit(op.operands[1], (at[-1],))
        offset = float(op.attr("offset"))  # type: ignore[arg-type]
        y = y * (w + offset if offset else w)
    return _spread(e, at, y)


def _layer_norm(e: Emitter, op: Op, at: Coords) -> Tile:
    x = op.operands[0]
    _last_axis(op, len(at))
    row, name, n = _unspan(at[:-1]), op.result.name, e.shapes(x)[-1]
    mean = e.once((name, row, "mean"), lambda: fold(e, x, row, "add", lambda v: v) * share(e, n))

    def scale() -> Tile:
        var = fold(e, x, row, "add", lambda v: (v - mean) * (v - mean)) * share(e, n)
        return e.b.op("rsqrt", var + float(op.attr("eps")))  # type: ignore[arg-type]

    r = e.once((name, row), scale)
    y = (e.emit(x, (*row, at[-1])) - mean) * r
    if len(op.operands) > 1:
        y = y * e.emit(op.operands[1], (at[-1],))
    if len(op.operands) > 2:
        y = y + e.emit(op.operands[2], (at[-1],))
    return _spread(e, at, y)


def _softmax(e: Emitter, op: Op, at: Coords) -> Tile:
    x = op.operands[0]
    _last_axis(op, len(at))
    row, name = _unspan(at[:-1]), op.result.name
    top = e.once((name, row, "max"), lambda: fold(e, x, row, "max", lambda v: v))
    total = e.once((name, row), lambda: fold(e, x, row, "add", lambda v: e.b.op("exp", v - top)))
    centred = e.emit(x, (*row, at[-1])) - top
    y = centred - e.b.op("log", total) if op.name == "log_softmax" else e.b.op("exp", centred) / total
    return _spread(e, at, y)


def _spread(e: Emitter, at: Coords, y: Tile) -> Tile:
    """Put back the unit axes of leading `Span(…, 1)` coordinates."""
    missing = sum(isinstance(c, Span) for c in at) - len(y.shape)
    for _ in range(missing):
        y = e.b.expand(y, 0)
    return y


_FOLD: dict[str, str] = {"sum": "add", "mean": "add", "max_reduce": "max", "min_reduce": "min"}


def _reduce(e: Emitter, op: Op, at: Coords) -> Tile:
    """A reduction over any axes: running along each in turn, the last one in lanes."""
    x = op.operands[0]
    shape = e.shapes(x)
    axes: Sequence[int] = op.attr("axes")  # type: ignore[assignment]
    keep = bool(op.attr("keepdims"))
    kept = iter(at)
    full: list[At | Span | None] = []
    for axis in range(len(shape)):
        if axis in axes:
            if keep:
                next(kept)
            full.append(None)
        else:
            full.append(next(kept))
    y = e.once((op.result.name, at), lambda: _run(e, op, x, full, shape))
    spans = [c for c in at if isinstance(c, Span)]
    if len(spans) != len(y.shape):
        y = e.b.reshape(y, *[c.size for c in spans])
    return y


def _run(e: Emitter, op: Op, x: str, at: Sequence[At | Span | None], shape: Sequence[object]) -> Tile:
    todo = [k for k, c in enumerate(at) if c is None]
    fn = _FOLD[op.name]
    neutral = 0.0 if fn == "add" else float("-inf") if fn == "max" else float("inf")
    spans = [c.size for c in at if isinstance(c, Span)]

    e.emit(x, tuple(At(Affine()) if c is None else c for c in at))  # statistics inside are made out here

    def nest(depth: int, fixed: list[At | Span | None], acc: Tile) -> Tile:
        if depth == len(todo):
            return e.b.op(fn, acc, e.emit(x, tuple(c for c in fixed if c is not None)))
        axis = todo[depth]
        with e.loop(e.fresh_var("s"), 0, affine_dim(shape[axis]), 1, [acc]) as loop:
            inner = list(fixed)
            inner[axis] = At(loop.var)
            loop.yield_(nest(depth + 1, inner, loop.carried[0]))
        return loop.results[0]

    if not spans and todo == [len(at) - 1]:
        out = fold(e, x, tuple(c for c in at if c is not None), fn, lambda v: v)
    else:
        out = nest(0, list(at), e.b.const(neutral, "f32", tuple(spans)))
    if op.name == "mean":
        out = out * share(e, *[shape[k] for k in todo])
    return out


def rope_dim(e: Emitter, op: Op) -> int:
    """How many channels are turned: `dim`, or all of them."""
    return int(str(op.attr("dim"))) or row_length(e, op.operands[0])


def _rope(e: Emitter, op: Op, at: Coords) -> Tile:
    """Rotary embedding at a constant channel range that lies in one half of the rotated part ("RoFormer")."""
    x, cos, sin = op.operands
    half = rope_dim(e, op) // 2
    last = at[-1]
    if op.attr("interleaved"):
        return _rope_pairs(e, op, at)
    if not isinstance(last, Span) or last.start.names or not isinstance(last.size, int):
        raise CannotEmit("rotary embedding at a running channel")
    d = last.start.as_int()
    if d >= 2 * half:
        return e.emit(x, at)
    if d // half != (d + last.size - 1) // half:
        raise CannotEmit("rotary embedding across its two halves")
    angle = _table_coords(e, cos, at, Span(Affine.of(d % half), last.size))
    c, s = e.emit(cos, angle), e.emit(sin, angle)
    other = (*at[:-1], Span(Affine.of((d + half) % (2 * half)), last.size))
    a, b = e.emit(x, at), e.emit(x, other)
    return e.b.op("fma", a, c, -(b * s)) if d < half else e.b.op("fma", a, c, b * s)


def _rope_pairs(e: Emitter, op: Op, at: Coords) -> Tile:
    """The same with neighbouring channels as pairs: even and odd ones are told apart by masks, the sums have one term each."""
    x, cos, sin = op.operands
    last, b = at[-1], e.b
    if not isinstance(last, Span) or last.start.names or not isinstance(last.size, int) or last.size % 2:
        raise CannotEmit("interleaved rotary embedding at a running or odd channel")
    d, pairs = last.start.as_int(), last.size // 2
    if d >= rope_dim(e, op):
        return e.emit(x, at)
    angle = _table_coords(e, cos, at, Span(Affine.of(d // 2), pairs))
    c, s = (b.reshape(e.emit(t, angle), pairs, 1) for t in (cos, sin))
    whole = e.emit(x, at)
    pair = b.reshape(whole, pairs, 2)
    first = b.op("eq", b.expand(b.iota(2), 0), b.const(0, "i32"))
    even = b.reduce("add", b.select(first, pair, 0.0), 1)
    odd = b.reduce("add", b.select(first, b.const(0.0), pair), 1)
    turned = b.select(first, b.op("fma", even, c, -(odd * s)), b.op("fma", odd, c, even * s))
    return b.reshape(turned, *whole.shape)


def _table_coords(e: Emitter, cos: str, at: Coords, last: Span) -> Coords:
    """cos and sin have no head axis: drop it."""
    rank = len(e.shapes(cos))
    lead = at[: rank - 1]
    shape = e.shapes(cos)
    return (*[At(Affine()) if shape[k] == 1 else At(c.start) for k, c in enumerate(lead)], last)


for _name in _FOLD:
    SPECIAL[_name] = _reduce
SPECIAL.update(rms_norm=_rms_norm, layer_norm=_layer_norm, softmax=_softmax, log_softmax=_softmax, rope=_rope)
