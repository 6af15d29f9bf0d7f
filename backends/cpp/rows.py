"""The heights that blocks of a row axis can have, so that no body is rendered for a height that cannot occur.

In: the schedules of a kernel in the order in which they are tried, and the sizes that its calls state. Out:
bounds of the extent, and heights. A schedule with `M <= 256` after one with `M <= 8` is used for 9 to 256
rows: balanced blocks of at most six rows then have four to six. If all calls have 128 rows, they have five
or six.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.backends.cpp.sizes import Sizes, reaching
from tilewright.ir.affine import Affine
from tilewright.ir.tile.core import Condition, Schedule


def block_heights(
    bound: Affine, extent: Affine, own: Schedule, before: Sequence[Schedule], most: int, sizes: Sizes
) -> set[int]:
    """Heights of balanced blocks of at most `most` rows. `bound`: the extent with known sizes substituted;
    `extent`: as written in the kernel."""
    symbol = _symbol(extent)
    values = reaching(symbol, own, before, sizes) if symbol else None
    if values is not None and not bound.is_const:
        return {h for rows in values for h in heights(rows, rows, most)}
    fewest, largest = row_counts(bound, extent, own, before)
    return heights(fewest, largest, most)


def _symbol(extent: Affine) -> str | None:
    """The symbol that an extent is."""
    alone = not extent.const and len(extent.terms) == 1 and extent.terms[0][1] == 1
    return extent.names[0] if alone else None


def row_counts(
    bound: Affine, extent: Affine, own: Schedule, before: Sequence[Schedule]
) -> tuple[int, int | None]:
    """The fewest and the most rows (None: any number) for which `own` is used. `bound`: the extent with known
    sizes substituted; `extent`: as written in the kernel."""
    if bound.is_const:
        return int(bound.const), int(bound.const)
    symbol = _symbol(extent)
    if symbol is None:
        return 1, None
    failed = [s.when[0] for s in before if len(s.when) == 1 and s.when[0].symbol == symbol]
    held = [c for c in own.when if c.symbol == symbol]
    fewest = [1, *[most + 1 for c in failed if (most := _most(c)) is not None]]
    largest = [most for c in held if (most := _most(c)) is not None]
    return max(fewest), min(largest) if largest else None


def _most(c: Condition) -> int | None:
    """The largest value for which an upper bound holds; None for other conditions."""
    return {"<=": c.value, "<": c.value - 1}.get(c.op)


def heights(fewest: int, largest: int | None, most: int) -> set[int]:
    """Heights of balanced blocks of at most `most` rows, over all extents from `fewest` to `largest`."""
    found: set[int] = set()
    settled = max(fewest, most * most)  # every larger extent has only blocks of `most` and `most - 1` rows
    for rows in range(max(fewest, 1), min(settled + most, largest or settled + most) + 1):
        blocks = -(-rows // most)
        found |= {rows // blocks, -(-rows // blocks)}
    return found
