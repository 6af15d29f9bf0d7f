"""Views as index maps: where the element of a slice, split, transpose, expand or reshape comes from.

In: a view op, one of its results and coordinates in it. Out: coordinates in its operand, or CannotEmit with
the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.core import At, Size, Span
from tilewright.passes.lower.dims import CannotEmit, RunTimeSize, affine_dim

Coord = At | Span
Coords = tuple[Coord, ...]
Shapes = Callable[[str], tuple[object, ...]]


@dataclass(frozen=True)
class View:
    """Operand coordinates. `transposed`: the loaded rank-2 tile must be transposed; `shape`: it must then be
    reshaped to this."""

    at: Coords
    transposed: bool = False
    shape: tuple[Size, ...] | None = None


def shifted(c: Coord, by: int | Affine) -> Coord:
    return At(c.start + by) if isinstance(c, At) else Span(c.start + by, c.size)


def _at_axis(at: Coords, axis: int, c: Coord) -> Coords:
    return (*at[:axis], c, *at[axis + 1 :])


def _int(x: object) -> int:
    if not isinstance(x, int):
        raise RunTimeSize(f"size {x} is known at run time only")
    return x


def slice_(op: Op, result: str, at: Coords, shapes: Shapes) -> View:
    axis, start, step = _int(op.attr("axis")), Affine.of(affine_dim(op.attr("start"))), _int(op.attr("step"))
    c = at[axis]
    if step != 1:
        if isinstance(c, Span) and c.size != 1:
            raise CannotEmit("strided slice along a vector axis")
        moved: Coord = At(c.start * step + start) if isinstance(c, At) else Span(c.start * step + start, 1)
        return View(_at_axis(at, axis, moved))
    return View(_at_axis(at, axis, shifted(c, start)))


def split(op: Op, result: str, at: Coords, shapes: Shapes) -> View:
    axis = _int(op.attr("axis"))
    sizes: Sequence[object] = op.attr("sizes")  # type: ignore[assignment]
    n = [r.name for r in op.results].index(result)
    return View(
        _at_axis(at, axis, shifted(at[axis], sum([Affine.of(affine_dim(s)) for s in sizes[:n]], Affine())))
    )


def transpose(op: Op, result: str, at: Coords, shapes: Shapes) -> View:
    perm: Sequence[int] = op.attr("perm")  # type: ignore[assignment]
    out: list[Coord] = [at[0]] * len(at)
    for k, p in enumerate(perm):
        out[p] = at[k]
    order = [p for k, p in enumerate(perm) if isinstance(at[k], Span)]
    if order == sorted(order):
        return View(tuple(out))
    if len(order) == 2:
        return View(tuple(out), transposed=True)
    raise CannotEmit("transposition of a tile of rank 3 or more")


def expand(op: Op, result: str, at: Coords, shapes: Shapes) -> View:
    shape = shapes(op.operands[0])
    out: list[Coord] = []
    for d, c in zip(shape, at[len(at) - len(shape) :], strict=True):
        if d == 1:
            out.append(At(Affine()) if isinstance(c, At) else Span(Affine(), 1))
        else:
            out.append(c)
    return View(tuple(out))


def reshape(op: Op, result: str, at: Coords, shapes: Shapes) -> View:
    """Splits and merges of neighbouring axes whose inner extents are static."""
    src, dst = list(shapes(op.operands[0])), list(shapes("%" + result))
    out: list[Coord] = []
    tile: list[Size] = []
    i = j = 0
    reshaped = False
    while i < len(src) or j < len(dst):
        a, b = _group(src, dst, i, j)
        from_, to = src[i:a], dst[j:b]
        coords, sizes, changed = _regroup(from_, to, at[j:b])
        out += coords
        tile += sizes
        reshaped |= changed
        i, j = a, b
    return View(tuple(out), shape=tuple(tile) if reshaped else None)


def _group(src: Sequence[object], dst: Sequence[object], i: int, j: int) -> tuple[int, int]:
    """(a, b) of the shortest runs src[i:a] and dst[j:b] with equal products."""
    a, b = i + 1, j + 1
    if i >= len(src):
        return i, len(dst)
    if j >= len(dst):
        return len(src), j
    while True:
        p, q = _product(src[i:a]), _product(dst[j:b])
        if p == q:
            return a, b
        if _smaller(p, q) and a < len(src):
            a += 1
        elif b < len(dst):
            b += 1
        elif a < len(src):
            a += 1
        else:
            raise CannotEmit(f"reshape {tuple(src)} to {tuple(dst)}")


def _smaller(p: object, q: object) -> bool:
    """Whether the run with product `p` must be extended: the smaller one, or for symbols the one that divides
    the other."""
    if isinstance(p, int):
        return not isinstance(q, int) or p < q
    return not isinstance(q, int) and bool((q / p).as_numer_denom()[1] == 1)  # type: ignore[operator]


def _product(dims: Sequence[object]) -> object:
    out: object = 1
    for d in dims:
        out = out * d  # type: ignore[operator]
    return out


def _regroup(
    src: Sequence[object], dst: Sequence[object], at: Coords
) -> tuple[list[Coord], list[Size], bool]:
    kept = [c.size for c in at if isinstance(c, Span)]
    if len(src) == len(dst) == 1:
        return [at[0]], kept, False
    if not src:
        return [], kept, bool(kept)
    if len(src) == 1:  # the result is split finer: combine its coordinates
        return _merge_coords(dst, at)
    ones = [k for k, d in enumerate(src) if d == 1]
    if len(dst) == 1 and len(ones) == len(src) - 1:  # unit axes removed
        keep = next((k for k in range(len(src)) if k not in ones), 0)
        return [at[0] if k == keep else At(Affine()) for k in range(len(src))], kept, False
    if len(dst) == 1 and not at[0].start.names:  # a constant coordinate can be divided
        return _divide(src, at[0])
    raise CannotEmit(f"reshape of {tuple(src)} to {tuple(dst)} at an index that a loop changes")


def _merge_coords(dst: Sequence[object], at: Coords) -> tuple[list[Coord], list[Size], bool]:
    start = Affine()
    spans = [k for k, c in enumerate(at) if isinstance(c, Span) and not (c.size == 1 and dst[k] == 1)]
    if any(dst[k] == 1 for k in spans):
        raise CannotEmit("a tile that extends past an axis of size 1")
    for k, c in enumerate(at):
        if dst[k] != 1:
            start = start + c.start * math.prod(_int(d) for d in dst[k + 1 :])
    units = [c.size for c in at if isinstance(c, Span)]
    if not spans:
        return [At(start) if not units else Span(start, 1)], units, len(units) > 1
    full = all(at[k] == Span(Affine(), dst[k]) for k in range(spans[0] + 1, len(at)))  # type: ignore[arg-type]
    last_only = len(spans) == 1 and all(dst[k] == 1 for k in range(spans[0] + 1, len(at)))
    first = at[spans[0]]
    assert isinstance(first, Span)
    if last_only:
        return [Span(start, first.size)], units, len(units) > 1
    inner = math.prod(_int(d) for d in dst[spans[0] + 1 :])
    if full and isinstance(first.size, int):
        return [Span(start, first.size * inner)], units, True
    raise CannotEmit("reshape of a strided tile")


def _divide(src: Sequence[object], c: Coord) -> tuple[list[Coord], list[Size], bool]:
    value = c.start.as_int()
    out: list[Coord] = []
    for k in range(len(src)):
        inner = math.prod(_int(d) for d in src[k + 1 :])
        out.append(At(Affine.of(value // inner)))
        value %= inner
    if isinstance(c, At):
        return out, [], False
    inner = _int(src[-1])
    start = out[-1].start.as_int()
    if isinstance(c.size, int) and start + c.size <= inner:
        out[-1] = Span(Affine.of(start), c.size)
        return out, [c.size], False
    raise CannotEmit("reshape of a span that crosses rows")
