"""Questions to the axis roles of an op's record: what it does to each axis of what it reads.

In: an op and the types of its operands. Out: axes, and whether the op commutes with a matrix along channels.
Knows no particular op.
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


def channel_operands(op: Op, type_of: Callable[[str], TensorType]) -> dict[int, int]:
    """Operands, each with one of its axes: multiplied by a matrix along these, they give the result
    multiplied by it along its last axis. So it is where the op is linear in them, keeps these axes as that
    one, and reads nothing else that varies along it. Empty: the op has no such operands."""
    record = OPS[op.name]
    if record.state or len(op.results) != 1:
        return {}
    last = op.result.type.rank - 1
    along = [
        [axis for axis, role in enumerate(roles) if role[0] != "broadcast" and role[1:] == (last,)]
        for roles in roles_of(op, type_of)
    ]
    for group in record.linear:
        members = [n for n in group if n < len(op.operands)]
        others = [n for n in range(len(op.operands)) if n not in members]
        if any(along[n] for n in others) or any(len(along[n]) != 1 for n in members):
            continue
        found = {n: along[n][0] for n in members}
        if all(roles_of(op, type_of)[n][axis][0] == "keep" for n, axis in found.items()):
            return found
    return {}
