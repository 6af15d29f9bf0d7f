"""Rules 15 to 17 of `tile.verify`: those that need the ranges of variables and the sizes of a schedule.

In: a kernel that satisfies the rules about structure (see `tile.verify`), and one binding of its sizes. Out:
nothing, or a VerifyError. Ranges are exact where extents are numbers, and proved by divisibility where they
are symbols.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction

from tilewright.ir.affine import Affine
from tilewright.ir.errors import VerifyError
from tilewright.ir.layout import RecordSpec
from tilewright.ir.text.tile_printer import print_statement
from tilewright.ir.tile.builder import static_shape
from tilewright.ir.tile.core import (
    At,
    Buffer,
    For,
    Index,
    Kernel,
    Let,
    Load,
    Pick,
    Span,
    Stmt,
    Store,
    TileType,
    walk,
)
from tilewright.ir.tile.ranges import Range, RangedStmt, ranged_statements, size_of
from tilewright.ir.types import BITS

MAX_TILE = 1 << 20
MAX_BYTES = 1 << 48
LARGEST = 1 << 62


def check_bounds(kernel: Kernel, sizes: Mapping[str, int]) -> None:
    """Checks rules 15 to 17 under one schedule's sizes."""
    check_sizes(kernel, sizes)
    _whole_sizes(kernel, sizes)
    scalars = {"%" + n: 1 << BITS[t.dtype] for n, t in _scalars(kernel.body)}
    for ranged in ranged_statements(kernel, sizes):
        s = ranged.stmt
        _finite(kernel, ranged, scalars, sizes)
        if isinstance(s, Load | Store):
            _whole(kernel, ranged, s.index)
            _padded(kernel, ranged, s, sizes)


def _fail(number: int, kernel: Kernel, s: Stmt, message: str, hint: str) -> VerifyError:
    return VerifyError(message, f"kernel @{kernel.name}", hint, number, print_statement(s))


# ------------------------------------------------------------------ 17: sizes
def check_sizes(kernel: Kernel, sizes: Mapping[str, int]) -> None:
    """Rule 17: no tile of more than 2^20 elements, no buffer beyond 2^48 bytes."""
    for s in walk(kernel.body):
        if isinstance(s, Let | Load):
            shape = [size_of(n, sizes) for n in s.type.shape]
            if min(shape, default=1) < 1 or math.prod(shape) > MAX_TILE:
                raise _fail(
                    17,
                    kernel,
                    s,
                    f"tile {s.type.dtype}{shape}: expected 1 to 2^20 elements",
                    "bind smaller sizes",
                )
    for b in (*kernel.params, *kernel.locals):
        dims = [d.bind(sizes) for d in b.dims]
        known = math.prod(d.as_int() for d in dims if d.is_const and d.integral())
        if known * BITS[b.dtype] > 8 * MAX_BYTES or any(d.is_const and d.const < 0 for d in dims):
            raise VerifyError(
                f"buffer %{b.name}: dims {', '.join(map(str, dims))} are negative or beyond 2^48 bytes",
                f"kernel @{kernel.name}",
                invariant=17,
            )


# ------------------------------------------------------------------ 17: numbers of 64 bits
def _scalars(body: tuple[Stmt, ...]) -> Iterator[tuple[str, TileType]]:
    for s in walk(body):
        if isinstance(s, Let | Load):
            yield s.name, s.type
        elif isinstance(s, For):
            yield from ((n, c.type) for c in s.carries for n in (c.name, c.result))


