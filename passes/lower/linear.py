"""The contraction template: y = finish(x @ w^T), for every pair of activation and weight form.

One builder serves one row and five hundred: rows are the tile height, which schedules and the run-time row
count pick; each output is summed in the same order whatever the schedule. Three forms: float dot, decode then
float dot, and `blocked`'s: a dot of a block, integer or float, with scales applied after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.ir.encodings.blocked import Blocked
from tilewright.ir.encodings.dense import Dense
from tilewright.ir.encodings.token import IntToken
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import Buffer
from tilewright.passes.lower.blocked import float_dot, integer_dot
from tilewright.passes.lower.contraction_tile import Place, numbered
from tilewright.passes.lower.linear_schedules import schedules

__all__ = ["Accumulators", "Place", "accumulate", "schedules"]

#: accumulators of the column tile that starts at a column offset: `acc(offset) -> Tile[BM, BN]`
Accumulators = Callable[[int], Tile]


def accumulate(
    b: KernelBuilder, x: Buffer, w: Buffer, place: Place, offsets: Sequence[int]
) -> dict[int, Tile]:
    """f32 tiles [height, BN] of x[rows, :] @ w[j + offset : BN, :]^T, one per column offset."""
    if isinstance(x.encoding, IntToken):
        return integer_dot(b, x, w, place, offsets)
    found = float_dot(b, x, w, place, offsets) if isinstance(w.encoding, Blocked) else None
    return _float(b, x, w, place, offsets) if found is None else found


def _float(b: KernelBuilder, x: Buffer, w: Buffer, p: Place, offsets: Sequence[int]) -> dict[int, Tile]:
    zeros = [b.const(0, "f32", (p.height, "BN")) for _ in offsets]
    with b.loop("k", 0, p.k, "BK", zeros) as loop:
        at = slice(loop.var, "BK")
        xs = b.load(x, *p.x(at))
        out = []
        for n, off in enumerate(offsets):
            dtype = "f32"
            if w.encoding is None:
                tile = b.load(w, *p.w(off, at))
            elif isinstance(w.encoding, Dense):
                tile = b.load(f"{w.name}.values", *p.w(off, at))
                dtype = tile.dtype if tile.dtype == xs.dtype else "f32"
            else:
                tile = w.encoding.tile_decode(b, w, p.w(off, at))
                dtype = xs.dtype if xs.dtype == "bf16" else "f32"
            tile = (b.cast(dtype, tile) if tile.dtype != dtype else tile).named(numbered("w", n))
            out.append(b.dot(loop.carried[n], b.cast(dtype, xs), tile))
        loop.yield_(*out)
    return dict(zip(offsets, loop.results, strict=True))
