"""Addresses: from an index and a lane map to bit offsets, for layouts with run-time extents.

In: a buffer, an index, a position and lanes. Out: an affine bit offset of the first lane, the lanes'
distances from it, and the conditions under which they may be accessed. Independent of how loads are done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.backends.cpp.context import Context, Lanes, Pos, lane_count
from tilewright.backends.cpp.lanes import lane_steps
from tilewright.backends.cpp.nodes import Node
from tilewright.ir.affine import Affine
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import Digit, Layout, record, row_major
from tilewright.ir.tile.core import At, Buffer, Index, Pick
from tilewright.ir.types import BITS

Offsets = NDArray[np.int64]


class Carries(Exception):
    """The offset is not affine: an index carries across a digit."""


@dataclass(frozen=True)
class Place:
    """One stream of a buffer in memory. `factors[n]`: the C++ name by which digit n's stride is multiplied
    (empty: none). `padded`: dimensions of packed buffers, whose tails are covered by padding."""

    layout: Layout
    factors: tuple[str, ...]
    dtype: str
    dims: tuple[Affine, ...]
    padded: frozenset[int]
    pointer: str

    @property
    def bits(self) -> int:
        return BITS[self.dtype]


def place_of(ctx: Context, buffer: Buffer, stream: str) -> Place:
    """The place of a buffer's stream in memory."""
    key = (buffer, stream, ctx.pointers[buffer.name])
    if key not in ctx.places:
        ctx.places[key] = _place(ctx, buffer, stream)
    found = ctx.places[key]
    assert isinstance(found, Place)
    return found


def _place(ctx: Context, buffer: Buffer, stream: str) -> Place:
    dims = tuple(d.bind(ctx.vars) for d in buffer.dims)
    shape = [int(d.const) if d.is_const else None for d in dims]
    layout, dtype = layout_of(buffer, stream, shape)
    return Place(
        layout,
        _factors(ctx, layout, dims),
        dtype,
        dims,
        frozenset(d.dim for d in layout.digits if d.size is not None),
        ctx.pointers[buffer.name],
    )


def layout_of(buffer: Buffer, stream: str, shape: list[int | None]) -> tuple[Layout, str]:
    """Layout and storage dtype of a stream; unknown extents are taken as one (`factors` then multiplies the
    strides)."""
    known = [n if n is not None else 1 for n in shape]
    spec = buffer.record or (buffer.encoding.record(shape) if buffer.encoding else None)
    if spec is None:
        return row_major(known, BITS[buffer.dtype]), buffer.dtype
    name = stream or "values"
    layouts = record(known, spec.prefix, {s.name: (BITS[s.dtype], s.digits) for s in spec.streams})
    if name not in layouts:
        raise UnsupportedError(f"buffer %{buffer.name} has no stream {name!r}; it has {', '.join(layouts)}")
    return layouts[name], next(s.dtype for s in spec.streams if s.name == name)


def _factors(ctx: Context, layout: Layout, dims: tuple[Affine, ...]) -> tuple[str, ...]:
    """Products of the run-time extents that lie inside each outer digit."""
    out: list[str] = []
    inside = ""
    for d in reversed(layout.digits):
        out.insert(0, inside)
        if d.size is None and not dims[d.dim].is_const:
            count = (
                f"({ctx.text(dims[d.dim])} + {d.step - 1}) / {d.step}"
                if d.step > 1
                else ctx.text(dims[d.dim])
            )
            text = f"{inside} * ({count})" if inside else count
            inside = _named(ctx, text, 0, "int64_t")
    return tuple(out)


def _named(ctx: Context, text: str, depth: int, typ: str) -> str:
    table = ctx.scopes[depth].memo
    if ("text", text) not in table:
        name = ctx.let(depth, typ, text)
        ctx.names[name] = depth
        table["text", text] = name
    return table["text", text]


