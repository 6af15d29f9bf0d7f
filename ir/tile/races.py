"""Rule 14: no instance of the grid accesses what another one writes, so the order of instances is free.

In: a kernel that satisfies the rules about structure (see `tile.verify`), and one binding of its sizes. Out:
nothing, or a VerifyError that names both statements. Two accesses to one buffer overlap only if their
coordinates overlap in every dimension. Each dimension bounds a linear combination of the distances between
two instances along the grid axes. These bounds are narrowed until only the distance zero is left; a kernel
for which this fails is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tilewright.ir.affine import Affine
from tilewright.ir.errors import VerifyError
from tilewright.ir.layout import record
from tilewright.ir.text.tile_printer import print_statement
from tilewright.ir.tile.bounds import record_of
from tilewright.ir.tile.core import At, Buffer, Kernel, Load, Pick, Span, Store
from tilewright.ir.tile.ranges import Range, RangedStmt, ranged_statements, size_of
from tilewright.ir.types import BITS

Ranges = Mapping[str, Range]
ZERO = Fraction(0)
#: the smallest and largest distance of two instances along each axis; None where nothing is known
Box = dict[str, tuple[Fraction | None, Fraction | None]]

ALONE = "index the store with the axis, with an extent of at most its step, or declare the store disjoint"
APART = (
    "separate them by the axis, write to a different buffer, "
    "or declare the store disjoint if no other instance accesses what it writes"
)


def check_races(kernel: Kernel, sizes: Mapping[str, int]) -> None:
    """Checks rule 14 under one schedule's sizes."""
    if not kernel.grid:
        return
    written = set(kernel.written())
    found = [
        p
        for p in ranged_statements(kernel, sizes)
        if isinstance(p.stmt, Load | Store) and _root(p) in written
    ]
    for n, ranged in enumerate(found):
        if isinstance(ranged.stmt, Store) and not ranged.stmt.disjoint:
            for other in _others(found, n):
                _check_pair(kernel, ranged, other, sizes)


def _others(found: Sequence[RangedStmt], n: int) -> Iterator[RangedStmt]:
    """The accesses that a store is compared with, itself first, so that every pair occurs once. Pairs with a
    disjoint store are left out, by its author's promise."""
    yield found[n]
    for k, p in enumerate(found):
        later = isinstance(p.stmt, Store) and not p.stmt.disjoint and k > n
        if _root(p) == _root(found[n]) and (later or isinstance(p.stmt, Load)):
            yield p


def _root(p: RangedStmt) -> str:
    assert isinstance(p.stmt, Load | Store)
    return p.stmt.buffer.partition(".")[0]


def _check_pair(kernel: Kernel, ranged: RangedStmt, other: RangedStmt, sizes: Mapping[str, int]) -> None:
    clash = _Pair(kernel, ranged, other, sizes).clash()
    if not clash:
        return
    s, t = ranged.stmt, other.stmt
    assert isinstance(s, Store) and isinstance(t, Load | Store)
    who = f"instances along grid axis {', '.join(clash)} may write"
    if ranged is other:
        message, hint = f"{who} the same elements of %{s.buffer}", ALONE
    else:
        verb = "write" if isinstance(t, Store) else "read"
        message, hint = (
            f"{who} elements of %{s.buffer} that other instances {verb} in `{print_statement(t)}`",
            APART,
        )
    raise VerifyError(message, f"kernel @{kernel.name}", hint, 14, print_statement(s))


# ------------------------------------------------------------------ two accesses
@dataclass(frozen=True)
class _Gap:
    """One dimension: two accesses overlap only if the sum of `terms` (by axis, the coefficient of its
    distance) lies in lo..hi."""

    terms: Mapping[str, Fraction]
    lo: Affine | None
    hi: Affine | None


@dataclass(frozen=True)
class _Reach:
    """Where one access starts in a dimension: an affine of axes and symbols plus a number from `low` to
    `high`; and its length."""

    start: Affine
    low: Affine | None
    high: Affine | None
    size: int


