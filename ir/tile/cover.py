"""Which elements of its parameters a kernel certainly writes: boxes of coordinates, one per store.

In: a kernel that satisfies the rules of `tile.verify`. Out: per parameter and stream, the boxes that every
schedule fills. A store that cannot be analysed gives no box. Independent of plans: the ends of boxes are
affine in the kernel's symbols.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from tilewright.ir.affine import Affine
from tilewright.ir.layout import Layout
from tilewright.ir.tile.core import At, Buffer, For, Index, Kernel, Let, Load, Pick, Size, Stmt, Store, walk
from tilewright.ir.tile.memory import spec_and_layouts

Interval = tuple[Affine, Affine]


@dataclass(frozen=True)
class Table:
    """The rows that a query-block table lists: entry n of `param` has the first row and the number of rows
    (`single`: only the first row of each is filled)."""

    param: str
    single: bool


@dataclass(frozen=True)
class Box:
    """For each dimension an interval of coordinates, from its start to below its end, or a `Table`: the rows
    that it lists. The box is filled if each of `once` is at least 1."""

    stream: str
    ends: tuple[Interval | Table, ...]
    once: tuple[Affine, ...] = ()


@lru_cache(maxsize=4096)
def filled(kernel: Kernel) -> Mapping[str, tuple[Box, ...]]:
    """The boxes of every parameter that the kernel stores to, as far as all schedules fill them."""
    every = [dict(s.sizes) for s in kernel.schedules] or [{}]
    found = [_boxes(kernel, sizes) for sizes in every]
    return {
        name: tuple(b for b in found[0][name] if all(b in f[name] for f in found))
        for name in kernel.written()
    }


def loaded(kernel: Kernel) -> frozenset[str]:
    """Parameters that the kernel reads."""
    names = {s.buffer.split(".")[0] for s in walk(kernel.body) if isinstance(s, Load)}
    return frozenset(b.name for b in kernel.params if b.name in names)


def _boxes(kernel: Kernel, sizes: Mapping[str, int]) -> dict[str, list[Box]]:
    out: dict[str, list[Box]] = {name: [] for name in kernel.written()}
    values = {s.name: s for s in walk(kernel.body) if isinstance(s, Let | Load)}
    for group in _beside(kernel, sizes):
        stores = [_Store(kernel, sizes, values, ranges, s) for s, ranges in group]
        for store, runs in _joined([(s, s.runs()) for s in stores]):
            name, box = store.buffer.name, store.box(runs)
            if name in out and box is not None and box not in out[name]:
                out[name].append(box)
    return out


def _beside(kernel: Kernel, sizes: Mapping[str, int]) -> list[list[tuple[Store, Ranges]]]:
    """Stores to one stream inside the same loops, grouped."""
    groups: dict[tuple[str, int], list[tuple[Store, Ranges]]] = {}
    for s, ranges in _stores(kernel.body, _axes(kernel, sizes), sizes):
        groups.setdefault((s.buffer, id(ranges)), []).append((s, ranges))
    return list(groups.values())


def _joined(stores: list[tuple[_Store, Runs]]) -> list[tuple[_Store, Runs]]:
    """Adjacent runs, filled by several stores, joined into one."""
    out: list[tuple[_Store, Runs]] = []
    for store, runs in stores:
        for n, (_, before) in enumerate(out):
            if runs is not None and before is not None and (both := _join(before, runs)):
                out[n] = store, both
                break
        else:
            out.append((store, runs))
    return out


def _join(a: tuple[_Run, ...], b: tuple[_Run, ...]) -> tuple[_Run, ...] | None:
    """Both as one, if b continues a along one axis; else None."""
    axes = [n for n, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    if len(axes) != 1 or a[axes[0]].end is not None or b[axes[0]].end is not None:
        return None
    x, y = a[axes[0]], b[axes[0]]
    ahead = y.start - x.start
    if not ahead.is_const or not 0 <= ahead.const <= x.reach:
        return None
    run = _Run(x.start, max(x.reach, int(ahead.const) + y.reach))
    return tuple(run if n == axes[0] else r for n, r in enumerate(a))


@dataclass(frozen=True)
class _Range:
    """A grid or loop variable: lo, lo + step, … below hi. `rows`: the size that a `rows` axis re-binds to its
    height."""

    lo: Affine
    hi: Affine
    step: int
    rows: str = ""


Ranges = Mapping[str, _Range]


def _axes(kernel: Kernel, sizes: Mapping[str, int]) -> dict[str, _Range]:
    return {
        a.var: _Range(Affine(), a.extent.bind(sizes), _int(a.step, sizes), str(a.step) if a.rows else "")
        for a in kernel.grid
    }


def _int(s: Size, sizes: Mapping[str, int]) -> int:
    return sizes[s] if isinstance(s, str) else s


def _stores(
    body: tuple[Stmt, ...], ranges: Ranges, sizes: Mapping[str, int]
) -> Iterator[tuple[Store, Ranges]]:
    for s in body:
        if isinstance(s, Store):
            yield s, ranges
        elif isinstance(s, For):
            inner = _Range(s.lo.bind(sizes), s.hi.bind(sizes), _int(s.step, sizes))
            yield from _stores(s.body, {**ranges, s.var: inner}, sizes)


class _Unknown(Exception):
    """The region that a store fills cannot be determined."""


@dataclass(frozen=True)
class _Run:
    """An index along one axis: `reach` consecutive coordinates from `start`, but none at or beyond `end`."""

    start: Affine
    reach: int
    end: Affine | None = None
    #: the name of `reach`, if it has one
    size: Size = 0


Runs = tuple[_Run, ...] | None


class _Store:
    """One store under one schedule."""

    def __init__(
        self,
        kernel: Kernel,
        sizes: Mapping[str, int],
        values: Mapping[str, Let | Load],
        ranges: Ranges,
        s: Store,
    ) -> None:
        self.kernel, self.sizes, self.values, self.ranges, self.store = kernel, sizes, values, ranges, s
        self.buffer = kernel.buffer(s.buffer)
        self.stream, self.grains = _grains(self.buffer, s.buffer)
        self.used: set[str] = set()
        self.once: list[Affine] = []

    def runs(self) -> Runs:
        """What one execution of the store fills along each axis; None if it cannot be determined."""
        try:
            return tuple(
                self.grown(self.run(i), self.grains.get(n, 1)) for n, i in enumerate(self.store.index)
            )
        except _Unknown:
            return None

    def box(self, runs: Runs) -> Box | None:
        if runs is None:
            return None
        try:
            ends = tuple(self.ends(n, run) for n, run in enumerate(runs))
            self.once += [r.hi - r.lo for name, r in self.ranges.items() if name not in self.used]
        except _Unknown:
            return None
        once = tuple(e for e in self.once if not (e.is_const and e.const >= 1))
        return None if any(self.varies(e) for e in once) else Box(self.stream, ends, once)

    def varies(self, a: Affine) -> bool:
        return any(n.startswith("%") or n in self.ranges for n in a.names)

    def ends(self, dim: int, run: _Run) -> Interval | Table:
        if dim not in self.grains:  # all coordinates along it are the same element in memory
            lo, hi = self.reach(run)
            if lo != Affine():
                raise _Unknown
            self.once.append(hi)
            return Affine(), self.buffer.dims[dim].bind(self.sizes)
        if table := self.table(run):
            return table
        lo, hi = self.reach(run)
        if self.varies(lo) or self.varies(hi):
            raise _Unknown
        return lo, hi

    # -------------------------------------------------------- one axis
    def reach(self, run: _Run) -> Interval:
        """The interval that an index covers over all values of its variables: each must step no further than
        the interval that faster variables fill."""
        start, span = run.start, Affine.of(run.reach)
        while names := [n for n in start.names if n in self.ranges]:
            name = min(names, key=lambda n: (abs(Fraction(start.coefficient(n))) * self.ranges[n].step, n))
            c, r = start.coefficient(name), self.ranges[name]
            tall = bool(r.rows) and run.size == r.rows and c == 1
            if name in self.used or not isinstance(c, int) or c < 1 or (r.rows and not tall):
                raise _Unknown
            if not tall and not (span.is_const and c * r.step <= span.const):
                raise _Unknown
            self.used.add(name)
            start = start.bind({name: r.lo})
            span = (r.hi - r.lo) * c
        if run.end is None:
            return start, start + span
        rest = start + span - run.end
        if not (rest.is_const and rest.const >= 0):
            raise _Unknown
        return start, run.end

    def grown(self, run: _Run, grain: int) -> _Run:
        """The run extended to whole entries of a stream, since the elements of an entry are filled
        together."""
        steps: list[object] = [run.start.const]
        for n, c in run.start.terms:
            r = self.ranges.get(n)
            steps += (
                [c] if r is None else [c * r.step, c * r.lo.const if r.lo.is_const and not r.rows else None]
            )
        aligned = all(isinstance(c, int) and c % grain == 0 for c in steps)
        return (
            replace(run, reach=-(-run.reach // grain) * grain)
            if grain > 1 and aligned and run.end is None
            else run
        )

    def run(self, i: Index) -> _Run:
        if isinstance(i, Pick):
            return self.picked(i.tile)
        start = self.affine(i.start)
        if isinstance(i, At):
            return _Run(start, 1)
        return _Run(start, _int(i.size, self.sizes), None, i.size)

    def affine(self, a: Affine) -> Affine:
        """An affine with its sizes bound, and scalars that are sums of names replaced by these sums."""
        a = a.bind(self.sizes)
        for name in [n for n in a.names if n.startswith("%")]:
            made = self.values.get(name[1:])
            value = made.attr("value") if isinstance(made, Let) and made.op == "index" else None
            if isinstance(value, Affine):
                a = a.bind({name: self.affine(value)})
        return a

    # -------------------------------------------------------- indices that are computed
    def picked(self, tile: str) -> _Run:
        """`select(lane + a < n, lane + b, -1)`: a run from b that ends at n - a + b; or `lane + b` alone."""
        made = self.let(tile)
        if made.op != "select":
            return self.lanes(tile)
        test, where, other = made.args
        below, nowhere = self.let(test), self.let(other)
        if below.op != "lt" or nowhere.op != "const" or nowhere.attr("value") != -1:
            raise _Unknown
        run, tested = self.lanes(where), self.lanes(below.args[0])
        return _Run(run.start, run.reach, self.scalar(below.args[1]) - tested.start + run.start)

    def lanes(self, tile: str) -> _Run:
        """The run of a tile that counts up by one from a scalar."""
        made = self.let(tile)
        if made.op == "iota":
            size = made.attr("size")
            return _Run(Affine(), self.sizes[size] if isinstance(size, str) else int(str(size)))
        if made.op != "add":
            raise _Unknown
        for lane, by in (made.args, made.args[::-1]):
            if self.values[lane].type.shape:
                run = self.lanes(lane)
                return _Run(run.start + self.scalar(by), run.reach)
        raise _Unknown

    def scalar(self, name: str) -> Affine:
        made = self.values.get(name)
        if made is None or made.type.shape:
            raise _Unknown
        if isinstance(made, Let) and made.op == "const" and isinstance(value := made.attr("value"), int):
            return Affine.of(value)
        return self.affine(Affine.of("%" + name))

    def let(self, name: str) -> Let:
        made = self.values.get(name)
        if not isinstance(made, Let):
            raise _Unknown
        return made

    def table(self, run: _Run) -> Table | None:
        """The table, if the run covers the rows first .. first + count of every entry of a query-block
        table."""
        if not any(n.startswith("%") for n in run.start.names):
            return None
        before = set(self.used)
        lo, hi = self.reach(run)
        first, count = self.entry(lo), self.entry(hi - lo)
        single = hi - lo == Affine.of(1)
        if first and first[2] == 0 and (single or (count and count[:2] == first[:2] and count[2] == 1)):
            self.used.add(first[1])
            return Table(first[0], single)
        self.used = before
        return None

    def entry(self, a: Affine) -> tuple[str, str, int] | None:
        """(parameter, grid axis, column) of a scalar that is an entry of a table with one row an instance
        along the axis."""
        load = (
            self.values.get(a.names[0][1:])
            if len(a.terms) == 1 and not a.const and a.terms[0][1] == 1
            else None
        )
        if (
            not isinstance(load, Load)
            or len(load.index) != 2
            or not all(isinstance(i, At) for i in load.index)
        ):
            return None
        row, column = (i.start for i in load.index if isinstance(i, At))
        table = next((b for b in self.kernel.params if b.name == load.buffer), None)
        axis = (
            self.ranges.get(row.names[0]) if len(row.names) == 1 and row == Affine.of(row.names[0]) else None
        )
        if (
            table is None
            or axis is None
            or row.names[0] not in {a.var for a in self.kernel.grid}
            or not column.is_const
        ):
            return None
        plain = table.encoding is None and table.record is None and table.dtype == "i32"
        whole = (
            axis.step == 1 and not axis.rows and axis.hi == table.dims[0] and table.dims[1] == Affine.of(4)
        )
        return (table.name, row.names[0], int(column.const)) if plain and whole else None


def _grains(b: Buffer, name: str) -> tuple[str, dict[int, int]]:
    """The stream that a name refers to, and for each dimension that its layout depends on, how many
    coordinates share an entry."""
    stream = name.partition(".")[2]
    if b.encoding is None and b.record is None:
        return stream, dict.fromkeys(range(len(b.dims)), 1)
    _, layouts = spec_and_layouts(b, [int(d.const) if d.is_const else 1 for d in b.dims])
    stream = stream or "values"
    return stream, _steps(layouts[stream])


def _steps(layout: Layout) -> dict[int, int]:
    out: dict[int, int] = {}
    for d in layout.digits:
        out[d.dim] = min(out.get(d.dim, d.step), d.step)
    return out