# ------------------------------------------------------------------ offsets
def coordinates(
    ctx: Context, place: Place, index: tuple[Index, ...], scalars: Mapping[str, Node], pos: Pos, lanes: Lanes
) -> list[tuple[Affine, Offsets]]:
    """Per buffer dimension, the coordinate without its constant part, which all lanes share, and the constant
    part for every lane."""
    coords = lane_steps(lanes, len(pos)) + np.array(pos, np.int64)
    picks, axis = {}, 0
    for i in index:
        if isinstance(i, Pick):
            if any(a == axis for a, _ in lanes):
                raise Carries(i.tile)
            picks[axis] = Affine.of(_picked(ctx, scalars[i.tile], pos[axis]))
        axis += not isinstance(i, At)
    return coordinates_at(ctx, place, index, scalars, coords, picks)


def coordinates_at(
    ctx: Context, place: Place, index: tuple[Index, ...], scalars: Mapping[str, Node], coords: Offsets,
    picks: Mapping[int, Affine],
) -> list[tuple[Affine, Offsets]]:  # fmt: skip
    """As `coordinates`, of the elements in `coords` [elements, axes]. `picks`: the value of a picked index,
    by axis."""
    out, axis = [], 0
    for dim, i in enumerate(index):
        if isinstance(i, Pick):
            a, delta = picks[axis], np.zeros(len(coords), np.int64)
        else:
            a = ctx.resolve(i.start, scalars)
            if place.padded and isinstance(i, At):
                a = _clamped(ctx, a, place.dims[dim])
            delta = np.full(len(coords), int(a.const), np.int64)
            if not isinstance(i, At):
                delta = delta + coords[:, axis]
        axis += not isinstance(i, At)
        out.append((Affine(a.terms), delta))
    return out


def _clamped(ctx: Context, a: Affine, extent: Affine) -> Affine:
    """A bare index into a packed buffer (a cache's slot), clamped to the extent, since packed reads have no
    conditions."""
    if ctx.never_negative(a) and ctx.never_negative(extent - a - 1):
        return a
    return Affine.of(
        _named(ctx, f"tw_clamp({ctx.text(a)}, {ctx.text(extent - 1)})", ctx.name_depth(a + extent), "int64_t")
    )


def _picked(ctx: Context, tile: Node, at: int) -> str:
    d = ctx.depth(tile)
    name = _named(ctx, f"(int64_t){ctx.get(tile, (at,), ())}", d, "int64_t")
    return name


def offsets(
    ctx: Context, place: Place, at: list[tuple[Affine, Offsets]], divide: bool = False
) -> tuple[Affine, Offsets]:
    """Bit offset of the first lane and of all lanes relative to it. Raises Carries if an index carries across
    a digit; with `divide`, only if lanes differ in that index, since otherwise its digits are computed by
    division at run time."""
    total = Affine((), place.layout.base)
    rel = np.zeros(len(at[0][1]) if at else 1, np.int64)
    for d, factor in zip(place.layout.digits, place.factors, strict=True):
        a, const = at[d.dim]
        try:
            terms, q = digit_value(d, a, const, ctx.extents)
        except Carries:
            if not divide or (const != const[0]).any():
                raise
            name = _named(ctx, _digit_text(ctx, d, a, const[0]), ctx.name_depth(a), "int64_t")
            terms, q = ((name, 1),), np.zeros_like(const)
        if factor:
            if (q != q[0]).any():
                raise Carries(factor)
            value = Affine(terms, int(q[0]))
            if value.terms or value.const:
                name = _named(ctx, f"({ctx.text(value)}) * {factor}", ctx.name_depth(value), "int64_t")
                total = total + Affine(((name, d.stride),))
            continue
        total = total + Affine(tuple((n, c * d.stride) for n, c in terms), int(q[0]) * d.stride)
        rel = rel + (q - q[0]) * d.stride
    return total, rel


