"""Loads: the layout gives every lane's address, and the pattern of addresses picks the form of access.

All equal: one element, repeated. Consecutive: a vector load. A few bytes repeated: a broadcast of a word.
Within one or two registers: a load and a shuffle. Otherwise each lane by itself. Narrow codes are shifted and
masked. Independent of encodings.
"""

from __future__ import annotations

import numpy as np

from tilewright.backends.cpp.address import (
    Carries,
    Guard,
    Offsets,
    Place,
    coordinates,
    guard,
    offsets,
    place_of,
    runtime_offset,
)
from tilewright.backends.cpp.context import Context, Lanes, Pos, ctype, lane_count
from tilewright.backends.cpp.lanes import joined, lane_coords, literal, shuffle, spelled
from tilewright.backends.cpp.nodes import Node
from tilewright.backends.cpp.target import BYTES, CTYPE, symbol
from tilewright.ir.affine import Affine
from tilewright.ir.tile.core import At, Pick, Span


def memory_type(dtype: str, lanes: int) -> str:
    """C type of elements as they lie in memory (bool: a byte)."""
    return CTYPE[dtype] if lanes == 1 else f"{'u8' if dtype == 'bool' else dtype}x{lanes}"


def load(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    n = lane_count(lanes)
    if n * BYTES[node.dtype] > ctx.target.bytes:
        return joined(ctx, node, pos, lanes, d, node.dtype)
    place = place_of(ctx, node.source, node.stream)
    with ctx.at_depth(d):
        inside = guard(ctx, place, node.index, _picks(node), pos, lanes)
        x = _load(ctx, node, place, pos, lanes, inside)
        if node.dtype == "bool":
            return ctx.let(d, "bool" if n == 1 else f"i8x{n}", f"({x}) != 0")
        return ctx.let(d, ctype(node.dtype, n), x)


def direct(ctx: Context, node: Node, pos: Pos, lanes: Lanes) -> str:
    """A load as an expression, without a name of its own."""
    place = place_of(ctx, node.source, node.stream)
    lanes = tuple((a, n) for a, n in lanes if n > 1)
    return _load(ctx, node, place, pos, lanes, guard(ctx, place, node.index, _picks(node), pos, lanes))


def _picks(node: Node) -> dict[str, Node]:
    """The nodes that the index names, by name: scalars and index tiles."""
    return {**node.scalars, **{a.name: a for a in node.args}}


def _load(ctx: Context, node: Node, place: Place, pos: Pos, lanes: Lanes, inside: Guard) -> str:
    n = lane_count(lanes)
    if "false" in inside.conditions or (isinstance(inside.count, int) and inside.count <= 0):
        return _other(node, n)
    if inside.lanewise:
        return _each(ctx, node, pos, lanes)
    try:
        at = coordinates(ctx, place, node.index, _picks(node), pos, lanes)
    except Carries:
        return _each(ctx, node, pos, lanes)
    try:
        base, rel = offsets(ctx, place, at)
    except Carries:
        base, rel = Affine(), np.zeros(1, np.int64)
        if n > 1:
            return _each(ctx, node, pos, lanes)
        where = ctx.let(ctx.here, "int64_t", runtime_offset(ctx, place, at, 0))
        x = (
            f"tw_bits({place.pointer}, {where}, {place.bits})"
            if place.bits < 8
            else _at(place, f"{where} / 8", 1)
        )
        return _unless(inside, x, _other(node, 1))
    form = _form(ctx, node, place, base, rel, n, inside.count)
    return _each(ctx, node, pos, lanes) if form is None else _unless(inside, form, _other(node, n))


def _unless(inside: Guard, x: str, other: str) -> str:
    return f"{' && '.join(inside.conditions)} ? {x} : {other}" if inside.conditions else x


def _other(node: Node, n: int) -> str:
    x = literal(node.other, node.dtype)
    return x if n == 1 else f"tw_splat<{memory_type(node.dtype, n)}>({x})"


def _at(place: Place, offset: str, n: int) -> str:
    t = memory_type("u8" if place.bits < 8 else place.dtype, n)
    return f"tw_load<{t}>({place.pointer} + {offset})"


def _form(
    ctx: Context, node: Node, place: Place, base: Affine, rel: Offsets, n: int, count: int | str | None
) -> str | None:
    """The access for lanes at these bit distances; None if each lane must be loaded by itself."""
    if any(c % 8 for _, c in base.terms) or place.bits not in (1, 2, 4) and place.bits < 8:
        return f"tw_bits({place.pointer}, {ctx.text(base)}, {place.bits})" if n == 1 else None
    shift = int(base.const) % 8
    if ((rel + shift) % 8 != shift).any():
        return None
    where, byte = ctx.text(base - shift, 8), rel // 8
    w, code = max(place.bits // 8, 1), place.bits < 8

    def field(x: str, lanes: int) -> str:
        return _field(x, shift, place.bits, lanes) if code else x

    if isinstance(count, int) and count >= n:
        count = None
    if n == 1 or not rel.any():
        x = field(_at(place, where, 1), 1)
        return x if n == 1 else f"tw_splat<{memory_type(node.dtype, n)}>({x})"
    if (byte == np.arange(n) * w).all():
        return (
            field(_once(ctx, place, where, n), n)
            if count is None
            else _partial(ctx, node, place, where, n, count, field)
        )
    if count is not None:
        return None
    for word, integer in ((2, "i16"), (4, "i32"), (8, "i64")):
        c = word // w
        if c > 1 and n % c == 0 and n * w > word and (byte == np.tile(np.arange(c) * w, n // c)).all():
            t = memory_type(node.dtype, n)
            x = (
                f"tw_as<{t}>(tw_splat<{integer}x{n * w // word}>(tw_load<{CTYPE[integer]}>({place.pointer} "
                f"+ {where})))"
            )
            return field(x, n)
    return _shuffled(ctx, place, base - shift, byte, w, n, field)


def _once(ctx: Context, place: Place, where: str, n: int) -> str:
    """A vector, loaded only once if several codes share its bytes; the C++ compiler would otherwise load it
    for each code."""
    text, t = _at(place, where, n), f"u8x{n}"
    if place.bits in (2, 4) and n == ctx.target.bytes and ctx.target.has("t_keep", t):
        return ctx.let(ctx.here, t, f"t_keep({text})")
    return text


def _partial(
    ctx: Context, node: Node, place: Place, where: str, n: int, count: int | str, field: object
) -> str | None:
    t = spelled(node.dtype, n)
    if place.bits < 8 or not ctx.target.has("t_load_n", f"{node.dtype}*", "i64", t):
        return None
    name = symbol("t_load_n", (f"{node.dtype}*", "i64", t))
    return f"{name}((const {CTYPE[node.dtype]}*)({place.pointer} + {where}), {count}, {_other(node, n)})"


def _shuffled(
    ctx: Context, place: Place, base: Affine, byte: Offsets, w: int, n: int, field: object
) -> str | None:
    """Lanes within at most one register: a load and a constant shuffle. Bytes read beyond the lanes are in
    the same aligned block of the record."""
    assert callable(field)
    span = int(byte.max()) // w + 1
    full = 1 << (span - 1).bit_length()
    block = full * w
    before = int(base.const) // 8 % block
    fits = (
        full == span
        or not before % w
        and before // w + span <= full
        and all(c % (8 * block) == 0 for _, c in base.terms)
        and place.padded
    )
    if (byte % w).any() or byte.min() < 0 or block > ctx.target.bytes or full < 2 or not fits:
        return None
    before = 0 if full == span else before
    x = _at(place, ctx.text(base - 8 * before, 8), full)
    x = ctx.let(ctx.here, memory_type("u8" if place.bits < 8 else place.dtype, full), field(x, full))
    return shuffle(x, x, [(int(b) + before) // w for b in byte])


def _field(x: str, shift: int, bits: int, n: int) -> str:
    """Codes of `bits` at `shift` in every byte."""
    mask = (1 << bits) - 1
    if n == 1:
        return f"(uint8_t)(({x} >> {shift}) & {mask})"
    if not shift:
        return f"({x} & (uint8_t){mask})"
    if n == 2:
        return f"(({x} >> {shift}) & (uint8_t){mask})"
    return f"(tw_as<u8x{n}>(tw_as<u16x{n // 2}>({x}) >> {shift}) & (uint8_t){mask})"


# ------------------------------------------------------------------ lanes that are not consecutive
def _each(ctx: Context, node: Node, pos: Pos, lanes: Lanes) -> str:
    """Lanes that no vector access covers: repeated lanes are loaded once, runs of lanes as whole words, all
    others one by one."""
    n = lane_count(lanes)
    if n == 1:
        return ctx.get(node, pos, ())
    t = memory_type(node.dtype, n)
    if lanes[0][0] is None:
        return _repeated(ctx, node, pos, lanes)
    place = place_of(ctx, node.source, node.stream)
    inside = guard(ctx, place, node.index, _picks(node), pos, lanes)
    unmasked = inside == Guard() and place.bits >= 8
    try:
        base, rel = offsets(ctx, place, coordinates(ctx, place, node.index, _picks(node), pos, lanes))
        if unmasked and not any(c % 8 for _, c in base.terms):
            return _words(ctx, node, place, base, rel, n)
    except Carries:
        pass
    try:
        base, strides = _digit_strides(ctx, node, place, pos, lanes)
    except Carries:
        return f"{t}{{{', '.join(ctx.get(node, at, ()) for at in lane_coords(pos, lanes))}}}"
    return _looped(ctx, node, place, pos, lanes, base, strides, unmasked)


def _repeated(ctx: Context, node: Node, pos: Pos, lanes: Lanes) -> str:
    inner = lanes[1:]
    m, n = lane_count(inner), lane_count(lanes)
    x, size = ctx.get(node, pos, inner), m * BYTES[node.dtype]
    if m > 1 and size in (2, 4, 8):
        word = f"i{8 * size}"
        return f"tw_as<{memory_type(node.dtype, n)}>(tw_splat<{word}x{n // m}>(tw_as<{CTYPE[word]}>({x})))"
    return (
        f"tw_splat<{memory_type(node.dtype, n)}>({x})" if m == 1 else shuffle(x, x, [i % m for i in range(n)])
    )


def _digit_strides(
    ctx: Context, node: Node, place: Place, pos: Pos, lanes: Lanes
) -> tuple[Affine, list[int | str]]:
    """Bit offset of the first lane and bits between neighbours along each lane digit. Raises Carries if the
    offsets are not described by these."""

    def at(k: int, digit: int) -> Affine:
        one = lane_coords(pos, tuple((a, n) for a, n in lanes))[digit * lane_count(lanes[k + 1 :])]
        return offsets(ctx, place, coordinates(ctx, place, node.index, _picks(node), one, ()))[0]

    base = offsets(ctx, place, coordinates(ctx, place, node.index, _picks(node), pos, ()))[0]
    dims = [d for d, i in enumerate(node.index) if not isinstance(i, At)]
    strides: list[int | str] = []
    for k, (axis, n) in enumerate(lanes):
        dim = dims[axis or 0]
        if axis is not None and isinstance(node.index[dim], Pick):
            raise Carries(f"axis {axis}: every lane has a different address")
        step, last = at(k, 1) - base, at(k, n - 1) - base
        if last != step * (n - 1):
            raise Carries(str(last))
        if step.is_const:
            strides.append(int(step.const))
            continue
        if dim in place.padded:
            raise Carries(str(step))
        strides.append(f"({ctx.text(step)})")
    return base, strides


def _words(ctx: Context, node: Node, place: Place, base: Affine, rel: Offsets, n: int) -> str:
    """A vector initialised from words, each as wide as a run of consecutive lanes."""
    w, where = place.bits // 8, ctx.text(base, 8)
    run = 1
    while (
        2 * run * w <= 8
        and n % (2 * run) == 0
        and (rel.reshape(-1, 2 * run) - rel[:: 2 * run, None] == np.arange(2 * run) * place.bits).all()
    ):
        run *= 2
    t = memory_type(node.dtype, n)
    word = f"i{8 * run * w}" if run > 1 else node.dtype
    parts = [f"tw_load<{CTYPE[word]}>({place.pointer} + {where} + {int(r) // 8})" for r in rel[::run]]
    text = f"{memory_type(word, n // run)}{{{', '.join(parts)}}}"
    return f"tw_as<{t}>({text})" if run > 1 else text


def _looped(
    ctx: Context, node: Node, place: Place, pos: Pos, lanes: Lanes, base: Affine, strides: list[int | str],
    unmasked: bool
) -> str:  # fmt: skip
    """A call of `tw_gather`, which loops over at most two lane digits, each with the range that lies inside
    the buffer. `unmasked`: all lanes are inside and take whole bytes, so that whole words may be read."""
    n, x = lane_count(lanes), ctx.fresh("a")
    word = lanes[-1][1] * place.bits
    whole = unmasked and len(lanes) > 1 and strides[-1] == place.bits and word in (16, 32, 64)
    shown = lanes[:-1] if whole else lanes
    limits = [("0", str(size)) for _, size in shown] if unmasked else _limits(ctx, node, place, pos, shown)
    if len(shown) > 2 or limits is None:
        each = ", ".join(ctx.get(node, at, ()) for at in lane_coords(pos, lanes))
        return f"{memory_type(node.dtype, n)}{{{each}}}"
    typ = CTYPE[f"i{word}"] if whole else CTYPE[node.dtype]
    walks = [
        f"{size}, {s}, {lo}, {hi}" for (_, size), s, (lo, hi) in zip(shown, strides, limits, strict=False)
    ]
    walks = ["1, 0, 0, 1"] * (2 - len(walks)) + walks
    name = f"tw_gather<{typ}, {place.bits if place.bits < 8 else 0}>"
    other = literal(node.other, node.dtype)
    ctx.emit(
        f"{typ} {x}[{lane_count(shown)}]; {name}({x}, {place.pointer}, {ctx.text(base)}, {other}, "
        f"{', '.join(walks)});"
    )
    loaded = f"tw_load<{memory_type(node.dtype, n)}>({x})"
    conditions = guard(ctx, place, node.index, _picks(node), pos, lanes).conditions
    return f"{' && '.join(conditions)} ? {loaded} : {_other(node, n)}" if conditions else loaded


def _limits(ctx: Context, node: Node, place: Place, pos: Pos, lanes: Lanes) -> list[tuple[str, str]] | None:
    """Per lane digit, the range (C++ text) of values inside the buffer; None if two digits belong to one
    axis."""
    axes = [a for a, _ in lanes]
    dims = [d for d, i in enumerate(node.index) if not isinstance(i, At)]
    out = []
    for axis, size in lanes:
        i = node.index[dims[axis or 0]]
        if axis is None or dims[axis] in place.padded or not isinstance(i, Span):
            out.append(("0", str(size)))
            continue
        if axes.count(axis) > 1:
            return None
        start = ctx.resolve(i.start, node.scalars) + pos[axis]
        left = place.dims[dims[axis]] - start
        lo = "0" if ctx.never_negative(start) else ctx.text(-start)
        out.append((lo, str(size) if ctx.never_negative(left - size) else ctx.text(left)))
    return out


# ------------------------------------------------------------------ bf16 pairs
def bf16_as_f32(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str | None:
    """Every second bf16 of a row of pairs, widened: the pairs as 32-bit words, shifted or masked. None if the
    lanes are arranged differently."""
    n = lane_count(lanes)
    if n < 2 or node.dtype != "bf16" or node.op != "load" or n * 4 > ctx.target.bytes:
        return None
    place = place_of(ctx, node.source, node.stream)
    with ctx.at_depth(d):
        if guard(ctx, place, node.index, _picks(node), pos, lanes) != Guard():
            return None
        try:
            base, rel = offsets(ctx, place, coordinates(ctx, place, node.index, _picks(node), pos, lanes))
        except Carries:
            return None
        if (rel != np.arange(n) * 32).any() or base.const % 16 or any(c % 32 for _, c in base.terms):
            return None
        odd = int(base.const) % 32 != 0
        words = f"tw_load<u32x{n}>({place.pointer} + {ctx.text(base - (16 if odd else 0), 8)})"
        bits = f"({words} & 0xffff0000u)" if odd else f"({words} << 16)"
        return ctx.let(d, f"f32x{n}", f"tw_as<f32x{n}>{bits}")
