"""Rules for operations that compute lane by lane, and for those that only change the request.

In: a request for a node. Out: the register that answers it, after requests to its operands. Independent of
loads, dots and loops.
"""

from __future__ import annotations

from tilewright.backends.cpp.context import Context, Lanes, Pos, ctype, is_splat, lane_count, mask_width
from tilewright.backends.cpp.lanes import call, joined, lane_coords, literal, regather, spelled
from tilewright.backends.cpp.loads import bf16_as_f32
from tilewright.backends.cpp.narrow import from_bytes, pairs_of_bf16
from tilewright.backends.cpp.nodes import Node
from tilewright.backends.cpp.target import BYTES

INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "and": "&",
    "or": "|",
    "xor": "^",
    "lt": "<",
    "le": "<=",
    "eq": "==",
    "ne": "!=",
}
COMPARES = ("lt", "le", "eq", "ne")
PLAIN = ("f32", "f64", "i8", "u8", "i16", "u16", "i32", "u32", "i64")


def width_of(node: Node) -> int:
    return mask_width(node) if node.dtype == "bool" else BYTES[node.dtype]


def element_of(node: Node) -> str:
    """How one lane of the node's register is spelled: masks are signed integers."""
    return f"i{8 * mask_width(node)}" if node.dtype == "bool" else node.dtype


def register(node: Node, lanes: int) -> str:
    return ctype(node.dtype, 1) if lanes == 1 else f"{element_of(node)}x{lanes}"


def too_wide(ctx: Context, node: Node, lanes: Lanes) -> bool:
    widest = max([width_of(node), *(width_of(a) for a in node.args)])
    return lane_count(lanes) * widest > ctx.target.bytes


def narrow_statistic(ctx: Context, node: Node) -> Lanes:
    """Tiles [G, 1] (row statistics) are kept in one register over G; the lane map is empty for others."""
    if len(node.shape) < 2 or node.shape[-1] != 1 or max(node.shape) < 4 or node.dtype == "bool":
        return ()
    return ctx.held(node)


