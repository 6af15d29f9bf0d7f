"""How the last axis is divided into tiles: chunks of a fixed width, or constant ranges that ops need.

In: an emitter, the operand that is stored, the length of its rows. Out: spans.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.tile.core import Span
from tilewright.passes.lower.emit import Emitter
from tilewright.passes.lower.record import lowering_of

#: elements of the last axis per tile in a kernel over rows
WIDTH = 64
#: most lanes of a chunk at constant channels
LANES = 32


def width_of(e: Emitter, operand: str, n: object) -> int:
    """Lanes of one chunk of a row of length `n`."""
    if not isinstance(n, int):
        return WIDTH
    return math.gcd(n, WIDTH) if e.reads_packed(operand) else min(WIDTH, 1 << (n - 1).bit_length())


def static_chunks(e: Emitter, operand: str, n: object) -> list[Span] | None:
    """Chunks at constant channels, if an op that `operand` is computed by has boundaries that no chunk may
    cross (the halves of a rotary embedding); None: any width is allowed."""
    cut = next((cuts(e, op) for op, cuts in _with_cuts(e, operand)), None)
    if cut is None:
        return None
    assert isinstance(n, int)
    cuts = sorted({0, *(min(c, n) for c in cut), n})
    return [s for lo, hi in zip(cuts, cuts[1:], strict=False) for s in even_chunks(lo, hi)]


def _with_cuts(e: Emitter, operand: str) -> list[tuple[Op, Callable[[Emitter, Op], Sequence[int]]]]:
    found = ((op, lowering_of(op)) for op in _behind(e, operand))
    return [(op, r.cuts) for op, r in found if r is not None and r.cuts is not None]


def even_chunks(lo: int, hi: int) -> list[Span]:
    """[lo, hi) divided into spans whose lengths are powers of two, at most `LANES`."""
    out: list[Span] = []
    while lo < hi:
        size = min(LANES, 1 << ((hi - lo).bit_length() - 1))
        out.append(Span(Affine.of(lo), size))
        lo += size
    return out


def _behind(e: Emitter, operand: str) -> list[Op]:
    """The ops inside the kernel that a value is computed by, each once: chains of squares read everything
    twice."""
    found: dict[str, Op] = {}
    todo = [operand]
    while todo:
        name = todo.pop()
        op = e.inside.get(name[1:]) if name[0] == "%" else None
        if op is not None and name not in found:
            found[name] = op
            todo += reversed(op.operands)
    return list(found.values())
