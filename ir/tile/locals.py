"""Rule 20: every element of a local that a load may read has been stored before by the same instance.

In: a kernel whose structure is valid (see `tile.verify`: a local has one store, which precedes its loads)
and one binding of its sizes. Out: nothing, or a VerifyError that names the load and the store.

When a load runs, the loops around both it and the store are in the same iteration, and all other loops around
the store are complete. Each of the latter either *follows* a loop around the load, if it has reached that
loop's current value too, or is *swept*: over all its values, the store writes an interval. A loop without
iterations stores nothing. A size that is the step of a grid axis is any number from 1 to its bound, since the
last instance of an axis may be smaller.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from tilewright.ir.affine import Affine, Number
from tilewright.ir.errors import VerifyError
from tilewright.ir.text.tile_printer import print_statement
from tilewright.ir.tile.bounds import print_entry
from tilewright.ir.tile.core import At, For, Index, Kernel, Load, Pick, Stmt, Store
from tilewright.ir.tile.ranges import UNKNOWN, Bounds, scalar_ranges

#: most choices between following and sweeping that are tried for one load
MOST_WAYS = 64
#: separates a loop variable's name from the number that makes it unique; no name of Tile IR contains it
APART = "'"
HINT = (
    "load at the index of the store, in a loop with the same bounds and step, "
    "or let the store fill the whole local before"
)
Names = Mapping[str, "int | str | Affine"]


def check_locals(kernel: Kernel, sizes: Mapping[str, int]) -> None:
    """Checks rule 20 under one schedule's sizes."""
    if not kernel.locals:
        return
    stores: dict[str, _Access] = {}
    limits, names = _limits(kernel, sizes), _constant(kernel, sizes)
    for access in _accesses(kernel, names):
        buffer = kernel.buffer(access.stmt.buffer)
        if isinstance(access.stmt, Store):
            stores[buffer.name] = access
            continue
        dims = tuple(d.bind(names) for d in buffer.dims)
        pair = _Pair(stores[buffer.name], access, dims, buffer.record is not None, limits)
        if why := pair.missing():
            store = print_statement(pair.store.stmt)
            message = f"local %{buffer.name} may be read where `{store}` has not written: {why}"
            raise VerifyError(message, f"kernel @{kernel.name}", HINT, 20, print_statement(access.stmt))