@dataclass(frozen=True)
class _Pair:
    """A store by one instance, and an access by another."""

    kernel: Kernel
    store: RangedStmt
    other: RangedStmt
    sizes: Mapping[str, int]

    def clash(self) -> list[str]:
        """Axes along which two instances may differ and still overlap; empty if no two different instances
        overlap."""
        s, t = self.store.stmt, self.other.stmt
        assert isinstance(s, Store) and isinstance(t, Load | Store)
        buffer = self.kernel.buffer(s.buffer)
        if not _share_memory(buffer, s.buffer, t.buffer):
            return []
        axes = {a.var: self.store.ranges[a.var] for a in self.kernel.grid}
        box: Box = {v: _distance(r) for v, r in axes.items()}
        gaps: list[_Gap] = []
        for i, j, grain in zip(s.index, t.index, _grains(buffer, s.buffer), strict=True):
            if isinstance(i, Pick) or isinstance(j, Pick) or grain is None:
                continue
            gap = self.gap(i, j, grain, axes)
            if gap is None:
                continue
            if _never(gap, axes):
                return []
            gaps.append(gap)
            box.update(_same_block(i, j, gap, axes))
        return _narrowed(box, gaps, {v: 1 if r.rows else r.step for v, r in axes.items()})

    def gap(self, i: At | Span, j: At | Span, grain: int, axes: Ranges) -> _Gap | None:
        """The condition under which accesses overlap in one dimension; None if it depends on a loaded
        number."""
        a, b = _reach(i, self.store.ranges, axes, self.sizes), _reach(j, self.other.ranges, axes, self.sizes)
        if a is None or b is None:
            return None
        rest = b.start - a.start
        low, high = _extreme(rest, axes, 0), _extreme(rest, axes, 1)
        low = None if low is None or b.low is None or a.high is None else low + b.low - a.high
        high = None if high is None or b.high is None or a.low is None else high + b.high - a.low
        near = Affine.of(grain - 1)
        return _Gap(
            {v: Fraction(a.start.coefficient(v)) for v in axes if a.start.coefficient(v)},
            None if high is None else -near - (b.size - 1) - high,
            None if low is None else near + (a.size - 1) - low,
        )


def _share_memory(buffer: Buffer, name: str, other: str) -> bool:
    """Whether two names of one buffer share memory: different streams do not, but a decoding load of an
    encoded buffer reads all streams."""
    return _stream(buffer, name) == _stream(buffer, other) or buffer.encoding is not None and "." not in other


def _stream(buffer: Buffer, name: str) -> str:
    return name.partition(".")[2] or ("values" if record_of(buffer) else "")


def _grains(buffer: Buffer, name: str) -> list[int | None]:
    """By dimension, how many neighbouring coordinates share an entry in memory; None: distant ones may share
    one too."""
    spec, rank = record_of(buffer), len(buffer.dims)
    if spec is None:
        return [1] * rank
    layouts = record([64] * rank, spec.prefix, {s.name: (BITS[s.dtype], s.digits) for s in spec.streams})
    return [
        _grain([(d.step, d.size) for d in layouts[_stream(buffer, name)].digits if d.dim == k])
        for k in range(rank)
    ]


def _grain(digits: Sequence[tuple[int, int | None]]) -> int | None:
    """Digits of one dimension as (step, size): how many coordinates share an entry if the digits form a chain
    without gaps, whose last digit is unbounded; else None."""
    chain = sorted(digits, key=lambda d: d[0])
    whole = all(
        size is not None and step * size == above
        for (step, size), (above, _) in zip(chain, chain[1:], strict=False)
    )
    return chain[0][0] if chain and whole and chain[-1][1] is None else None


# ------------------------------------------------------------------ ranges
def _distance(r: Range) -> tuple[Fraction | None, Fraction | None]:
    return (None, None) if r.last is None else (Fraction(-r.last), Fraction(r.last))


def _reach(i: At | Span, ranges: Ranges, axes: Ranges, sizes: Mapping[str, int]) -> _Reach | None:
    """The start without loop variables, and how far these move it; None if it depends on a loaded number."""
    start, low, high = i.start.bind(sizes), Affine(), Affine()
    for name in reversed([n for n in ranges if n not in axes]):
        c, r = start.coefficient(name), ranges[name]
        start = start.bind({name: r.lo})
        low, high = (low, high + r.longest * c) if c > 0 else (low + r.longest * c, high)
    if any(n.startswith("%") for n in start.names):
        return None
    size = size_of(i.size, sizes) if isinstance(i, Span) else 1
    return _Reach(start, _extreme(low, ranges, 0), _extreme(high, ranges, 1), size)


