"""Rules for reductions, scans and lookups: operations that combine lanes.

Every reduction folds the upper half onto the lower, padded to a power of two (`ir.tile.ops.tree_reduce`),
however the operand is spread over registers, so its bits do not depend on the vector width.
"""

from __future__ import annotations

from tilewright.backends.cpp.bounds import largest
from tilewright.backends.cpp.context import Context, Lanes, Pos, ctype, lane_count
from tilewright.backends.cpp.lanes import call, joined, lane_coords, literal, regather, shuffle, spelled
from tilewright.backends.cpp.narrow import byte_table, permutation
from tilewright.backends.cpp.nodes import Node
from tilewright.backends.cpp.target import BYTES, symbol
from tilewright.backends.cpp.values import narrow_statistic
from tilewright.ir.tile.ops import identity


def combine(ctx: Context, fn: str, dtype: str, a: str, b: str, n: int) -> str:
    if dtype in ("bf16", "f16"):  # in f32, rounded after every step
        each = [_narrow(fn, dtype, *((a, b) if n == 1 else (f"{a}[{k}]", f"{b}[{k}]"))) for k in range(n)]
        return each[0] if n == 1 else f"{ctype(dtype, n)}{{{', '.join(each)}}}"
    if fn == "add":
        return f"{a} + {b}"
    return call(ctx, f"t_{fn}", [dtype, dtype], dtype, [a, b], n)


def _narrow(fn: str, dtype: str, a: str, b: str) -> str:
    wide = [f"{symbol('t_cvt_f32', (dtype,))}({x})" for x in (a, b)]
    return f"{symbol(f't_cvt_{dtype}', ('f32',))}({symbol(f't_{fn}', ('f32', 'f32'))}({', '.join(wide)}))"


