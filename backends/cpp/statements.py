"""Statements: stores, loops with carried values and tails, locals, prefetch.

In: store and loop nodes. Out: text in the open scope. A loop is rendered twice, whole iterations and a
partial last one, unless both are the same text or the extent is a multiple of the step.
"""

from __future__ import annotations

import re

from tilewright.backends.cpp.address import (
    Carries,
    Place,
    coordinates,
    guard,
    layout_of,
    offsets,
    place_of,
    runtime_offset,
)
from tilewright.backends.cpp.context import Bound, Context, Lanes, Pos, lane_count, power_of_two
from tilewright.backends.cpp.lanes import lane_coords, spelled, units
from tilewright.backends.cpp.loads import memory_type
from tilewright.backends.cpp.narrow_store import narrow_store
from tilewright.backends.cpp.nodes import Item, LoopNode, StoreNode, reachable, stored, upstream
from tilewright.backends.cpp.prefetch import beside, flush, prefetch, whole
from tilewright.backends.cpp.target import BYTES, CTYPE, symbol
from tilewright.backends.cpp.values import register
from tilewright.ir.affine import Affine
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.tile.core import At, Buffer, Pick

#: bytes: a local larger than the first, or with all locals larger than the second, is in thread-local memory
#: instead of on the stack; one larger than the last is refused
STACK_BYTES, STACK_TOTAL, MOST_BYTES = 1 << 15, 1 << 18, 1 << 26


def block(ctx: Context, items: list[Item]) -> None:
    whole(ctx, items)
    beside(ctx, items)
    for s in items:
        if isinstance(s, StoreNode):
            store(ctx, s)
        else:
            loop(ctx, s)