def _extreme(a: Affine, ranges: Ranges, side: int) -> Affine | None:
    """The smallest (side 0) or largest value over all variables, in symbols; None if it depends on a loaded
    number."""
    for name in reversed(list(ranges)):
        c, r = a.coefficient(name), ranges[name]
        a = a.bind({name: r.lo + r.longest if (c > 0) == (side == 1) else r.lo})
    return None if any(n.startswith("%") for n in a.names) else a


def _never(gap: _Gap, axes: Ranges) -> bool:
    """Whether the gap is out of reach of every distance, for all values of the symbols, which are 0 or
    more."""
    far = Affine()
    for v, c in gap.terms.items():
        far = far + axes[v].longest * abs(c)
    above = None if gap.hi is None else -far - gap.hi
    below = None if gap.lo is None else gap.lo - far
    return any(a is not None and a.const > 0 and all(c > 0 for _, c in a.terms) for a in (above, below))


def _same_block(i: At | Span, j: At | Span, gap: _Gap, axes: Ranges) -> Box:
    """Blocks of a `rows` axis do not overlap, whatever their heights: accesses to the same block are by the
    same instance."""
    if not isinstance(i, Span) or i != j or list(gap.terms.values()) != [1]:
        return {}
    (v,) = gap.terms
    return {v: (ZERO, ZERO)} if axes[v].rows and i.size == axes[v].size and i.start == Affine.of(v) else {}


# ------------------------------------------------------------------ narrowing
def _narrowed(box: Box, gaps: Sequence[_Gap], steps: Mapping[str, int]) -> list[str]:
    """Axes whose distance may differ from zero once every dimension has bounded it; empty if some distance
    has no possible value."""
    for _ in range(2 * len(box) + 1):
        before = dict(box)
        for gap in gaps:
            for v, c in gap.terms.items():
                lo, hi = _solved(gap, v, c, box)
                box[v] = _join(box[v], lo, hi, steps[v])
                if _empty(box[v]):
                    return []
        if box == before:
            break
    return [v for v, ends in box.items() if ends != (ZERO, ZERO)]


def _solved(gap: _Gap, v: str, c: Fraction, box: Box) -> tuple[Fraction | None, Fraction | None]:
    """Bounds on the distance along v from one dimension and the other distances."""
    rest = [(k, box[n]) for n, k in gap.terms.items() if n != v]
    least = _sum([_scaled(k, ends[0] if k > 0 else ends[1]) for k, ends in rest])
    most = _sum([_scaled(k, ends[1] if k > 0 else ends[0]) for k, ends in rest])
    lo = (
        None if gap.lo is None or not gap.lo.is_const or most is None else (Fraction(gap.lo.const) - most) / c
    )
    hi = (
        None
        if gap.hi is None or not gap.hi.is_const or least is None
        else (Fraction(gap.hi.const) - least) / c
    )
    return (lo, hi) if c > 0 else (hi, lo)


def _scaled(k: Fraction, end: Fraction | None) -> Fraction | None:
    return None if end is None else k * end


def _sum(parts: Sequence[Fraction | None]) -> Fraction | None:
    known = [p for p in parts if p is not None]
    return sum(known, ZERO) if len(known) == len(parts) else None


def _join(
    old: tuple[Fraction | None, Fraction | None], lo: Fraction | None, hi: Fraction | None, step: int
) -> tuple[Fraction | None, Fraction | None]:
    """Both bounds at once, drawn in to multiples of the step."""
    los = [
        x for x in (old[0], None if lo is None else Fraction(math.ceil(lo / step) * step)) if x is not None
    ]
    his = [
        x for x in (old[1], None if hi is None else Fraction(math.floor(hi / step) * step)) if x is not None
    ]
    return max(los, default=None), min(his, default=None)


def _empty(ends: tuple[Fraction | None, Fraction | None]) -> bool:
    return ends[0] is not None and ends[1] is not None and ends[0] > ends[1]
