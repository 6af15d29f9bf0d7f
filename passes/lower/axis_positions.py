"""Positions along an axis: argmax and argmin.

In: an emitter and coordinates. Out: tiles.
"""

from __future__ import annotations

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.numbers import int_range
from tilewright.ir.tile.builder import Tile
from tilewright.ir.tile.core import At, Span
from tilewright.ir.types import INTEGERS
from tilewright.passes.lower.dims import affine_dim
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.record import Form, Lowering, register_lowering
from tilewright.passes.lower.reductions import LANES

#: larger than any index
FAR = (1 << 31) - 1


# ------------------------------------------------------------------ argmax, argmin
def _arg(e: Emitter, op: Op, at: Coords) -> Tile:
    """The first position of the largest value along one axis (for argmin, of the smallest). NaN counts as
    better than any number."""
    axis = int(str(op.attr("axis")))
    before, after = at[:axis], at[axis + 1 if op.attr("keepdims") else axis :]
    best = e.once((op.result.name, at), lambda: _best(e, op, before, after))
    kept = axis if op.attr("keepdims") else -1
    sizes = [1 if d == kept else c.size for d, c in enumerate(at) if isinstance(c, Span)]
    return e.whole(best if len(sizes) == len(best.shape) else e.b.reshape(best, *sizes), at)


def _best(e: Emitter, op: Op, before: Coords, after: Coords) -> Tile:
    """For a single row, positions along the axis are in lanes; for several rows, the rows are."""
    x, b = op.operands[0], e.b
    spans = [c.size for c in (*before, *after) if isinstance(c, Span)]
    n = e.shapes(x)[len(before)]
    lanes = 0 if spans else min(LANES, 1 << (n - 1).bit_length()) if isinstance(n, int) else LANES
    shape = (lanes,) if lanes else tuple(spans)
    worst, dtype = _worst(op, e.type_of(x).dtype)

    def along(start: Affine) -> Tile:
        return b.cast(dtype, e.emit(x, (*before, Span(start, lanes) if lanes else At(start), *after)))

    along(Affine())  # statistics are emitted here, once per row, outside the loop
    begin = [b.const(worst, dtype, shape), b.const(0, "i32", shape)]
    with e.loop(e.fresh_var("s"), 0, affine_dim(n), lanes or 1, begin) as loop:
        value, place = along(loop.var), b.index_value(loop.var)
        if lanes:
            place = b.iota(lanes) + place
            value = b.within(value, loop.var, 0, worst) if not isinstance(n, int) or n % lanes else value
        take = _better(e, op, value, loop.carried[0])
        loop.yield_(b.select(take, value, loop.carried[0]), b.select(take, place, loop.carried[1]))
    best, where = loop.results
    return _first_lane(e, op, best, where, worst) if lanes else where


def _worst(op: Op, dtype: str) -> tuple[float, str]:
    """The value to start the search with, which no value is worse than, and the type to compare in."""
    low = op.name == "argmax"
    if dtype[0] == "f" or dtype == "bf16":
        return (float("-inf") if low else float("inf")), dtype
    wide = "i64" if dtype == "i64" else "i32"
    return int_range(wide)[0 if low else 1], wide


def _better(e: Emitter, op: Op, value: Tile, best: Tile) -> Tile:
    beats = e.b.op("lt", best, value) if op.name == "argmax" else e.b.op("lt", value, best)
    if value.dtype in INTEGERS:  # has no NaN
        return beats
    first_nan = e.b.op("and", e.b.op("ne", value, value), e.b.op("eq", best, best))
    return e.b.op("or", beats, first_nan)


def _first_lane(e: Emitter, op: Op, best: Tile, where: Tile, worst: float) -> Tile:
    """The lowest position among the lanes that hold the best value."""
    b, far = e.b, e.b.const(FAR, "i32")
    nan = b.op("ne", best, best)
    number = best if best.dtype in INTEGERS else b.select(nan, worst, best)
    top = b.reduce("max" if op.name == "argmax" else "min", number, 0)
    found = b.reduce("min", b.select(b.op("eq", number, top), where, far), 0)
    if best.dtype not in INTEGERS:
        first = b.reduce("min", b.select(nan, where, far), 0)
        found = b.select(b.op("eq", first, far), found, first)
    return b.reshape(found)


for _name in ("argmax", "argmin"):
    register_lowering(Lowering(_name, Form.ALONE, _arg))
