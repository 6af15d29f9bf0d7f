"""Questions to the axis roles of an op's record: what it does to each axis of what it reads.

In: an op and the types of its tensor operands. Out: axes. Knows no particular op.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.ir.graph.core import Op
from tilewright.ir.ops.base import OPS, AxisRole
from tilewright.ir.types import TensorType

#: roles of an axis each of whose places feeds only its own place of the result
SEPARATE = ("keep", "broadcast")


def roles_of(op: Op, type_of: Callable[[str], TensorType]) -> Sequence[Sequence[AxisRole]]:
    """Roles by tensor operand and axis; the state of an op on states is left out."""
    record = OPS[op.name]
    types = [type_of(o) for o in op.operands[bool(record.state) :]]
    return record.axes(types, dict(op.attrs))


def worked_axes(op: Op, type_of: Callable[[str], TensorType], operand: int = 0) -> tuple[int, ...]:
    """Axes of an operand that the op reduces, mixes or shifts: along these a loop over the result cannot
    run."""
    return tuple(n for n, role in enumerate(roles_of(op, type_of)[operand]) if role[0] not in SEPARATE)
