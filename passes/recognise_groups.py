"""The rule for convolutions in narrow groups: fewer groups, with zeros for the channels of each other.

In: a convolution whose groups have fewer outputs than a panel of a stored matrix has rows, or no whole
panels. Out: the same with groups joined until each has whole panels, in the worst case to one. Channel by
channel (one input and one output per group) is a kernel of its own.
"""

from __future__ import annotations

import math
from typing import Any, cast

from tilewright.ir.graph.core import Apply, Op
from tilewright.ir.layout import PANEL
from tilewright.passes.rewrite import Declined, Rewrite


def joined_groups(r: Rewrite, op: Op) -> str | None:
    """conv in fewer groups. None if its groups are one, or have whole panels; Declined for computed weights,
    which lie in rows."""
    w, groups = op.operands[1], cast(int, op.attr("groups"))
    matrix = r.old.type(w)
    outputs, columns = (cast(int, d) for d in matrix.shape)
    taps = math.prod(cast("tuple[int, ...]", op.attr("window")))
    if groups == 1 or outputs // groups % PANEL == 0 or (outputs == groups and columns == taps):
        return None
    if w[0] != "@" or matrix.stored[1] is not None:
        raise Declined("its weights are computed, or encoded already")
    together = next(f for f in range(2, groups + 1) if _whole(groups, f, outputs // groups))
    attrs = (("groups", groups), ("taps", taps), ("together", together))
    source = Apply("join_groups", (r.old.weights[w[1:]].source,), attrs)
    stem, _, last = w[1:].rpartition(".")
    name = f"{stem}.joined.{last}" if stem else f"{last}.joined"
    joined = r.b.weight(name, matrix.with_(shape=(outputs, columns * together)), source)
    rest: dict[str, Any] = {**dict(op.attrs), "groups": groups // together}
    return r.b.op("conv", r.b.mapped(op.operands[0]), joined, *map(r.b.mapped, op.operands[2:]), **rest)


def _whole(groups: int, together: int, outputs: int) -> bool:
    """Whether so many groups of so many outputs divide all groups, and are whole panels."""
    return groups % together == 0 and (together == groups or outputs * together % PANEL == 0)
