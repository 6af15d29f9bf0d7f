"""Ranges of grid and loop variables and of rank-0 integer tiles: known bounds of run-time loops.

In: a kernel and one binding of its sizes. Out: every statement with the ranges of the variables around it;
for each scalar tile the smallest and largest value it can take, None where nothing is known. The verifier
proves accesses with them; the renderer bounds loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from tilewright.ir.affine import Affine
from tilewright.ir.tile.core import For, GridAxis, Kernel, Let, Load, Size, Stmt, walk

Bounds = tuple[int | None, int | None]
UNKNOWN: Bounds = (None, None)


def scalar_ranges(kernel: Kernel) -> dict[str, Bounds]:
    """Bounds of every rank-0 integer tile by name, as long as no sum wraps around."""
    out: dict[str, Bounds] = {}
    for s in walk(kernel.body):
        if isinstance(s, Load) and not s.type.shape:
            out[s.name] = (0, 255) if s.type.dtype == "u8" else UNKNOWN
        elif isinstance(s, Let) and not s.type.shape and s.type.dtype[0] in "iu":
            out[s.name] = _range(s, [out.get(a, UNKNOWN) for a in s.args])
    return out


def _range(s: Let, args: list[Bounds]) -> Bounds:
    if s.op == "const":
        value = s.attr("value")
        return (int(value), int(value)) if isinstance(value, int) else UNKNOWN
    if s.op == "index":
        at = s.attr("value")
        return (at.as_int(), at.as_int()) if isinstance(at, Affine) and at.is_const else UNKNOWN
    rule = _RULES.get(s.op)
    return rule(*args) if rule else UNKNOWN


def _min(a: Bounds, b: Bounds) -> Bounds:
    highs = [x for x in (a[1], b[1]) if x is not None]
    return (min(a[0], b[0]) if a[0] is not None and b[0] is not None else None, min(highs, default=None))


def _max(a: Bounds, b: Bounds) -> Bounds:
    lows = [x for x in (a[0], b[0]) if x is not None]
    return (max(lows, default=None), max(a[1], b[1]) if a[1] is not None and b[1] is not None else None)


def _shr(a: Bounds, b: Bounds) -> Bounds:
    if b[0] is None or b[0] != b[1] or a[0] is None or a[0] < 0:
        return UNKNOWN
    return (a[0] >> b[0], a[1] >> b[0] if a[1] is not None else None)


def _and(a: Bounds, b: Bounds) -> Bounds:
    masks = [x[1] for x in (a, b) if x[0] is not None and x[0] >= 0 and x[1] is not None]
    return (0, min(masks)) if masks else UNKNOWN


_RULES: dict[str, Callable[..., Bounds]] = {"min": _min, "max": _max, "shr": _shr, "and": _and}


# ------------------------------------------------------------------ variables
@dataclass(frozen=True)
class Range:
    """Values of a grid or loop variable: lo, lo + step, … below hi (affine in outer names); `rows`: the axis
    may take any value in between."""

    lo: Affine
    hi: Affine
    step: int
    rows: bool = False
    #: name of the size that a `rows` axis re-binds
    size: Size = 0
    #: False: lo is only a lower bound, the smallest value of a scalar tile
    exact: bool = True
    #: whether the variable begins some whole number of steps after lo
    aligned: bool = True

    @property
    def last(self) -> int | None:
        """The largest value less lo; None if the extent is not a constant."""
        extent = self.hi - self.lo
        if not extent.is_const or not extent.integral():
            return None
        n = extent.as_int()
        return max(n - 1, 0) if self.rows or not self.aligned else max(-(-n // self.step) - 1, 0) * self.step

    @property
    def longest(self) -> Affine:
        """An upper bound of the largest value less lo, for all values of the symbols."""
        return self.hi - self.lo - 1 if self.last is None else Affine.of(self.last)


@dataclass(frozen=True)
class RangedStmt:
    """A statement with the ranges of the variables around it."""

    stmt: Stmt
    ranges: Mapping[str, Range]


def ranged_statements(kernel: Kernel, sizes: Mapping[str, int]) -> Iterator[RangedStmt]:
    """Every statement with its ranges, grid axes first."""
    ranges = {a.var: _axis_range(a, sizes) for a in kernel.grid}
    yield from _ranged(kernel.body, ranges, sizes, scalar_ranges(kernel))


def _axis_range(a: GridAxis, sizes: Mapping[str, int]) -> Range:
    return Range(Affine(), a.extent.bind(sizes), size_of(a.step, sizes), a.rows, a.step)


def _ranged(
    body: tuple[Stmt, ...],
    ranges: Mapping[str, Range],
    sizes: Mapping[str, int],
    scalars: Mapping[str, Bounds],
) -> Iterator[RangedStmt]:
    for s in body:
        yield RangedStmt(s, ranges)
        if isinstance(s, For):
            start, step = s.lo.bind(sizes), size_of(s.step, sizes)
            lo, hi = _reach(start, scalars, 0), _reach(s.hi.bind(sizes), scalars, 1)
            exact = lo == start
            inner = Range(lo, hi, step, exact=exact, aligned=exact or _whole_steps(start - lo, step))
            yield from _ranged(s.body, {**ranges, s.var: inner}, sizes, scalars)


def _reach(bound: Affine, scalars: Mapping[str, Bounds], side: int) -> Affine:
    """A loop bound in which a scalar tile, or a multiple of it, is replaced by its known smallest or largest
    value."""
    if len(bound.terms) == 1 and bound.terms[0][1] > 0 and bound.terms[0][0].startswith("%"):
        name, times = bound.terms[0]
        known = scalars.get(name[1:], (None, None))[side]
        if known is not None:
            return Affine((), bound.const + times * known)
    return bound


def _whole_steps(distance: Affine, step: int) -> bool:
    """Whether a distance that holds scalar tiles is a multiple of a loop's step, whatever they are."""
    return all(
        (Fraction(c) / step).denominator == 1 for c in (distance.const, *(c for _, c in distance.terms))
    )


def size_of(s: Size, sizes: Mapping[str, int]) -> int:
    return sizes[s] if isinstance(s, str) else s
