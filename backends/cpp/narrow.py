"""Widens codes of one byte, stored as the integer dot reads them: four consecutive k of a row in a word.

In: casts and lookups of u8 tiles. Out: registers made from whole words by a shift, a mask or a shuffle; an
empty text if lanes are arranged differently, so that the general rules apply.
"""

from __future__ import annotations

from tilewright.backends.cpp.bounds import largest, whole_bounds
from tilewright.backends.cpp.context import Context, Lanes, Pos, ctype, lane_count
from tilewright.backends.cpp.lanes import shuffle
from tilewright.backends.cpp.nodes import Node
from tilewright.backends.cpp.target import BYTES

#: integers up to this magnitude are exact in bf16
WHOLE = 256.0
#: entries of a table that a shuffle of 16 bytes can look up
TABLE = 16


def columns(ctx: Context, codes: Node, pos: Pos, lanes: Lanes, width: int) -> tuple[str, int, int] | None:
    """(register of words, rows, k within a word) for one column of codes in lanes of four bytes, or two in
    lanes of two."""
    n, k = lane_count(lanes), pos[-1] if pos else 0
    rows = n * width // 4
    inner = ((0, rows),) if width == 4 else ((0, rows), (1, 2))
    if (
        codes.dtype != "u8"
        or len(codes.shape) != 2
        or lanes != inner
        or codes.shape[1] % 4
        or codes.shape[0] % rows
    ):
        return None
    return ctx.get(codes, (pos[0], k // 4 * 4), ((0, rows), (1, 4))), rows, k % 4


def from_bytes(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    """A cast of codes: a shift and a mask for lanes of four bytes, one shuffle and a mask for lanes of
    two."""
    n, width = lane_count(lanes), BYTES[node.dtype]
    if node.dtype not in ("f32", "i32", "u32", "u16") or n * width != ctx.target.bytes:
        return ""
    found = columns(ctx, node.args[0], pos, lanes, width)
    if found is None:
        return ""
    word, rows, k = found
    if width == 2:
        return ctx.let(d, ctype("u16", n), f"{_twice(ctx, word, rows, k, d)} & (uint16_t)255")
    moved = f"(tw_as<u32x{n}>({word}) >> {8 * k})" if k else f"tw_as<u32x{n}>({word})"
    byte = moved if k == 3 else f"({moved} & 255u)"
    if node.dtype == "f32":
        return ctx.let(d, ctype("f32", n), f"t_cvt_f32(tw_as<i32x{n}>({byte}))")
    return ctx.let(d, ctype(node.dtype, n), f"tw_as<{ctype(node.dtype, n)}>({byte})")


def pairs_of_bf16(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    """Casts f32 numbers that are exact in bf16, in pairs along the inner lanes: the upper halves of two
    registers, without rounding."""
    src, n = node.args[0], lane_count(lanes)
    if (
        (src.dtype, node.dtype) != ("f32", "bf16")
        or len(lanes) != 2
        or lanes[1][1] != 2
        or n * 2 != ctx.target.bytes
    ):
        return ""
    inner, bounds = lanes[1][0], whole_bounds(src)
    if inner is None or inner == lanes[0][0] or bounds is None or max(map(abs, bounds)) > WHOLE:
        return ""
    other = tuple(p + (k == inner) for k, p in enumerate(pos))
    low, high = (f"tw_as<u32x{n // 2}>({ctx.get(src, at, lanes[:1])})" for at in (pos, other))
    return ctx.let(d, ctype("bf16", n), f"tw_as<bf16x{n}>(({high} & 0xffff0000u) | ({low} >> 16))")


def permutation(
    ctx: Context, codes: Node, pos: Pos, lanes: Lanes, width: int, size: int, d: int
) -> str | None:
    """Codes as the index of a permutation, which reads only the low bits of each lane; no mask is needed if
    the table is repeated to fill the register, as tables whose size is a power of two are."""
    n = lane_count(lanes)
    if codes.op == "and" and size & (size - 1) == 0 and codes.args[0].shape == codes.shape:
        mask = codes.args[1]
        codes = codes.args[0] if mask.op == "const" and int(str(mask.attrs["value"])) == size - 1 else codes
    found = columns(ctx, codes, pos, lanes, width)
    if found is None:
        return (
            None
            if width == 4
            else ctx.get(Node("cast", "u16", codes.shape, (codes,), roots=codes.roots), pos, lanes)
        )
    word, rows, k = found
    if width == 4:
        return f"tw_as<i32x{n}>(tw_as<u32x{n}>({word}) >> {8 * k})" if k else f"tw_as<i32x{n}>({word})"
    return _twice(ctx, word, rows, k, d)


def _twice(ctx: Context, word: str, rows: int, k: int, d: int) -> str:
    """Two neighbouring bytes of every word, each twice, as u16."""
    pairs = [4 * r + k + e for r in range(rows) for e in (0, 0, 1, 1)]
    return ctx.let(d, f"u16x{2 * rows}", f"tw_as<u16x{2 * rows}>({shuffle(word, word, pairs)})")


def byte_table(ctx: Context, node: Node, pos: Pos, lanes: Lanes, d: int) -> str:
    """A table of at most 16 bytes, looked up by a register of codes at once; empty if the target has no such
    shuffle."""
    table, codes = node.args
    n, t = lane_count(lanes), f"u8x{lane_count(lanes)}"
    size = table.shape[0]
    if (
        node.dtype != "u8"
        or codes.dtype != "u8"
        or size > TABLE
        or largest(codes) >= size
        or not ctx.target.has("t_lookup", t, t)
    ):
        return ""

    def make(at: int) -> str:
        parts = [ctx.get(table, (min(k % TABLE, size - 1),), ()) for k in range(n)]
        return ctx.let(at, t, f"{t}{{{', '.join(parts)}}}")

    return ctx.let(d, t, f"t_lookup({ctx.memo(table, ('bytes', n), make)}, {ctx.get(codes, pos, lanes)})")