def digit_value(
    d: Digit, a: Affine, const: Offsets, extents: Mapping[str, int]
) -> tuple[tuple[tuple[str, int], ...], Offsets]:
    """One digit of a coordinate: its terms and the constant part of every lane. Raises Carries if the value
    of a name may carry across the digit."""
    terms: list[tuple[str, int]] = []
    low = top = 0
    for name, c in a.terms:
        if not isinstance(c, int):
            raise UnsupportedError(f"index {a}: {name} has a stride that is not a multiple of its divisor")
        reach = extents.get(name, 1 << 40) - 1
        if d.size is not None and c % (d.step * d.size) == 0:
            continue
        if c % d.step == 0:
            terms.append((name, c // d.step))
            top += terms[-1][1] * reach
        else:
            low += c * reach
    q, r = np.divmod(const, d.step)
    if d.size is not None:
        q = q % d.size
    if (low and (low < 0 or int(r.max()) + low >= d.step)) or (
        d.size is not None and terms and (top < 0 or int(q.max()) + top >= d.size)
    ):
        raise Carries(str(a))
    return tuple(terms), q


def runtime_offset(ctx: Context, place: Place, at: list[tuple[Affine, Offsets]], lane: int) -> str:
    """C++ bit offset of one lane, by division at run time, for indices that carry across a digit."""
    parts = [str(place.layout.base)] if place.layout.base else []
    for d, factor in zip(place.layout.digits, place.factors, strict=True):
        a, const = at[d.dim]
        text = _digit_text(ctx, d, a, const[lane])
        parts.append(f"({text}) * {d.stride}" + (f" * {factor}" if factor else ""))
    return " + ".join(parts)


def _digit_text(ctx: Context, d: Digit, a: Affine, const: np.int64) -> str:
    """C++ expression for a digit of an index, by division."""
    text = f"({ctx.text(Affine(a.terms, int(const)))})"
    text = f"{text} / {d.step}" if d.step > 1 else text
    return f"({text}) % {d.size}" if d.size is not None else text


# ------------------------------------------------------------------ inside or outside
@dataclass(frozen=True)
class Guard:
    """`conditions` must hold for any lane to be inside; `count`: how many leading lanes are inside (None:
    all); `lanewise`: each lane needs conditions of its own."""

    conditions: tuple[str, ...] = ()
    count: int | str | None = None
    lanewise: bool = False


def guard(
    ctx: Context,
    place: Place,
    index: tuple[Index, ...],
    scalars: Mapping[str, Node],
    pos: Pos,
    lanes: Lanes,
    writing: bool = False,
) -> Guard:
    """What must be tested at run time for a request to lie inside the buffer, beyond what the bounds of loops
    prove. Reads of packed dimensions may reach into the padding, writes may not; picked indices are tested in
    both cases."""
    conditions: list[str] = []
    count: int | str | None = None
    lanewise, axis = False, 0
    for dim, i in enumerate(index):
        here, axis = axis, axis + (not isinstance(i, At))
        extent = place.dims[dim]
        if isinstance(i, Pick):
            start, span = Affine.of(_picked(ctx, scalars[i.tile], pos[here])), 1
        else:
            start, span = ctx.resolve(i.start, scalars), 1
            if not isinstance(i, At):
                start = start + pos[here]
                span = lane_count(tuple((a, n) for a, n in lanes if a == here))
        packed = dim in place.padded or (bool(place.padded) and isinstance(i, At))
        if packed and not writing and not isinstance(i, Pick):
            continue
        low, high = ctx.never_negative(start), ctx.never_negative(extent - start - span)
        if low and high:
            continue
        if span == 1:
            conditions.append(_inside(ctx, start, extent, low))
        elif low and lanes == ((here, span),):
            left = extent - start
            count = (
                int(left.const)
                if left.is_const
                else _named(ctx, ctx.text(left), ctx.name_depth(left), "int64_t")
            )
        else:
            lanewise = True
    found = frozenset(c for c in conditions if c != "true")
    if not place.padded:
        ctx.tested.append(found)
    known = ctx.assumed if ctx.here > ctx.assumed_at else frozenset[str]()
    return Guard(tuple(c for c in conditions if c in found - known), count, lanewise)


def _inside(ctx: Context, start: Affine, extent: Affine, low: bool) -> str:
    if start.is_const and extent.is_const:
        return "true" if 0 <= start.const < extent.const else "false"
    text = (
        f"{ctx.text(start)} < {ctx.text(extent)}"
        if low
        else f"(uint64_t)({ctx.text(start)}) < (uint64_t)({ctx.text(extent)})"
    )
    return _named(ctx, text, ctx.name_depth(start + extent), "bool")