# ------------------------------------------------------------------ locals
def declare(ctx: Context, buffer: Buffer) -> None:
    """Declare a local, aligned to cache lines, in the open scope. UnsupportedError if its size is unknown or
    too large."""
    if not all(d.is_const for d in buffer.dims):
        raise UnsupportedError(
            f"local %{buffer.name} has run-time extents; sizes must be bound by the schedule"
        )
    layout, _ = layout_of(buffer, "", [int(d.const) for d in buffer.dims])
    name = f"l_{buffer.name}"
    size = -(-layout.nbytes // 64) * 64 + 64
    if size > MOST_BYTES:
        message = f"local %{buffer.name} takes {size} bytes, the limit is {MOST_BYTES}"
        raise UnsupportedError(
            message, f"kernel @{ctx.kernel.name}", "stage a smaller tile, or in an inner loop"
        )
    ctx.pointers[buffer.name] = name
    ctx.roots[f"buffer:{buffer.name}"] = ctx.here
    ctx.stack += size
    if size > STACK_BYTES or ctx.stack > STACK_TOTAL:
        ctx.heads.append(f"static thread_local char {name}_m[{size}] __attribute__((aligned(64)));")
        ctx.heads.append(f"char* const {name} = {name}_m;")
    else:
        ctx.emit(f"alignas(64) char {name}[{size}];")


# ------------------------------------------------------------------ stores
def store(ctx: Context, s: StoreNode) -> None:
    """Store a value; if it is computed from the buffer it is stored to, all registers are computed before any
    is written."""
    place = place_of(ctx, s.buffer, s.stream)
    if place.bits < 8:
        return narrow_store(ctx, s, place)
    lanes = _store_lanes(ctx, s, _atom(place, ctx.natural(s.value)))
    reads_itself = any(n.op == "load" and n.source.name == s.buffer.name for n in reachable([s]))
    probe = s.shape
    held = {pos: ctx.arg(probe, s.value, pos, lanes) for pos in units(probe, lanes)} if reads_itself else {}
    for pos in units(probe, lanes):
        _write(ctx, s, pos, lanes, held.get(pos) or ctx.arg(probe, s.value, pos, lanes))
    ctx.roots[f"buffer:{s.buffer.name}"] = ctx.here


def _atom(place: Place, lanes: int) -> tuple[tuple[int, int], ...]:
    """The innermost `lanes` elements as ((dim, size), ...) outer to inner, up to the first run-time
    stride."""
    got: list[tuple[int, int]] = []
    count = 1
    done: dict[int, int] = {}
    for d, factor in reversed(list(zip(place.layout.digits, place.factors, strict=True))):
        if count >= lanes or factor or d.step != done.get(d.dim, 1) or d.stride != place.bits * count:
            break
        size = min(d.size or lanes, lanes // count)
        got.insert(0, (d.dim, size))
        count *= size
        done[d.dim] = done.get(d.dim, 1) * size
    return tuple(got)


def _store_lanes(ctx: Context, s: StoreNode, atom: tuple[tuple[int, int], ...]) -> Lanes:
    """The longest run of lanes that is consecutive in memory and in the tile."""
    axis_of: dict[int, int] = {}
    for dim, i in enumerate(s.index):
        if not isinstance(i, At):
            axis_of[dim] = len(axis_of)
    lanes: list[tuple[int | None, int]] = []
    for dim, n in reversed(atom):
        if dim not in axis_of or isinstance(s.index[dim], Pick):
            whole = s.buffer.dims[dim] == Affine.of(1)
            if whole:
                continue
            break
        size = s.shape[axis_of[dim]]
        if size == 1 and s.buffer.dims[dim] == Affine.of(1):
            continue
        done = 1
        for a, m in lanes:
            done *= m if a == axis_of[dim] else 1
        got = min(power_of_two(size // done) if size % done == 0 else 1, power_of_two(n))
        if got > 1:
            lanes.insert(0, (axis_of[dim], got))
        if got != n or size != got * done and s.buffer.dims[dim] != Affine.of(size):
            break
    out = tuple(lanes)
    return out if lane_count(out) * BYTES[s.value.dtype] >= 4 else ()


def _write(ctx: Context, s: StoreNode, pos: Pos, lanes: Lanes, x: str) -> None:
    place, n = place_of(ctx, s.buffer, s.stream), lane_count(lanes)
    inside = guard(ctx, place, s.index, s.scalars, pos, lanes, writing=True)
    if "false" in inside.conditions or isinstance(inside.count, int) and inside.count <= 0:
        return
    head = f"if ({' && '.join(inside.conditions)}) " if inside.conditions else ""
    try:
        base, rel = offsets(ctx, place, coordinates(ctx, place, s.index, s.scalars, pos, lanes))
        consecutive = (rel == [k * place.bits for k in range(n)]).all()
    except Carries:
        consecutive = False
        if n == 1:
            where = runtime_offset(ctx, place, coordinates(ctx, place, s.index, s.scalars, pos, ()), 0)
            ctx.emit(f"{head}tw_store({place.pointer} + ({where}) / 8, ({CTYPE[place.dtype]}){x});")
            return
    if inside.lanewise or not consecutive:
        for k, at in enumerate(lane_coords(pos, lanes)):
            _write(ctx, s, at, (), f"{x}[{k}]")
        return
    where = ctx.text(base, 8)
    if s.value.dtype == "bool":
        x = f"({CTYPE['bool']}){x}" if n == 1 else f"(tw_to<u8x{n}>({x}) & 1)"
    if inside.count is None or isinstance(inside.count, int) and inside.count >= n:
        ctx.emit(f"{head}tw_store<{memory_type(place.dtype, n)}>({place.pointer} + {where}, {x});")
        return
    t = spelled(place.dtype, n)
    if not ctx.target.has("t_store_n", f"{place.dtype}*", "i64", t):
        for k, at in enumerate(lane_coords(pos, lanes)):
            _write(ctx, s, at, (), f"{x}[{k}]")
        return
    name = symbol("t_store_n", (f"{place.dtype}*", "i64", t))
    ctx.emit(f"{head}{name}(({CTYPE[place.dtype]}*)({place.pointer} + {where}), {inside.count}, {x});")


# ------------------------------------------------------------------ loops
def loop(ctx: Context, s: LoopNode) -> None:
    lo, hi = ctx.resolve(s.lo, s.scalars), ctx.resolve(s.hi, s.scalars)
    held = _carried(ctx, s)
    span = hi - lo
    count = f"i_{s.var}"
    if span.is_const:
        trips, rem = divmod(max(int(span.const), 0), s.step)
        if trips:
            render = _divided if dict(ctx.schedule.options).get("interior") and ctx.splits else _whole
            render(ctx, s, held, lo, span, f"for (int64_t {count} = 0; {count} < {trips}; ++{count})", trips)
        if rem:
            _tail(ctx, s, held, lo, span, rem, "if (true)")
    else:
        _run_time(ctx, s, held, lo, span)
    ctx.roots[f"result:{s.key}"] = ctx.here
    for k, pos, own, x in held:
        ctx.scopes[ctx.here].memo[s.results[k], (pos, own)] = x


def _run_time(
    ctx: Context, s: LoopNode, held: list[tuple[int, Pos, Lanes, str]], lo: Affine, span: Affine
) -> None:
    count, n = f"i_{s.var}", ctx.fresh("n")
    ctx.emit(f"const int64_t {n} = {ctx.text(span)};")
    even = all(c % s.step == 0 for _, c in span.terms) and span.const % s.step == 0
    _whole(ctx, s, held, lo, span, f"for (int64_t {count} = 0; {count} < {n} / {s.step}; ++{count})", None)
    if even:
        return
    whole = _take_block(ctx)
    left = ctx.fresh("r")
    _tail(
        ctx,
        s,
        held,
        lo,
        span,
        left,
        f"if (const int64_t {count} = {n} / {s.step}, {left} = {n} - {s.step} * {count}; {left} > 0)",
    )
    tail = _take_block(ctx)
    if _canonical(whole) == _canonical(tail):
        ctx.emit(f"for (int64_t {count} = 0; {count} < ({n} + {s.step - 1}) / {s.step}; ++{count}) {{")
        ctx.scopes[-1].lines += whole[1:]
    else:
        ctx.scopes[-1].lines += whole + tail


_DEFINED = re.compile(r"^\s*(?:alignas\(64\) )?(?:const )?\w+\*? (?:const )?([a-z]\d+)(?: =|\[)")


def _canonical(lines: list[str]) -> list[str]:
    """The text of a block with the names that it defines numbered from one."""
    names = [m[1] for m in map(_DEFINED.match, lines[1:]) if m]
    order = {n: f"#{k}" for k, n in enumerate(names)}
    return [re.sub(r"\b[a-z]\d+\b", lambda m: order.get(m[0], m[0]), x) for x in lines[1:]]


def _take_block(ctx: Context) -> list[str]:
    """The block of text that was emitted last, removed."""
    lines = ctx.scopes[-1].lines
    first = len(lines) - 1
    while first and (lines[first].startswith(" ") or lines[first] == "}"):
        first -= 1
    taken = lines[first:]
    del lines[first:]
    return taken


def _carried(ctx: Context, s: LoopNode) -> list[tuple[int, Pos, Lanes, str]]:
    """Emit a variable for every register of every carried value, with its initial value."""
    held = []
    for k, (c, init) in enumerate(zip(s.carries, s.inits, strict=True)):
        own = ctx.held(c)
        for pos in units(c.shape, own):
            x = ctx.fresh("c")
            ctx.emit(f"{register(c, lane_count(own))} {x} = {ctx.arg(c.shape, init, pos, own)};")
            held.append((k, pos, own, x))
    return held


def _body(ctx: Context, s: LoopNode, held: list[tuple[int, Pos, Lanes, str]]) -> None:
    ctx.roots[s.var] = ctx.roots[f"carry:{s.key}"] = ctx.here
    for name in stored(s.body):
        ctx.roots[f"buffer:{name}"] = ctx.here
    for k, pos, own, x in held:
        ctx.scopes[-1].memo[s.carries[k], (pos, own)] = x
    block(ctx, s.body)
    outer, ctx.dots = ctx.dots, tuple(n for n in upstream(s.yields) if n.op in ("dot", "bit_dot"))
    new = [ctx.arg(s.carries[k].shape, s.yields[k], pos, own) for k, pos, own, _ in held]
    ctx.dots = outer
    carried = _swapped(ctx, s, held, new)
    for (_, _, _, x), y in zip(held, carried, strict=True):
        if x != y:
            ctx.emit(f"{x} = {y};")


def _swapped(ctx: Context, s: LoopNode, held: list[tuple[int, Pos, Lanes, str]], new: list[str]) -> list[str]:
    """New values that are themselves carried variables are copied first, since they may be assigned before
    they are read."""
    own = {x for _, _, _, x in held}
    out = []
    for (k, _, lanes, x), y in zip(held, new, strict=True):
        moved = y in own and y != x or any(y.startswith(f"{c}[") for c in own)
        out.append(ctx.let(ctx.here, register(s.carries[k], lane_count(lanes)), y) if moved else y)
    return out


def _whole(
    ctx: Context,
    s: LoopNode,
    held: list[tuple[int, Pos, Lanes, str]],
    lo: Affine,
    span: Affine,
    head: str,
    trips: int | None,
) -> None:
    with ctx.scope(head):
        _enter(ctx, s, lo, span, trips)
        saved = ctx.ahead, ctx.planned
        prefetch(ctx, s, "copy" if s.var.startswith("copy_") else s.var)
        ctx.planned = len(ctx.ahead)
        _body(ctx, s, held)
        flush(ctx)
        ctx.ahead, ctx.planned = saved


def _enter(ctx: Context, s: LoopNode, lo: Affine, span: Affine, trips: int | None) -> None:
    """What is known of the loop's variable in whole iterations."""
    count = f"i_{s.var}"
    ctx.names[count] = ctx.here
    ctx.vars[s.var] = lo + Affine(((count, s.step),))
    ctx.bounds[count] = Bound(span - s.step, s.step)
    if trips is not None:
        ctx.extents[count] = trips


def _divided(
    ctx: Context,
    s: LoopNode,
    held: list[tuple[int, Pos, Lanes, str]],
    lo: Affine,
    span: Affine,
    head: str,
    trips: int | None,
) -> None:
    """The loop with two bodies, one of them for where that holds which every load in it is tested for. They
    lie one scope deeper than the loop's variable, so that the tests stand before them. Inside what remains
    tested, loops are not divided again."""
    with ctx.scope(head):
        _enter(ctx, s, lo, span, trips)
        outside, ctx.tested = ctx.tested, []
        ctx.splits = False
        with ctx.scope("if (true)"):
            _body(ctx, s, held)
        ctx.splits = True
        tested, ctx.tested = ctx.tested, outside + ctx.tested
        body = _take_block(ctx)
        shared = frozenset.intersection(*tested) if tested else frozenset[str]()
        shared = frozenset(c for c in shared if ctx.names.get(c, ctx.here + 1) <= ctx.here) - ctx.assumed
        if shared:
            text = " && ".join(sorted(shared))
            saved = ctx.assumed, ctx.assumed_at
            ctx.assumed, ctx.assumed_at = ctx.assumed | shared, ctx.here
            with ctx.scope(f"if ({text})"):
                _body(ctx, s, held)
            ctx.assumed, ctx.assumed_at = saved
            ctx.scopes[-1].lines += [f"if (!({text})) {{", *body[1:]]
        else:
            with ctx.scope("if (true)"):
                _body(ctx, s, held)
            ctx.scopes[-1].lines += [x.removeprefix("  ") for x in _take_block(ctx)[1:-1]]


def _tail(
    ctx: Context,
    s: LoopNode,
    held: list[tuple[int, Pos, Lanes, str]],
    lo: Affine,
    span: Affine,
    left: int | str,
    head: str,
) -> None:
    count = f"i_{s.var}"
    with ctx.scope(head):
        ctx.names[count] = ctx.here
        static = isinstance(left, int)
        ctx.vars[s.var] = lo + (int(span.const) - int(left)) if static else lo + Affine(((count, s.step),))
        ctx.bounds[count] = Bound(span - 1, s.step)
        ctx.left[s.var] = left
        _body(ctx, s, held)