def elementwise(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    """The scalar primitives."""
    n = lane_count(lanes)
    if node.op != "select" and node.args[-1].dtype in ("bf16", "f16"):
        return ctx.get(_in_f32(ctx, node), pos, lanes)
    if n == 1 and (own := narrow_statistic(ctx, node)):
        return regather(ctx, node, pos, (), d, own)
    if n > 1 and too_wide(ctx, node, lanes):
        return joined(ctx, node, pos, lanes, d, element_of(node))
    if node.op in ("shl", "shr"):
        return _shift(ctx, node, pos, lanes, d)
    args = [ctx.arg(node.shape, a, pos, lanes) for a in node.args]
    return ctx.let(d, register(node, n), _apply(ctx, node, args, n))


def _in_f32(ctx: Context, node: Node) -> Node:
    """An operation on narrow floats: in f32, then rounded."""
    if node not in ctx.promoted:
        args = tuple(Node("cast", "f32", a.shape, (a,), roots=a.roots) for a in node.args)
        wide = Node(
            node.op, "bool" if node.op in COMPARES else "f32", node.shape, args, node.attrs, roots=node.roots
        )
        ctx.promoted[node] = (
            wide if node.op in COMPARES else Node("cast", node.dtype, node.shape, (wide,), roots=node.roots)
        )
    return ctx.promoted[node]


def _apply(ctx: Context, node: Node, args: list[str], n: int) -> str:
    operand = node.args[-1].dtype
    if operand == "bool":
        return _logic(node, args, n)
    if node.op == "select":
        return f"{_mask(node.args[0], args[0], n, BYTES[node.dtype])} ? {args[1]} : {args[2]}"
    if node.op in INFIX and operand in PLAIN or node.op == "div" and operand in ("f32", "f64"):
        return f"{args[0]} {INFIX.get(node.op, '/')} {args[1]}"
    if node.op == "not":
        return f"~{args[0]}"
    result = node.dtype if node.op not in COMPARES else f"i{8 * BYTES[operand]}"
    return call(ctx, f"t_{node.op}", [a.dtype for a in node.args], result, args, n)


def _mask(node: Node, name: str, n: int, width: int) -> str:
    """A bool register as a mask of this lane width."""
    if n == 1 or mask_width(node) == width:
        return name
    return f"tw_to<i{8 * width}x{n}>({name})"


def _logic(node: Node, args: list[str], n: int) -> str:
    """Bools: masks in vectors, 0 or 1 in scalars."""
    w = mask_width(node)
    a = [_mask(x, name, n, w) for x, name in zip(node.args, args, strict=True)]
    if node.op == "not":
        return f"~{a[0]}" if n > 1 else f"!{a[0]}"
    if node.op == "select":
        return f"({a[0]} & {a[1]}) | (~{a[0]} & {a[2]})" if n > 1 else f"{a[0]} ? {a[1]} : {a[2]}"
    sign = {"max": "|", "min": "&", "add": "|", "mul": "&", "sub": "^"}.get(node.op) or INFIX[node.op]
    if n > 1 and node.op in COMPARES:
        inner = {
            "eq": f"~({a[0]} ^ {a[1]})",
            "ne": f"{a[0]} ^ {a[1]}",
            "lt": f"~{a[0]} & {a[1]}",
            "le": f"~{a[0]} | {a[1]}",
        }
        return inner[node.op]
    return f"{a[0]} {sign} {a[1]}"


def _shift(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    n, by = lane_count(lanes), node.args[1]
    x = ctx.arg(node.shape, node.args[0], pos, lanes)
    if n > 1 and all(s == 1 for s in by.shape):
        count = ctx.get(by, (0,) * len(by.shape), ())
        if ctx.target.has(f"t_{node.op}", spelled(node.dtype, n), "i32"):
            return ctx.let(d, register(node, n), f"t_{node.op}({x}, (int32_t){count})")
    y = ctx.arg(node.shape, by, pos, lanes)
    return ctx.let(
        d, register(node, n), call(ctx, f"t_{node.op}", [node.dtype, node.dtype], node.dtype, [x, y], n)
    )


def const(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    return literal(node.attrs["value"], node.dtype)


def cast(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    n, src = lane_count(lanes), node.args[0]
    if node.dtype == src.dtype:
        return ctx.get(src, pos, lanes)
    if src.op == "lookup" and node.dtype == "f32":
        return ctx.get(_wide_lookup(ctx, src), pos, lanes)
    if n == 1 and (own := narrow_statistic(ctx, node)):
        return regather(ctx, node, pos, (), d, own)
    if n > 1 and (found := from_bytes(ctx, node, pos, lanes, d) or pairs_of_bf16(ctx, node, pos, lanes, d)):
        return found
    if n > 1 and too_wide(ctx, node, lanes):
        return joined(ctx, node, pos, lanes, d, element_of(node))
    if (
        n > 1
        and not ctx.target.has(f"t_cvt_{node.dtype}", spelled(src.dtype, n))
        and "bool" not in (node.dtype, src.dtype)
    ):
        for middle in ("f32", "i32"):
            ways = _converts(ctx, src.dtype, middle, n) and _converts(ctx, middle, node.dtype, n)
            if ways and _same_through(src.dtype, middle, node.dtype):
                return ctx.get(_through(node, middle), pos, lanes)
    if (src.dtype, node.dtype) == ("bf16", "f32") and (pair := bf16_as_f32(ctx, src, pos, lanes, d)):
        return pair
    x = ctx.get(src, pos, lanes)
    if n > 1 and src.dtype == "bool":
        yes, no = literal(1, node.dtype), literal(0, node.dtype)
        t = register(node, n)
        return ctx.let(
            d, t, f"{_mask(src, x, n, BYTES[node.dtype])} ? tw_splat<{t}>({yes}) : tw_splat<{t}>({no})"
        )
    if n > 1 and node.dtype == "bool":
        bits = f"({x} & 0x7fff)" if src.dtype in ("bf16", "f16") else x
        return ctx.let(d, register(node, n), f"{bits} != 0")
    if n == 1 and src.dtype == "bool" and node.dtype not in ("bf16", "f16"):
        return ctx.let(d, ctype(node.dtype, 1), x)
    return ctx.let(d, register(node, n), call(ctx, f"t_cvt_{node.dtype}", [src.dtype], node.dtype, [x], n))


def _wide_lookup(ctx: Context, node: Node) -> Node:
    """A lookup in the table of wider numbers."""
    if node not in ctx.promoted:
        table, codes = node.args
        wide = Node("cast", "f32", table.shape, (table,), roots=table.roots)
        ctx.promoted[node] = Node("lookup", "f32", node.shape, (wide, codes), roots=node.roots)
    return ctx.promoted[node]


def _same_through(src: str, middle: str, dst: str) -> bool:
    """Whether two casts give the same as one from `src` to `dst`: saturating twice is the same, and narrow
    floats are rounded from f32 in both cases."""
    if middle == "f32":
        return dst in ("bf16", "f16") or src in ("bf16", "f16", "i8", "u8", "i16", "u16")
    return dst in ("i8", "u8", "i16", "u16") or src in ("i8", "u8", "i16", "u16", "i32")


def _converts(ctx: Context, src: str, dst: str, n: int) -> bool:
    return src != dst and ctx.target.has(f"t_cvt_{dst}", spelled(src, n))


def _through(node: Node, middle: str) -> Node:
    inner = Node("cast", middle, node.shape, node.args, roots=node.roots)
    return Node("cast", node.dtype, node.shape, (inner,), roots=node.roots)


def bitcast(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    n = lane_count(lanes)
    x = ctx.get(node.args[0], pos, lanes)
    return ctx.let(d, register(node, n), f"tw_as<{ctype(node.dtype, n)}>({x})")


def within(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    """The operand itself, except in a partial last iteration of the loop: there, lanes beyond the extent are
    `other`."""
    left, (src,) = ctx.left.get(str(node.attrs["loop"])), node.args
    axis, n = int(str(node.attrs["axis"])), lane_count(lanes)
    x = ctx.get(src, pos, lanes)
    if left is None:
        return x
    along = [c[axis] for c in lane_coords(pos, lanes)]
    if isinstance(left, int) and max(along) < left:
        return x
    other = literal(node.attrs["other"], node.dtype)
    if len(set(along)) == 1:
        e = other if n == 1 else f"tw_splat<{register(node, n)}>({other})"
        return ctx.let(d, register(node, n), f"{left} > {along[0]} ? {x} : {e}")
    e = f"tw_splat<{register(node, n)}>({other})"
    if lanes == ((axis, n),):
        count = f"{left} - {pos[axis]}" if pos[axis] else str(left)
        return ctx.let(d, register(node, n), _pick(ctx, node, count, x, e, n))
    w = 8 * width_of(node)
    index = f"i{w}x{n}{{{', '.join(map(str, along))}}}"
    return ctx.let(
        d, register(node, n), f"{index} < tw_splat<i{w}x{n}>(tw_clamp({left}, {max(along) + 1})) ? {x} : {e}"
    )


def _pick(ctx: Context, node: Node, count: str, x: str, e: str, n: int) -> str:
    t = spelled(element_of(node), n)
    if ctx.target.has("t_pick", "i64", t, t):
        from tilewright.backends.cpp.target import symbol

        return f"{symbol('t_pick', ('i64', t, t))}({count}, {x}, {e})"
    return f"{t}{{{', '.join(f'{count} > {i} ? {x}[{i}] : {e}[{i}]' for i in range(n))}}}"


# ------------------------------------------------------------------ requests rewritten
def expand(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    new = int(str(node.attrs["axis"]))
    inner = tuple((None if a in (None, new) else a - (a > new), n) for a, n in lanes)
    return ctx.get(node.args[0], pos[:new] + pos[new + 1 :], inner)


def transpose(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    return ctx.get(node.args[0], pos[::-1], tuple((None if a is None else 1 - a, n) for a, n in lanes))


def reshape(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    """Axes split or merged: elements keep their order, so a lane digit is a digit of some axis of the
    operand; if it is not, lanes are gathered."""
    src = node.args[0]
    start = _unravel(_ravel(pos, node.shape), src.shape)
    want = [_unravel(_ravel(c, node.shape), src.shape) for c in lane_coords(pos, lanes)]
    if is_splat(lanes):
        return ctx.get(src, start, lanes)
    digits: list[tuple[int | None, int]] = []
    inner: dict[int | None, int] = {}
    for a, n in reversed(lanes):
        axis = None if a is None else _axis_of(_stride(node.shape, a) * inner.get(a, 1), src.shape)
        inner[a] = inner.get(a, 1) * n
        digits.insert(0, (axis, n))
    candidate = tuple(digits)
    if lane_coords(start, candidate) == want:
        return ctx.get(src, start, candidate)
    n = lane_count(lanes)
    parts = [ctx.get(src, at, ()) for at in want]
    return ctx.let(d, register(node, n), f"{register(node, n)}{{{', '.join(parts)}}}")


def _stride(shape: tuple[int, ...], axis: int) -> int:
    out = 1
    for s in shape[axis + 1 :]:
        out *= s
    return out


def _axis_of(distance: int, shape: tuple[int, ...]) -> int:
    """The axis along which elements at this distance differ: the innermost whose elements span the
    distance."""
    for axis in reversed(range(len(shape))):
        if shape[axis] > 1 and distance < _stride(shape, axis) * shape[axis]:
            return axis
    return 0


def _ravel(at: Pos, shape: tuple[int, ...]) -> int:
    out = 0
    for p, s in zip(at, shape, strict=True):
        out = out * s + p
    return out


def _unravel(flat: int, shape: tuple[int, ...]) -> Pos:
    out: list[int] = []
    for s in reversed(shape):
        out.insert(0, flat % s)
        flat //= s
    return tuple(out)


# ------------------------------------------------------------------ made from positions
def iota(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    values = [c[0] for c in lane_coords(pos, lanes)]
    if len(values) == 1:
        return f"(int32_t){values[0]}"
    return ctx.let(d, f"i32x{len(values)}", f"i32x{len(values)}{{{', '.join(map(str, values))}}}")


def index(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    from tilewright.ir.affine import Affine

    value = node.attrs["value"]
    a = ctx.resolve(Affine.of(value), node.scalars)  # type: ignore[arg-type]
    return ctx.let(d, "int32_t", f"(int32_t)({ctx.text(a)})")


def carry(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    """A carried value in another lane map than that of its registers."""
    return regather(ctx, node, pos, lanes, d, ctx.held(node))