def reduce(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    src, axis = node.args[0], int(str(node.attrs["axis"]))
    own = ctx.held(src)
    if own and own[0][0] == axis:
        if lanes:
            return _across_many(ctx, node, pos, lanes, d, own)
        if keep := narrow_statistic(ctx, node):
            return regather(ctx, node, pos, (), d, keep)
        x = _folded(ctx, node, pos, own, d)
        n = lane_count(own)
        if ctx.target.has(f"t_reduce_{node.attrs['fn']}", spelled(node.dtype, n)):
            return ctx.let(
                d,
                ctype(node.dtype, 1),
                call(ctx, f"t_reduce_{node.attrs['fn']}", [node.dtype], node.dtype, [x], n),
            )
        return _merge(ctx, node, [x], n, d)
    if own and not lanes:
        keep = ctx.held(node)
        return regather(ctx, node, pos, (), d, keep) if keep else _folded(ctx, node, pos, (), d)
    return _folded(ctx, node, pos, lanes, d)


def _folded(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    """All registers along the axis folded into one."""
    src, axis, fn = node.args[0], int(str(node.attrs["axis"])), str(node.attrs["fn"])
    step, n = 1, lane_count(lanes)
    for a, size in lanes:
        step *= size if a == axis else 1
    parts = [
        ctx.get(src, tuple(p if k == axis else q for k, q in enumerate(pos)), lanes)
        for p in range(0, src.shape[axis], step)
    ]
    full = 1 << (len(parts) - 1).bit_length()
    if full != len(parts):
        e = literal(identity(fn, node.dtype), node.dtype)
        parts += [e if n == 1 else f"tw_splat<{ctype(node.dtype, n)}>({e})"] * (full - len(parts))
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [
            ctx.let(d, ctype(node.dtype, n), combine(ctx, fn, node.dtype, parts[i], parts[i + half], n))
            for i in range(half)
        ]
    return parts[0]


def _across_many(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int, own: Lanes) -> str:
    """Several rows reduced at once, to one lane per row: each step folds the halves of two registers."""
    rows = [_folded(ctx, node, at, own, d) for at in dict.fromkeys(lane_coords(pos, lanes))]
    if len(rows) & (len(rows) - 1) or len(rows) != lane_count(lanes):
        parts = [ctx.get(node, at, ()) for at in lane_coords(pos, lanes)]
        t = ctype(node.dtype, lane_count(lanes))
        return ctx.let(d, t, f"{t}{{{', '.join(parts)}}}")
    return _merge(ctx, node, rows, lane_count(own), d)


def _merge(ctx: Context, node: Node, rows: list[str], width: int, d: int) -> str:
    """From registers of `width` lanes, one row each, to one register with one lane per row. The number of
    rows is a power of two."""
    fn = str(node.attrs["fn"])
    held, count = 1, width  # rows per register, lanes per row
    while count > 1:
        pairs = len(rows) > 1
        half, lanes = count // 2, (2 if pairs else 1) * held * count // 2
        total = held * count
        low = [
            r * total + g * count + k
            for r in range(2 if pairs else 1)
            for g in range(held)
            for k in range(half)
        ]
        high = [i + half for i in low]
        out = []
        for i in range(0, len(rows), 2 if pairs else 1):
            a, b = rows[i], rows[i + 1] if pairs else rows[i]
            if lanes == 1:
                out.append(
                    ctx.let(d, ctype(node.dtype, 1), combine(ctx, fn, node.dtype, f"{a}[0]", f"{a}[1]", 1))
                )
                continue
            t = ctype(node.dtype, lanes)
            x, y = ctx.let(d, t, shuffle(a, b, low)), ctx.let(d, t, shuffle(a, b, high))
            out.append(ctx.let(d, t, combine(ctx, fn, node.dtype, x, y, lanes)))
        rows, held, count = out, held * (2 if pairs else 1), half
    while len(rows) > 1:
        held *= 2
        rows = [
            ctx.let(d, ctype(node.dtype, held), _pair(rows[i], rows[i + 1], held))
            for i in range(0, len(rows), 2)
        ]
    return rows[0]


def _pair(a: str, b: str, lanes: int) -> str:
    return shuffle(a, b, range(lanes))


def scan(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    """Element by element along the axis; registers run along another axis."""
    src, axis, fn = node.args[0], int(str(node.attrs["axis"])), str(node.attrs["fn"])
    if any(a == axis for a, _ in lanes):
        return regather(ctx, node, pos, lanes, d, ())
    n = lane_count(lanes)
    last = ""
    for p in range(pos[axis] + 1):
        at = tuple(p if k == axis else q for k, q in enumerate(pos))
        key = ("scan", at, lanes)
        found = ctx.scopes[d].memo.get((node, key))
        if found is None:
            x = ctx.get(src, at, lanes)
            found = x if not p else ctx.let(d, ctype(node.dtype, n), combine(ctx, fn, node.dtype, last, x, n))
            ctx.scopes[d].memo[node, key] = found
        last = found
    return last


def lookup(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    """A lookup in a small table, in one or two registers if it fits, else in memory."""
    table, codes = node.args
    n, size, width = lane_count(lanes), table.shape[0], BYTES[node.dtype]
    if n * width > ctx.target.bytes:
        return joined(ctx, node, pos, lanes, d, node.dtype)
    if found := byte_table(ctx, node, pos, lanes, d):
        return found
    if n * width == ctx.target.bytes and size <= 2 * n and (width == 4 or width == 2 and n == 32):
        index = permutation(ctx, codes, pos, lanes, width, size, d) if largest(codes) < size else None
        if index is None:
            as_int = Node("cast", "i32", codes.shape, (codes,), roots=codes.roots)
            i = ctx.get(as_int if codes.dtype != "i32" else codes, pos, lanes) if width == 4 else ""
            index = f"t_min(t_max({i}, i32x{n}{{}}), tw_splat<i32x{n}>({size - 1}))"
        if width == 4 or largest(codes) < size:
            tables = _tables(ctx, table, n)
            t = ctype(node.dtype, n)
            if len(tables) == 1 and ctx.target.has("t_permute", f"i{8 * width}x{n}", t):
                return ctx.let(
                    d, t, f"{symbol('t_permute', (t,))}(tw_as<i{8 * width}x{n}>({index}), {tables[0]})"
                )
            return ctx.let(d, t, f"__builtin_shuffle({', '.join(tables)}, {index})")
    memory = in_memory_table(ctx, table)
    each = []
    x = ctx.get(codes, pos, lanes)
    for k in range(n):
        code = f"(int64_t){x}[{k}]" if n > 1 else f"(int64_t){x}"
        each.append(f"{memory}[tw_clamp({code}, {size - 1})]")
    t = ctype(node.dtype, n)
    return ctx.let(d, t, each[0] if n == 1 else f"{t}{{{', '.join(each)}}}")


def _tables(ctx: Context, table: Node, n: int) -> list[str]:
    """The table in registers of n lanes. Unused lanes repeat the table if its size is a power of two, else
    its last element."""
    size = table.shape[0]

    def make(d: int) -> str:
        again = size & (size - 1) == 0
        parts = [ctx.get(table, (k % size if again else min(k, size - 1),), ()) for k in range(n)]
        if size == n:
            return ctx.get(table, (0,), ((0, n),))
        return ctx.let(d, ctype(table.dtype, n), f"{ctype(table.dtype, n)}{{{', '.join(parts)}}}")

    if size <= n:
        return [ctx.memo(table, ("table", n), make)]
    return [ctx.get(table, (at,), ((0, n),)) for at in (0, n)]


def in_memory_table(ctx: Context, table: Node) -> str:
    def make(d: int) -> str:
        name = ctx.fresh("t")
        parts = [ctx.get(table, (k,), ()) for k in range(table.shape[0])]
        ctx.emit(f"const {ctype(table.dtype, 1)} {name}[{len(parts)}] = {{{', '.join(parts)}}};", d)
        return name

    return ctx.memo(table, "array", make)
