"""Bit dots by table lookup (T-MAC, LUT-GEMM): four bits select one of the 16 sums of four activations.

In: a `bit_dot` node. Out: its register, with all its neighbours computed at once. A table is built in a
register where it is used, and serves every column of the tile and every plane of the weights; the index is
taken from the bytes of codes as stored, if four bits of a plane are adjacent in them. Otherwise the four
products are added one by one, in the same order.
"""

from __future__ import annotations

from tilewright.backends.cpp.address import Carries, Guard, coordinates, guard, offsets, place_of
from tilewright.backends.cpp.bounds import largest
from tilewright.backends.cpp.context import Context, Lanes, Pos, ctype, lane_count
from tilewright.backends.cpp.dot import broadcastable
from tilewright.backends.cpp.lanes import call, joined, regather
from tilewright.backends.cpp.nodes import Node, upstream
from tilewright.backends.cpp.prefetch import trickle
from tilewright.backends.cpp.target import BYTES
from tilewright.ir.tile.ops import QUAD, QUADS

TABLE = 16


def bit_dot(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    n = ctx.target.bytes // 4
    own = ((1, n),)
    if node.shape[1] % n or not ctx.target.has("t_permute", f"i32x{n}", f"f32x{n}"):
        return _by_fours(ctx, node, pos, lanes, d)
    if lanes != own:
        return regather(ctx, node, pos, lanes, d, own)
    with ctx.at_depth(d):
        _blocks(ctx, node, n, d)
    return ctx.scopes[d].memo[node, (pos, lanes)]


def _blocks(ctx: Context, node: Node, n: int, d: int) -> None:
    """Each table is used for every plane and every column while it is in its register."""
    nodes = _together(ctx, node, n, d)
    x = broadcastable(ctx, node.args[1])
    columns, rows = range(0, node.shape[1], n), range(node.shape[0])
    sums = {
        (y, m, c): ctx.arg(y.shape, y.args[0], (m, c), ((1, n),))
        for y in nodes
        for m in rows
        for c in columns
    }
    for k in range(0, x.shape[1], QUADS):
        trickle(ctx, ctx.dots)
        words = {(y, c): _words(ctx, y.args[2], (c, k), n, d) for y in nodes for c in columns}
        for j in range(4):
            for m in rows:
                table = _table(ctx, x, m, k + j, n, d)
                for y, c in words:
                    word, shift = words[y, c]
                    index = (
                        f"tw_as<i32x{n}>({word} >> {8 * j + shift})"
                        if 8 * j + shift
                        else f"tw_as<i32x{n}>({word})"
                    )
                    sums[y, m, c] = ctx.let(
                        d, f"f32x{n}", f"t_keep({sums[y, m, c]} + {_chosen(ctx, table, index, n, d)})"
                    )
    for (y, m, c), r in sums.items():
        ctx.scopes[d].memo[y, ((m, c), ((1, n),))] = r


def _together(ctx: Context, node: Node, n: int, d: int) -> list[Node]:
    """The node and the dots of the loop's other planes with the same activations, as many as there are
    registers for their sums."""
    each = node.shape[0] * node.shape[1] // n
    out = [node]
    for y in ctx.dots:
        same = y.op == "bit_dot" and y.args[1] is node.args[1] and y.shape == node.shape and y is not node
        if same and ctx.depth(y) == d and (len(out) + 1) * each <= ctx.target.regs // 2:
            done = (y, ((0, 0), ((1, n),))) in ctx.scopes[d].memo
            if not done and all(y not in upstream(o.args) and o not in upstream(y.args) for o in out):
                out.append(y)
    return out


def _table(ctx: Context, x: Node, m: int, k: int, n: int, d: int) -> list[str]:
    """The table in registers: entry i (over all of them) is the sum of the activations whose bits are set in
    i."""
    t, out = f"f32x{n}", []
    for first in range(0, TABLE, n):
        terms = []
        for low, high in ((0, 1), (2, 3)):
            a, b = (ctx.get(x, (m, k + QUAD[q]), ((None, n),)) for q in (low, high))
            u, v = (
                ctx.let(0, t, f"{t}{{{', '.join(str((first + i) >> q & 1) for i in range(n))}}}")
                for q in (low, high)
            )
            terms.append(ctx.let(d, t, f"t_fma({v}, {b}, {u} * {a})"))
        out.append(ctx.let(d, t, f"{terms[0]} + {terms[1]}"))
    return out


def _chosen(ctx: Context, table: list[str], index: str, n: int, d: int) -> str:
    """The table entries selected by the low four bits of every lane."""
    if len(table) == 1:
        return f"t_permute({index}, {table[0]})"
    i = ctx.let(d, f"i32x{n}", index)
    picks = [f"t_permute({i}, {t})" for t in table]
    return f"(({i} & 8) != 0 ? {picks[1]} : {picks[0]})"


def _words(ctx: Context, bits: Node, at: Pos, n: int, d: int) -> tuple[str, int]:
    """(register, shift): byte j of every lane, shifted right, holds the index into table j in its low four
    bits."""
    t = f"u32x{n}"
    if bits.op == "and" and all(a.shape == bits.shape for a in bits.args):
        (a, s), (b, r) = (_words(ctx, x, at, n, d) for x in bits.args)
        if s == r:
            return ctx.let(d, t, f"{a} & {b}"), s
    if bits.op == "load" and (found := _nibbles(ctx, bits, at, n, d)):
        return found
    mask = "" if largest(bits) == 1 else " & (uint8_t)1"
    parts = [f"({ctx.get(bits, (at[0], at[1] + q), ((0, n), (1, 4)))}{mask})" for q in QUAD]
    index = parts[3]
    for p in reversed(parts[:3]):
        index = ctx.let(d, f"u8x{4 * n}", f"{index} + {index} + {p}")
    return ctx.let(d, t, f"tw_as<{t}>({index})"), 0


def _nibbles(ctx: Context, bits: Node, at: Pos, n: int, d: int) -> tuple[str, int] | None:
    """The bytes of a plane as stored, if the four bits of a table are adjacent in them; else None."""
    place, lanes = place_of(ctx, bits.source, bits.stream), ((0, n), (1, 4))
    if place.bits != 1 or bits.args or guard(ctx, place, bits.index, bits.scalars, at, lanes) != Guard():
        return None
    try:
        each = [
            offsets(ctx, place, coordinates(ctx, place, bits.index, bits.scalars, (at[0], at[1] + q), lanes))
            for q in QUAD
        ]
    except Carries:
        return None
    base, rel = each[0]
    shift = int(base.const) % 8
    beside = all(
        (b - base).is_const and int((b - base).const) == q and (r == rel).all()
        for q, (b, r) in enumerate(each)
    )
    if not beside or shift % 4 or any(c % 8 for _, c in base.terms) or list(rel // 8) != list(range(4 * n)):
        return None
    return ctx.let(d, f"u32x{n}", f"tw_load<u32x{n}>({place.pointer} + {ctx.text(base - shift, 8)})"), shift


def _by_fours(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    """Four products at a time, in any lane map."""
    n = lane_count(lanes)
    if n * BYTES["f32"] > ctx.target.bytes:
        return joined(ctx, node, pos, lanes, d, node.dtype)
    acc, x, bits = node.args
    if node not in ctx.widened:
        low = Node("const", "u8", (), (), {"value": 1, "dtype": "u8", "shape": ()})
        masked = Node("and", "u8", bits.shape, (bits, low), roots=bits.roots)
        ctx.widened[node] = (x, Node("cast", "f32", bits.shape, (masked,), roots=bits.roots))
    x, wide = ctx.widened[node]
    left = tuple((0 if k == 0 else None, s) for k, s in lanes)
    right = tuple((0 if k == 1 else None, s) for k, s in lanes)
    t = ctype("f32", n)
    r = ctx.arg(node.shape, acc, pos, lanes)
    for k in (run + j for run in range(0, x.shape[1], QUADS) for j in range(4)):
        pairs = [(ctx.get(x, (pos[0], k + q), left), ctx.get(wide, (pos[1], k + q), right)) for q in QUAD]
        first = [ctx.let(d, t, f"{u} * {v}") for u, v in pairs[::2]]
        halves = [
            call(ctx, "t_fma", ["f32"] * 3, "f32", [u, v, f], n)
            for (u, v), f in zip(pairs[1::2], first, strict=True)
        ]
        r = ctx.let(d, t, f"{r} + ({halves[0]} + {halves[1]})")
    return r
