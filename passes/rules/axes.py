"""Rules that bring ops to the axis along which kernels compute them, the last one.

In: an op over operands of the new graph. Out: the op between transposes or reshapes, which move elements and
change no number; a group norm as a norm of rows, and a long `topk` as the beginning of what is sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from tilewright.ir.graph.core import Op
from tilewright.ir.ops.common import product
from tilewright.ir.types import as_dim
from tilewright.passes.rules.record import Canonical, OpRules, register_rules

#: the longest row and the most elements that `topk` looks for one by one; others are sorted
LONGEST, MOST = 4096, 64
#: elements of a row that are sorted by looking at all others
RUN = 256


# ------------------------------------------------------------------ one axis
def _along_the_last_axis(r: Canonical, op: Op) -> tuple[str, ...] | None:
    """The axis changes places with the last one, and back."""
    rank, axis = r.type(op.operands[0]).rank, cast(int, op.attr("axis"))
    if axis == rank - 1:
        return None
    perm = list(range(rank))
    perm[axis], perm[-1] = perm[-1], perm[axis]
    turned = r.b.op("transpose", op.operands[0], perm=tuple(perm), loc=op.loc)
    made = _again(r, op, [turned], axis=rank - 1)
    return tuple(r.b.op("transpose", y, perm=tuple(perm), loc=op.loc) for y in made)


def _again(r: Canonical, op: Op, operands: Sequence[str], **attrs: object) -> tuple[str, ...]:
    """The same op over other operands, with some attributes changed."""
    given: dict[str, Any] = {**dict(op.attrs), **attrs}
    return r.b.multi(op.name, *operands, loc=op.loc, **given)


def _sorted_beginning(r: Canonical, op: Op) -> tuple[str, ...] | None:
    """The k largest of a long row are the first k once it is sorted."""
    t, k = r.type(op.operands[0]), cast(int, op.attr("k"))
    size = t.shape[-1]
    if isinstance(size, int) and size <= LONGEST and k <= MOST:
        return None
    descending = op.attr("largest") is not False
    found = r.b.multi("sort", op.operands[0], axis=t.rank - 1, descending=descending, loc=op.loc)
    return tuple(r.b.op("slice", y, axis=t.rank - 1, stop=k, loc=op.loc) for y in found)


def _by_merging_runs(r: Canonical, op: Op) -> tuple[str, ...] | None:
    """A long row is sorted in runs, which are merged two by two."""
    size = r.type(op.operands[0]).shape[-1]
    if not isinstance(size, int) or size <= 4 * RUN or op.attr("run"):
        return None
    pair = _again(r, op, op.operands, run=RUN)
    width = RUN
    while width < size:
        pair = r.b.multi("merge_runs", *pair, width=width, descending=op.attr("descending"), loc=op.loc)
        width *= 2
    return pair


# ------------------------------------------------------------------ several axes
def _over_one_axis(r: Canonical, op: Op) -> str | None:
    """A norm over several axes is one over all their elements in a row."""
    x, axis = r.type(op.operands[0]), cast(int, op.attr("axis"))
    if axis == x.rank - 1:
        return None
    count = product(x.shape[axis:])
    rows = r.b.op("reshape", op.operands[0], shape=(*x.shape[:axis], count), loc=op.loc)
    weights = [r.b.op("reshape", w, shape=(count,), loc=op.loc) for w in op.operands[1:]]
    (y,) = _again(r, op, [rows, *weights], axis=axis)
    return r.b.op("reshape", y, shape=x.shape, loc=op.loc)


def _norm_of_rows(r: Canonical, op: Op) -> str:
    """Each group is a row; weight and bias belong to channels."""
    x, groups = r.type(op.operands[0]), cast(int, op.attr("groups"))
    channels = x.shape[1]
    each = channels // groups if isinstance(channels, int) else as_dim(channels / groups)
    rows = (x.shape[0], groups, product((each, *x.shape[2:])))
    split = r.b.op("reshape", op.operands[0], shape=rows, loc=op.loc)
    y = r.b.op("layer_norm", split, eps=op.attr("eps"), axis=2, loc=op.loc)
    for name, per_channel in zip(("mul", "add"), op.operands[1:], strict=False):
        y = y if r.b.type(y).shape == x.shape else r.b.op("reshape", y, shape=x.shape, loc=op.loc)
        column = (x.shape[1], *[1] * (x.rank - 2))
        y = r.b.op(name, y, r.b.op("reshape", per_channel, shape=column, loc=op.loc), loc=op.loc)
    return r.b.op("reshape", y, shape=x.shape, loc=op.loc)


for _rules in (
    OpRules("softmax", (_along_the_last_axis,)),
    OpRules("log_softmax", (_along_the_last_axis,)),
    OpRules("cumsum", (_along_the_last_axis,)),
    OpRules("cumprod", (_along_the_last_axis,)),
    OpRules("sort", (_along_the_last_axis, _by_merging_runs)),
    OpRules("topk", (_along_the_last_axis, _sorted_beginning)),
    OpRules("layer_norm", (_over_one_axis,)),
    OpRules("rms_norm", (_over_one_axis,)),
    OpRules("group_norm", (_norm_of_rows,)),
):
    register_rules(_rules)
