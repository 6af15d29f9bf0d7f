"""Stores of codes narrower than a byte: each byte is assembled from its codes and written as a whole.

In: a store to such a stream. Out: text in the open scope. No byte is read before it is written, so instances
of the grid that store different elements never share one; a store that fills a byte only partly is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tilewright.backends.cpp.address import Carries, Guard, Place, coordinates, guard, offsets
from tilewright.backends.cpp.context import Context, Lanes, lane_count, power_of_two
from tilewright.backends.cpp.lanes import units
from tilewright.backends.cpp.nodes import StoreNode
from tilewright.ir.affine import Affine
from tilewright.ir.errors import UnsupportedError

#: codes per register
LANES = 16


@dataclass
class _Byte:
    """The codes of one byte so far, shifted into position, and the conditions under which the byte is inside
    the buffer."""

    codes: list[str] = field(default_factory=list)
    conditions: dict[str, None] = field(default_factory=dict)


def narrow_store(ctx: Context, s: StoreNode, place: Place) -> None:
    """Write a tile of codes. UnsupportedError if a byte is not filled."""
    found: dict[Affine, _Byte] = {}
    for code, offset, inside in _codes(ctx, s, place):
        shift = int(offset.const) % 8
        byte = found.setdefault(offset - shift, _Byte())
        byte.codes.append(f"{code} << {shift}" if shift else code)
        byte.conditions |= dict.fromkeys(inside.conditions)
    for at, byte in found.items():
        if len(byte.codes) != 8 // place.bits:
            raise _refused(s, f"a byte holds {8 // place.bits} codes, of which {len(byte.codes)} are stored")
        head = f"if ({' && '.join(byte.conditions)}) " if byte.conditions else ""
        ctx.emit(f"{head}tw_store({place.pointer} + {ctx.text(at, 8)}, (uint8_t)({' | '.join(byte.codes)}));")
    ctx.roots[f"buffer:{s.buffer.name}"] = ctx.here


def _codes(ctx: Context, s: StoreNode, place: Place) -> Iterator[tuple[str, Affine, Guard]]:
    """Every code of the tile, its bit offset and the guard of its access."""
    size = min(power_of_two(s.shape[-1]), LANES) if s.shape else 1
    lanes: Lanes = ((len(s.shape) - 1, size),) if size >= 4 else ()
    n = lane_count(lanes)
    for pos in units(s.shape, lanes):
        inside = guard(ctx, place, s.index, s.scalars, pos, lanes, writing=True)
        if inside.count is not None or inside.lanewise:
            raise _refused(s, "the tile may reach outside the buffer")
        try:
            at = coordinates(ctx, place, s.index, s.scalars, pos, lanes)
            base, rel = offsets(ctx, place, at, divide=True)
        except Carries:
            raise _refused(s, "the place of a code is not known when the kernel is built") from None
        if any(c % 8 for _, c in base.terms):
            raise _refused(s, "the tile does not start at a whole byte")
        x = ctx.arg(s.shape, s.value, pos, lanes)
        for k in range(n):
            yield f"({x}[{k}] & {(1 << place.bits) - 1})" if n > 1 else f"({x})", base + int(rel[k]), inside


def _refused(s: StoreNode, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"store to %{s.buffer.name}.{s.stream}: {why}", "", "store runs of elements that fill whole bytes"
    )