def _finite(kernel: Kernel, ranged: RangedStmt, scalars: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    """Indices and bounds are computed in 64-bit integers, which proofs treat as unbounded: none may come near
    the limits."""
    tops: dict[str, int] = dict(scalars)
    s = ranged.stmt
    affines = [i.start for i in s.index if not isinstance(i, Pick)] if isinstance(s, Load | Store) else []
    affines += [s.lo, s.hi] if isinstance(s, For) else []
    for name, r in ranged.ranges.items():
        tops[name] = max(_top(r.lo, tops), _top(r.hi, tops)) + r.step
        affines.append(r.hi)
    for a in affines:
        if _top(a.bind(sizes), tops) >= LARGEST:
            raise _fail(
                17,
                kernel,
                s,
                f"{a} may be 2^62 or more, or -2^62 or less",
                "use smaller numbers, and scalars of i32",
            )


def _top(a: Affine, tops: Mapping[str, int]) -> int:
    """An upper bound of the absolute value; symbols are below 2^31."""
    parts = (abs(Fraction(c)) * tops.get(n, 1 << 31) for n, c in a.terms)
    return math.ceil(sum(parts, abs(Fraction(a.const))))


# ------------------------------------------------------------------ 16: integers
def _whole_sizes(kernel: Kernel, sizes: Mapping[str, int]) -> None:
    """Checks that dimensions, extents and loop bounds are integers for all values of the symbols."""
    found = [(f"dimension {d} of %{b.name}", d) for b in (*kernel.params, *kernel.locals) for d in b.dims]
    found += [(f"extent {a.extent} of grid axis {a.var}", a.extent) for a in kernel.grid]
    for s in walk(kernel.body):
        if isinstance(s, For):
            found += [(f"bound {a} of loop {s.var}", a) for a in (s.lo, s.hi)]
    for what, a in found:
        if not a.bind(sizes).integral():
            raise VerifyError(
                f"{what} is not an integer for all values of its symbols",
                f"kernel @{kernel.name}",
                "give it a symbol of its own",
                16,
            )


def _whole(kernel: Kernel, ranged: RangedStmt, index: tuple[Index, ...]) -> None:
    for i in index:
        if isinstance(i, Pick) or i.start.integral():
            continue
        steps = _in_steps(i.start, ranged.ranges)
        broken = [n for n, c in steps.terms if Fraction(c).denominator != 1]
        loose = [n.rstrip("'") for n in broken if n.endswith("'") or n.startswith("%")]
        if loose or not broken and not steps.integral():
            at = f" for all values of {', '.join(loose)}" if loose else ""
            raise _fail(
                16,
                kernel,
                ranged.stmt,
                f"index {i.start} is not an integer{at}",
                "divide only by a divisor of the step",
            )


def _in_steps(a: Affine, ranges: Mapping[str, Range]) -> Affine:
    """Variables as `lo + step * count`, the count spelled `v'`."""
    for name in reversed(list(ranges)):
        c = a.coefficient(name)
        if c:
            r = ranges[name]
            count = Affine(((f"{name}'", 1 if r.rows else r.step),))
            a = a.bind({name: count + (r.lo if r.exact else f"%start of {name}")})
    return a


# ------------------------------------------------------------------ 15: packed reads
def record_of(b: Buffer) -> RecordSpec | None:
    """The record of a packed buffer; None for dense buffers."""
    return b.encoding.record(static_shape(b)) if b.encoding is not None else b.record


def units(spec: RecordSpec) -> dict[int, int]:
    """How many elements of each split dimension one record covers: extents are padded to a multiple of it."""
    out: dict[int, int] = {}
    for token in spec.prefix.split():
        dim, _, step = token.partition("/")
        out[int(dim)] = max(out.get(int(dim), 1), int(step or 1))
    return out


def _padded(kernel: Kernel, ranged: RangedStmt, s: Load | Store, sizes: Mapping[str, int]) -> None:
    buffer = kernel.buffer(s.buffer)
    spec = record_of(buffer)
    inner = {int(t.partition(".")[0]) for x in spec.streams for t in x.digits.split()} if spec else set()
    for dim, unit in units(spec).items() if spec else ():
        i = s.index[dim]
        if (unit > 1 or dim in inner) and not isinstance(i, Pick):
            why = _outside(i, buffer.dims[dim].bind(sizes), unit, ranged.ranges, sizes)
            if why:
                hint = f"packed streams have no masks: let the step divide {unit}, or pad the dimension"
                raise _fail(
                    15,
                    kernel,
                    s,
                    f"index {print_entry(i)} of %{s.buffer} leaves the padding of dimension {dim}: {why}",
                    hint,
                )


def print_entry(i: At | Span) -> str:
    return f"{i.start}:{i.size}" if isinstance(i, Span) else str(i.start)


def _outside(
    i: At | Span, dim: Affine, unit: int, ranges: Mapping[str, Range], sizes: Mapping[str, int]
) -> str:
    """Why coordinates may leave the padded dimension; empty if they cannot. Coordinates that come from tiles
    are checked at run time."""
    span = Fraction(size_of(i.size, sizes) if isinstance(i, Span) else 1)
    start, reach = i.start.bind(sizes), span
    main: tuple[str, Range] | None = None
    for name in reversed(list(ranges)):
        c, r = start.coefficient(name), ranges[name]
        if not c:
            continue
        if (
            r.rows
            and isinstance(i, Span)
            and i.size == r.size
            and r.hi == dim
            and (start, reach) == (Affine.of(name), span)
        ):
            return ""  # exactly the axis's own tile, which never hangs over its end
        if r.last is None:
            if main or c != 1:
                return f"the extent of {name} is not a number"
            main = (name, r)
            start = start - name + r.lo
            continue
        reach += abs(Fraction(c)) * r.last
        start = start.bind({name: r.lo if c > 0 else r.lo + r.last})
    if isinstance(i, At) and any(n.startswith("%") for n in start.names):
        return ""  # a bare index is clamped at run time
    return _beyond(start, reach, dim, unit, main)


def _beyond(start: Affine, reach: Fraction, dim: Affine, unit: int, main: tuple[str, Range] | None) -> str:
    if not start.is_const:
        return f"{start} has no known bounds"
    end = Fraction(start.const) + reach
    if main is not None:
        name, r = main
        if (
            r.hi != dim
            or r.lo != Affine()
            or (r.rows and end > 1)
            or unit % r.step
            or end > r.step
            or start.const < 0
        ):
            return f"{name} steps by {r.step} to {r.hi}, records hold {unit}"
        return ""
    if not dim.is_const:
        return "" if end <= unit and start.const >= 0 else f"the dimension {dim} is not a number"
    padded = -(-dim.as_int() // unit) * unit
    return "" if start.const >= 0 and end <= padded else f"coordinates {start.const} to {end - 1} of {padded}"