# ------------------------------------------------------------------ accesses
@dataclass(frozen=True)
class _Axis:
    """A grid or loop variable, under a unique name: lo, lo + step, … below hi. `step`: None if it takes
    values in between too."""

    name: str
    lo: Affine
    hi: Affine
    step: Affine | None

    @property
    def trips(self) -> int | None:
        """How many values it takes; None if that is not a constant."""
        extent = self.hi - self.lo
        if self.step is None or not self.step.is_const or not extent.is_const or not extent.integral():
            return None
        return max(-(-extent.as_int() // self.step.as_int()), 0)

    @property
    def last(self) -> Affine:
        """An upper bound of its values."""
        if self.step is None or self.trips is None:
            return self.hi - 1
        return self.lo + self.step * (self.trips - 1)

    def bind(self, names: Names) -> _Axis:
        return replace(self, lo=self.lo.bind(names), hi=self.hi.bind(names))


@dataclass(frozen=True)
class _Run:
    """Coordinates start, start + 1, … along one dimension."""

    start: Affine
    size: Affine


@dataclass(frozen=True)
class _Access:
    """A load or a store of a local: its index (a tile's name where an index tile picks coordinates), and the
    variables around it, outer first."""

    stmt: Load | Store
    index: tuple[_Run | str, ...]
    axes: tuple[_Axis, ...]


def _constant(kernel: Kernel, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes that are the same in every instance."""
    varying = {a.step for a in kernel.grid}
    return {n: v for n, v in sizes.items() if n not in varying}


def _accesses(kernel: Kernel, names: Names) -> Iterator[_Access]:
    """Loads and stores of locals, in order."""
    axes = tuple(
        _Axis(
            a.var,
            Affine(),
            a.extent.bind(names),
            None if a.rows or isinstance(a.step, str) else Affine.of(a.step),
        )
        for a in kernel.grid
    )
    locals_ = {b.name for b in kernel.locals}
    for access in _walk(kernel.body, axes, names, itertools.count(1)):
        if access.stmt.buffer.partition(".")[0] in locals_:
            yield access


def _walk(
    body: tuple[Stmt, ...], axes: tuple[_Axis, ...], names: Names, fresh: Iterator[int]
) -> Iterator[_Access]:
    """`names`: sizes, and the unique names of loop variables, since two loops in sequence may share a
    name."""
    for s in body:
        if isinstance(s, Load | Store):
            yield _Access(s, tuple(_run(i, names) for i in s.index), axes)
        elif isinstance(s, For):
            step = Affine.of(s.step).bind(names)
            axis = _Axis(f"{s.var}{APART}{next(fresh)}", s.lo.bind(names), s.hi.bind(names), step)
            yield from _walk(s.body, (*axes, axis), {**names, s.var: axis.name}, fresh)


def _run(i: Index, names: Names) -> _Run | str:
    if isinstance(i, Pick):
        return i.tile
    size = Affine.of(1) if isinstance(i, At) else Affine.of(i.size).bind(names)
    return _Run(i.start.bind(names), size)


def _limits(kernel: Kernel, sizes: Mapping[str, int]) -> dict[str, Bounds]:
    """Bounds of names that are not variables: symbols, scalar tiles, and sizes that grid axes step by."""
    out: dict[str, Bounds] = dict.fromkeys(kernel.symbols, (0, None))
    out |= {f"%{n}": ends for n, ends in scalar_ranges(kernel).items()}
    return out | {a.step: (1, sizes[a.step]) for a in kernel.grid if isinstance(a.step, str)}


# ------------------------------------------------------------------ what is known where a load runs
@dataclass(frozen=True)
class _Assumptions:
    """The variables around a load, each of which has a value there, and bounds of other names."""

    axes: tuple[_Axis, ...]
    limits: Mapping[str, Bounds]

    def holds(self, a: Affine) -> bool:
        """Whether a >= 0 is proved: from the bounds alone, or because the loops around the load have an
        iteration."""
        return self.least(a) or any(self.least(a - (x.hi - x.lo - 1)) for x in self.axes)

    def least(self, a: Affine) -> bool:
        for x in reversed(self.axes):
            c = a.coefficient(x.name)
            if c:
                a = a.bind({x.name: x.lo if c > 0 else x.last})
        total = Fraction(a.const)
        for name, c in a.terms:
            end = self.limits.get(name, UNKNOWN)[0 if c > 0 else 1]
            if end is None:
                return False
            total += Fraction(c) * end
        return total >= 0


# ------------------------------------------------------------------ one load, and the store before it
@dataclass(frozen=True)
class _Way:
    """One choice for each loop that is only around the store: `names` gives the values of loops that follow a
    loop around the load, `swept` are the others.
    """

    given: _Assumptions
    names: Names
    swept: tuple[_Axis, ...]


@dataclass(frozen=True)
class _Pair:
    """A load and the store before it. `padded`: the local is packed, so that no mask keeps a load inside its
    dimensions."""

    store: _Access
    load: _Access
    dims: tuple[Affine, ...]
    padded: bool
    limits: Mapping[str, Bounds]

    def missing(self) -> str:
        """Why something may not have been stored; empty if all that the load reads is."""
        if self.load.stmt.buffer != self.store.stmt.buffer:
            return f"%{self.load.stmt.buffer} is another stream"
        found: list[str] = []
        for way in self.ways():
            found.append(self.left_out(way))
            if not found[-1]:
                return ""
        return found[0] if found else "one loop moves it along several dimensions"

    def ways(self) -> Iterator[_Way]:
        own = [x for x in self.store.axes if x not in self.load.axes]
        choices = itertools.product(*(self.leaders(x) for x in own))
        for choice in itertools.islice(choices, MOST_WAYS):
            way: _Way | None = _Way(_Assumptions(self.load.axes, self.limits), {}, ())
            for x, leader in zip(own, choice, strict=True):
                way = way and _with(way, x, leader)
            if way:
                yield way

    def leaders(self, x: _Axis) -> list[_Axis | None]:
        """Variables around the load that x may follow, because they move the load as x moves the store. None
        among them: x may be swept."""
        moved = [n for n, s in enumerate(self.store.index) if _coefficient(s, x)]
        swept: list[_Axis | None] = [None] if len(moved) < 2 else []
        pairs = [(self.store.index[n], self.load.index[n]) for n in moved]
        beside = [
            y for y in self.load.axes if all(_coefficient(s, x) == _coefficient(t, y) for s, t in pairs)
        ]
        return swept + (beside if moved else [])

    def left_out(self, way: _Way) -> str:
        """The first condition that cannot be proved with this choice; empty if all are."""
        for x in way.swept:
            still = not any(_coefficient(s, x) for s in self.store.index)
            if still and not way.given.holds(x.hi - x.lo - 1):
                return f"loop {x.name.partition(APART)[0]} around it may have no iteration"
        for dim, (s, t) in enumerate(zip(self.store.index, self.load.index, strict=True)):
            if not self.covered(dim, s, t, way):
                i = self.load.stmt.index[dim]
                return f"index {'%' + i.tile if isinstance(i, Pick) else print_entry(i)} of dimension {dim}"
        return ""

    def covered(self, dim: int, s: _Run | str, t: _Run | str, way: _Way) -> bool:
        """Whether the store writes all that the load reads along one dimension of the local."""
        if isinstance(s, str):
            return s == t
        extent, holds = self.dims[dim], way.given.holds
        lo, hi = (Affine(), extent) if isinstance(t, str) else (t.start, t.start + t.size)
        if self.padded and not (holds(lo) and holds(extent - hi)):
            return False
        filled = _filled(_Run(s.start.bind(way.names), s.size), way)
        if filled is None:
            return False
        end = filled.start + filled.size
        below = holds(lo - filled.start) or holds(-filled.start)
        return below and (holds(end - hi) or holds(end - extent))


def _coefficient(i: _Run | str, x: _Axis) -> Number:
    return i.start.coefficient(x.name) if isinstance(i, _Run) else 0


def _with(way: _Way, x: _Axis, leader: _Axis | None) -> _Way | None:
    """The choice extended by one more loop of the store, swept or following a leader. None if its values do
    not cover those of the leader."""
    x = x.bind(way.names)
    if leader is None:
        return replace(way, swept=(*way.swept, x))
    late = _behind(x, leader)
    if late is None or not (way.given.holds(leader.lo - x.lo) and way.given.holds(x.hi - leader.hi)):
        return None
    if late.hi == Affine.of(1):
        return replace(way, names={**way.names, x.name: leader.name})
    given = replace(way.given, axes=(*way.given.axes, late))
    return _Way(given, {**way.names, x.name: Affine.of(leader.name) - late.name}, way.swept)


def _behind(x: _Axis, leader: _Axis) -> _Axis | None:
    """The leader's value less the largest value of x that does not exceed it, as another variable; None if
    unknown. With steps of 32 and 8 from the same start it is 0, 8, 16 or 24."""
    ahead = leader.lo - x.lo
    if x.step is None or leader.step is None:
        return None
    if x.step == leader.step and ahead == Affine():
        return _Axis(x.name + APART, Affine(), Affine.of(1), leader.step)
    if not (x.step.is_const and leader.step.is_const):
        return None
    wide, narrow = x.step.as_int(), leader.step.as_int()
    parts = [c for _, c in ahead.terms] + [ahead.const]
    if wide % narrow or any(Fraction(c) % narrow for c in parts):
        return None
    return _Axis(x.name + APART, Affine(), Affine.of(wide - narrow + 1), leader.step)


def _filled(run: _Run, way: _Way) -> _Run | None:
    """The interval that a run covers over all swept loops, none of which may step further than the interval
    covered so far. None if there may be gaps.
    """
    left = {x.name: x for x in way.swept}
    while moving := [left[n] for n in run.start.names if n in left]:
        grown = ((x, _grown(run, x, way.given)) for x in moving)
        found = next(((x, r) for x, r in grown if r is not None), None)
        if found is None:
            return None
        del left[found[0].name]
        run = found[1]
    return run


def _grown(run: _Run, x: _Axis, given: _Assumptions) -> _Run | None:
    """A run extended over all values of x; where the number of iterations is unknown, up to the end of the
    loop."""
    c = Fraction(run.start.coefficient(x.name))
    assert x.step is not None
    if not given.holds(run.size - x.step * abs(c)):
        return None
    if x.trips is None:
        return _Run(run.start.bind({x.name: x.lo}), (x.hi - x.lo) * c) if c > 0 else None
    first = x.lo if c > 0 else x.last
    size = run.size + x.step * (abs(c) * (x.trips - 1))
    return _Run(run.start.bind({x.name: first}), size) if x.trips else None
