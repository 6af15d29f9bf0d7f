"""Whether an op may join a region: rules over lowering records, axis roles and shapes.

In: the regions so far, an op, a region. Out: why not, or an empty string. Knows no op by name; that the
region's kernel can be written at all is `lower.legality`'s question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tilewright.ir.graph.core import Op
from tilewright.ir.ops.common import same_shape
from tilewright.ir.types import TensorType
from tilewright.passes.axis_roles import worked_axes
from tilewright.passes.lower.record import Form, form_of, is_alias, is_view, lowering_of
from tilewright.passes.patterns import View


@dataclass
class Region:
    """Ops of one kernel to be. `before`: numbers of all regions this one waits for, as bits; `lead`: the axes
    that its grid runs over."""

    number: int
    form: Form
    ops: list[Op] = field(default_factory=list)
    before: int = 0
    lead: tuple[object, ...] | None = None

    def add(self, op: Op, type_of: Callable[[str], TensorType]) -> None:
        self.ops.append(op)
        if self.lead is None:
            self.lead = lead_of(op, type_of)


class Regions(Protocol):
    """What the rules ask: the graph, views and constants by result, each value's region."""

    view: View
    free: dict[str, Op]
    home: dict[str, Region]

    def bases(self, operand: str) -> tuple[str, ...]: ...


def refusal(s: Regions, op: Op, region: Region, rows: bool, epilogues: bool) -> str:
    """Why the op may not join, or an empty string. `rows`, `epilogues`: whether such fusion is on."""
    form = form_of(op)
    if region.form is Form.CONTRACTION:
        if not epilogues or form is not Form.POINTWISE:
            return "only pointwise ops can follow a contraction in its kernel"
        return _epilogue_refusal(s, op, region)
    if region.form is Form.ROWS:
        return _rows_refusal(s, op, form, region) if rows else "fusion along rows is off"
    return f"a region of kind {region.form} contains a single op"


# ------------------------------------------------------------------ after a contraction
def _epilogue_refusal(s: Regions, op: Op, region: Region) -> str:
    """The result's rows are the contraction's, its columns all of them or one of the equal parts that the
    region works on."""
    anchor = region.ops[0]
    record = lowering_of(anchor)
    if record is None or not record.epilogue:
        return f"{anchor.name} needs a kernel of its own"
    shape, whole = op.result.type.shape, anchor.result.type.shape
    if len(shape) != len(whole) or not same_shape(shape[:-1], whole[:-1]):
        return f"its shape {list(shape)} has different rows than {list(whole)}"
    part, n = shape[-1], whole[-1]
    if not isinstance(part, int) or not isinstance(n, int) or not part or n % part:
        return f"{part} columns do not divide {n}"
    for o in op.operands:
        for b in s.bases(o):
            if s.home.get(b) is region and not _is_equal_part(s, o, b, part):
                return f"it reads {b} through a view that is not an equal part of its columns"
    if op.operands and _other_width_leaves(s, region, op, part):
        return "the region would have results of two widths"
    return ""


def _is_equal_part(s: Regions, operand: str, base: str, part: int) -> bool:
    """Whether `operand` is `base` itself or a column part at a multiple of the part's width."""
    if operand == base:
        return True
    view = s.free[operand[1:]]
    record = lowering_of(view)
    if view.operands[0] != base or record is None or record.view is None:
        return False
    return record.view.equal_part(view, part)


def _other_width_leaves(s: Regions, region: Region, op: Op, part: int) -> bool:
    """Values of the region whose last axis differs from the new result's must be read by this region
    alone."""
    inside = {id(o) for o in region.ops} | {id(op)}
    return any(
        r.type.shape[-1] != part and not _only_inside(s, f"%{r.name}", inside)
        for member in region.ops
        for r in member.results
    )


def _only_inside(s: Regions, operand: str, inside: set[int]) -> bool:
    if operand in s.view.graph.outputs:
        return False
    for user in s.view.users.get(operand, []):
        if is_view(user):
            if not all(_only_inside(s, f"%{r.name}", inside) for r in user.results):
                return False
        elif id(user) not in inside and not _will_follow(s, user, inside):
            return False
    return True


def _will_follow(s: Regions, user: Op, inside: set[int]) -> bool:
    """A reader not placed yet that only reads this region and is itself pointwise: the other half of gate *
    up."""
    if form_of(user) is not Form.POINTWISE or any(f"%{r.name}" in s.home for r in user.results):
        return False
    makers = [b for o in user.operands for b in s.bases(o)]
    return all(b not in s.home or id(s.view.producers[b[1:]]) in inside for b in makers)


# ------------------------------------------------------------------ along rows
def _rows_refusal(s: Regions, op: Op, form: Form, region: Region) -> str:
    """Both run over the same leading axes, and look along the last one only."""
    record = lowering_of(op)
    assert record is not None
    lead = lead_of(op, s.view.type)
    if region.lead is not None and lead is not None and not _prefix(lead, region.lead):
        return f"its leading axes {list(lead)} are not {list(region.lead)}"
    if form in (Form.ROWS, Form.REDUCTION) and record.picks is None and not _along_rows(s, op):
        return f"{op.name} does not work along the last axis"
    if form is not Form.APPEND and record.cuts is None and any(_recut(s, o, region) for o in op.operands):
        return "its rows are slices of values of another shape"
    if record.picks is not None and _inside(s, op.operands[record.picks], region):
        return "rows are gathered from values in memory"
    if any(form_of(n) is Form.REDUCTION and not _along_rows(s, n) for n in region.ops):
        return "it contains a reduction along an inner axis"
    return ""


def _along_rows(s: Regions, op: Op) -> bool:
    """Whether the op works along the last axis of its first operand and keeps all others: by its axis
    roles."""
    return worked_axes(op, s.view.type) == (s.view.type(op.operands[0]).rank - 1,)


def _recut(s: Regions, operand: str, region: Region) -> bool:
    """Whether a view between a value of the region and its reader changes the length of rows."""
    return any(s.home.get(b) is region and operand != b and _reshaped(s, operand) for b in s.bases(operand))


def _reshaped(s: Regions, operand: str) -> bool:
    op = s.free.get(operand[1:])
    while op is not None and is_view(op):
        old = s.view.type(op.operands[0]).shape
        if is_alias(op) and old[-1:] != op.result.type.shape[-1:]:
            return True
        op = s.free.get(op.operands[0][1:])
    return False


def _inside(s: Regions, operand: str, region: Region) -> bool:
    return any(s.home.get(b) is region for b in s.bases(operand))


def lead_of(op: Op, type_of: Callable[[str], TensorType]) -> tuple[object, ...] | None:
    """Leading axes of what the op makes: tokens, for values per head too."""
    record = lowering_of(op)
    if form_of(op) is Form.APPEND:
        return type_of(op.operands[1]).shape[:1]
    shape = op.results[0].type.shape if op.results else ()
    if not shape:
        return None
    heads = record is not None and record.cuts is not None or len(shape) == 3
    return shape[:1] if heads else shape[:-1]


def _prefix(a: Sequence[object], b: Sequence[object]) -> bool:
    """Whether the shorter list starts the longer."""
    return bool(a) and bool(b) and all(x == y for x, y in zip(a, b, strict=False))
