"""Register blocking of dots: accumulators of all rows and as many column vectors as fit, k innermost.

In: a request for a dot. Out: its register, with all its neighbours computed at once and remembered. The
instruction is chosen from the target's table by dtypes and value ranges; if there is none, elements are
widened and multiplied one by one.
"""

from __future__ import annotations

from tilewright.backends.cpp.address import place_of
from tilewright.backends.cpp.bounds import largest
from tilewright.backends.cpp.context import Context, Lanes, Pos, ctype, lane_count
from tilewright.backends.cpp.lanes import call, joined, regather
from tilewright.backends.cpp.loads import direct
from tilewright.backends.cpp.nodes import Node, StoreNode, upstream
from tilewright.backends.cpp.prefetch import trickle
from tilewright.backends.cpp.statements import declare, store
from tilewright.backends.cpp.target import BYTES, Dot
from tilewright.ir.affine import Affine
from tilewright.ir.tile.core import Buffer, Span

#: registers kept free of accumulators: one column vector per unit, one broadcast, one temporary value
SPARE = 6


def dot(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    acc, a, b = node.args
    n_lanes = ctx.target.bytes // BYTES[node.dtype]
    own = ((1, n_lanes),)
    entry = ctx.target.dot(node.dtype, a.dtype, b.dtype, largest(a), largest(b))
    if node.shape[1] % n_lanes or entry is not None and a.shape[1] % entry.grain:
        return _elementwise(ctx, node, pos, lanes, d)
    if entry is None:
        wide = _promoted(ctx, node)
        return ctx.get(wide, pos, lanes) if wide is not None else _elementwise(ctx, node, pos, lanes, d)
    if lanes != own:
        return regather(ctx, node, pos, lanes, d, own)
    with ctx.at_depth(d):
        _blocks(ctx, _together(ctx, node, entry, d), entry, n_lanes)
    return ctx.scopes[d].memo[node, (pos, lanes)]


def _promoted(ctx: Context, node: Node) -> Node | None:
    """The same dot on f32 operands, for narrow floats that the table has no instruction for; else None."""
    acc, a, b = node.args
    if a.dtype not in ("bf16", "f16"):
        return None
    if node not in ctx.promoted:
        wide = [Node("cast", "f32", x.shape, (x,), roots=x.roots) for x in (a, b)]
        ctx.promoted[node] = Node("dot", node.dtype, node.shape, (acc, *wide), roots=node.roots)
    return ctx.promoted[node]


def _together(ctx: Context, node: Node, entry: Dot, d: int) -> list[Node]:
    """The node and other dots of its loop with the same left operand, as many as fit in the registers: their
    chains of additions are independent, where those of one dot may be too few to hide the latency."""
    acc, a, b = node.args
    size = node.shape[0] * (node.shape[1] * BYTES[node.dtype] // ctx.target.bytes)
    group = [node]
    for other in ctx.dots:
        same = (
            other.op == "dot"
            and other.args[1] is a
            and other.shape == node.shape
            and other.dtype == node.dtype
        )
        if (
            other is node
            or not same
            or ctx.depth(other) != d
            or (len(group) + 1) * size > ctx.target.regs - SPARE
        ):
            continue
        mine = ctx.target.dot(other.dtype, a.dtype, other.args[2].dtype, largest(a), largest(other.args[2]))
        done = (other, ((0, 0), ((1, ctx.target.bytes // BYTES[node.dtype]),))) in ctx.scopes[d].memo
        apart = all(other not in upstream(y.args) and y not in upstream(other.args) for y in group)
        if mine == entry and apart and not done:
            group.append(other)
    return group


def _blocks(ctx: Context, nodes: list[Node], entry: Dot, n_lanes: int) -> None:
    """Compute all registers of these dots, which share their left operand, one block of columns at a time."""
    a, rows = nodes[0].args[1], nodes[0].shape[0]
    columns = nodes[0].shape[1] // n_lanes
    left = broadcastable(ctx, a)
    most = max(1, (ctx.target.regs - SPARE) // (rows * len(nodes)))
    parts = -(-columns // most)
    block = -(-columns // parts)
    lanes, d = ((1, n_lanes),), ctx.here
    typ, grain = ctype(nodes[0].dtype, n_lanes), entry.grain
    half = ctype("i16", 2 * n_lanes)
    pointer, run = hidden(ctx, left, d), _run(nodes, entry)
    for first in range(0, columns, block):
        ns = [(node, n) for n in range(first, min(first + block, columns)) for node in nodes]
        sums = {
            (m, c): [ctx.arg(c[0].shape, c[0].args[0], (m, c[1] * n_lanes), lanes)]
            for m in range(rows)
            for c in ns
        }
        short: dict[tuple[int, tuple[Node, int]], str] = {}
        chains = _chains(ctx, nodes, entry, len(sums)) if run == 1 else 1
        for more in sums.values() if chains > 1 else ():
            more += [ctx.let(d, typ, f"tw_splat<{typ}>((int32_t)0)")] * (chains - 1)
        for step, k in enumerate(range(0, a.shape[1], grain)):
            trickle(ctx, ctx.dots)
            w = {c: ctx.get(c[0].args[2], (c[1] * n_lanes, k), ((0, n_lanes), (1, grain))) for c in ns}
            for m in range(rows):
                x = ctx.let(
                    d,
                    ctype(a.dtype, n_lanes * grain),
                    broadcast(ctx, left, (m, k), ((None, n_lanes), (1, grain)), pointer),
                )
                for c in ns:
                    if run == 1:
                        chain = sums[m, c]
                        chain[step % chains] = ctx.let(
                            d, typ, f"{entry.fn}({chain[step % chains]}, {x}, {w[c]})"
                        )
                        continue
                    before = short[m, c] if step % run else f"{half}{{}}"
                    short[m, c] = ctx.let(d, half, f"{entry.pairs}({before}, {x}, {w[c]})")
            if run > 1 and (step % run == run - 1 or k + grain >= a.shape[1]):
                sums = {c: [ctx.let(d, typ, f"{entry.total}({r}, {short[c]})")] for c, (r,) in sums.items()}
        for (m, (node, n)), (r, *more) in sums.items():
            for other in more:
                r = ctx.let(d, typ, f"{r} + {other}")
            ctx.scopes[d].memo[node, ((m, n * n_lanes), lanes)] = r


def _chains(ctx: Context, nodes: list[Node], entry: Dot, count: int) -> int:
    """Into how many sums each of `count` integer accumulators is split, by the schedule's option `sums`; more
    than one only if they are carried around a loop and each sum gets at least two of its steps."""
    sums = dict(ctx.schedule.options).get("sums", 1)
    carried = all(n.args[0].op == "carry" for n in nodes)
    steps = nodes[0].args[1].shape[1] // entry.grain
    return max(1, min(sums // count, sums // 2, steps // 2)) if entry.acc == "i32" and carried else 1


def _run(nodes: list[Node], entry: Dot) -> int:
    """For how many steps of k sums of pairs can be accumulated in 16 bits; 1: such sums are not used."""
    if not entry.pairs:
        return 1
    a, most = nodes[0].args[1], max(largest(n.args[2]) for n in nodes)
    values = most if a.dtype == "i8" else largest(a)
    return max(1, min(32767 // (2 * 128 * max(values, 1)), a.shape[1] // entry.grain))


def hidden(ctx: Context, left: Node, d: int) -> str:
    """A pointer to the left operand that GCC cannot see through, if the operand does not change in the dot's
    loop: GCC would otherwise hoist the broadcasts out of the loop and spill each as a whole vector."""
    name = left.source.name
    if ctx.depth(left) >= d:
        return ctx.pointers[name]
    pointer = ctx.fresh("p")
    ctx.emit(f'char* {pointer} = {ctx.pointers[name]}; asm volatile("" : "+r"({pointer}));')
    return pointer


def broadcast(ctx: Context, left: Node, pos: Pos, lanes: Lanes, pointer: str) -> str:
    """A few elements of the left operand in all lanes: never hoisted, so that it stays an operand in
    memory."""
    name = left.source.name
    saved, ctx.pointers[name] = ctx.pointers[name], pointer
    text = direct(ctx, left, pos, lanes)
    ctx.pointers[name] = saved
    return text


def broadcastable(ctx: Context, a: Node) -> Node:
    """The left operand in memory with consecutive k: itself if it is loaded so, or a copy in a local, filled
    where the operand is defined."""
    if in_rows(ctx, a):
        return a

    def make(d: int) -> str:
        name = ctx.fresh("l")
        with ctx.at_depth(d):
            buffer = Buffer(name, a.dtype, tuple(Affine.of(n) for n in a.shape))
            declare(ctx, buffer)
            index = tuple(Span(Affine(), n) for n in a.shape)
            store(ctx, StoreNode(buffer, "", index, a, {}, a.shape))
            pointer = ctx.fresh("p")
            # GCC would forward the stores to the broadcasts by extracting lanes
            ctx.emit(
                f'char* {pointer} = {ctx.pointers[name]}; asm volatile("" : "+r"({pointer}) :: "memory");'
            )
            ctx.pointers[name] = pointer
        return name

    name = ctx.memo(a, "memory", make)
    key = (name, ctx.pointers[name])
    if key not in ctx.copies:
        buffer = Buffer(name, a.dtype, tuple(Affine.of(n) for n in a.shape))
        index = tuple(Span(Affine(), n) for n in a.shape)
        ctx.copies[key] = Node(
            "load", a.dtype, a.shape, (), {}, name, index, buffer, roots=a.roots | {f"buffer:{name}"}
        )
    return ctx.copies[key]


def in_rows(ctx: Context, a: Node) -> bool:
    """Whether `a` is loaded from memory, in whole bytes and consecutive along its last axis."""
    if a.op != "load":
        return False
    place = place_of(ctx, a.source, a.stream)
    inner = [d for d in place.layout.digits if d.stride == place.bits and d.size != 1]
    last = len(a.source.dims) - 1
    return (
        place.bits >= 8
        and bool(inner)
        and inner[-1].dim == last
        and isinstance(a.index[-1], Span)
        and place.dtype != "bool"
    )


def _elementwise(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    """The dot element by element, k ascending, in any lane map: i32 arithmetic that wraps, or fused
    multiply-adds of floats."""
    n = lane_count(lanes)
    if n * BYTES[node.dtype] > ctx.target.bytes:
        return joined(ctx, node, pos, lanes, d, node.dtype)
    acc, a, b = node.args
    x, y = (Node("cast", node.dtype, s.shape, (s,), roots=s.roots) for s in (a, b))
    if node not in ctx.widened:
        ctx.widened[node] = (x, y)
    x, y = ctx.widened[node]
    left = tuple((0 if k == 0 else None, s) for k, s in lanes)
    right = tuple((0 if k == 1 else None, s) for k, s in lanes)
    r = ctx.arg(node.shape, acc, pos, lanes)
    for k in range(a.shape[1]):
        u, v = ctx.get(x, (pos[0], k), left), ctx.get(y, (pos[1], k), right)
        text = (
            f"{r} + {u} * {v}"
            if node.dtype == "i32"
            else call(ctx, "t_fma", [node.dtype] * 3, node.dtype, [u, v, r], n)
        )
        r = ctx.let(d, ctype(node.dtype, n), text)
    return r
