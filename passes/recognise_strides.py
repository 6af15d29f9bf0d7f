"""The rule for windows that move by a stride along rows of pixels which it does not divide: longer rows.

In: an op over windows, on an image of static width. Out: the same on an image with as many pixels more at the
end of each row as are missing; kernels then see neighbouring results in one span of groups of pixels.
"""

from __future__ import annotations

from typing import Any, cast

from tilewright.ir.graph.core import Op
from tilewright.passes.lower.reductions import neutral
from tilewright.passes.rewrite import Declined, Rewrite

#: what the pixels beyond an image count as, by op: the tile operation whose neutral element they are
_FOLDS = {"conv": "add", "max_pool": "max", "sum_pool": "add"}


def whole_strides(r: Rewrite, op: Op) -> str | None:
    """The op on longer rows. None if the stride divides them; Declined if there would be another window."""
    x, steps = op.operands[0], cast("tuple[int, ...]", op.attr("stride"))
    t, padding = r.old.type(x), cast("tuple[int, ...]", op.attr("padding"))
    width, step = t.shape[-2], steps[-1]
    if not isinstance(width, int) or width % step == 0:
        return None
    more = step - width % step
    after = max(padding[-1] - more, 0)
    dilation, window = (cast("tuple[int, ...]", op.attr(k))[-1] for k in ("dilation", "window"))
    room = width + more + padding[-2] + after - dilation * (window - 1) - 1
    if room // step + 1 != op.result.type.shape[-2]:
        raise Declined(f"{more} pixels more in each row would be one window more")
    pads = (*[0] * (2 * t.rank - 3), more, 0, 0)
    fill = neutral(_FOLDS[op.name], t.dtype)
    wide = r.b.op("pad", r.b.mapped(x), pads=pads, value=fill)
    rest: dict[str, Any] = {**dict(op.attrs), "padding": (*padding[:-1], after)}
    return r.b.op(op.name, wide, *map(r.b.mapped, op.operands[1:]), **rest)
