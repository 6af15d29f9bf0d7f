"""The lowering record of an op: how it becomes a kernel or a part of one.

One record per op, registered beside the op's lowering; `fuse`, `lower` and the passes that store weights read
records, never names.

In: an op. Out: its record, None if no kernel computes it. A record knows nothing of the graph around its op:
which ops may share a kernel is `legality`'s question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from tilewright.ir.affine import Affine
from tilewright.ir.graph.core import Op
from tilewright.ir.ops.base import OPS, OpTypeError
from tilewright.ir.tile.builder import Tile

if TYPE_CHECKING:
    from tilewright.passes.lower.emit import Coords, Emitter
    from tilewright.passes.lower.job import Built, Job
    from tilewright.passes.lower.views import View


class Form(StrEnum):
    """What a region around the op looks like.

    pointwise: each element by itself, in the kernel of whatever is around it. rows: looks along one rows
    operand, or takes whole rows; statistics once per row. reduction: removes axes. contraction: a template
    that pointwise work may follow. attention: a kernel of its own over a cache. append: writes rows to a
    cache beside other work on rows. view: an index map, no work. constant: made where it is read. alone: a
    kernel that holds nothing else.
    """

    POINTWISE = "pointwise"
    ROWS = "rows"
    REDUCTION = "reduction"
    CONTRACTION = "contraction"
    ATTENTION = "attention"
    APPEND = "append"
    VIEW = "view"
    CONSTANT = "constant"
    ALONE = "single"


@dataclass(frozen=True)
class Matrix:
    """The operand of a contraction where a weight may stand: [N, K], or [E, N, K] with `experts`. N runs
    along the last axis of the result; K is contracted with the last axis of operand `times`.
    """

    operand: int = 1
    times: int = 0
    experts: bool = False


def _no_part(op: Op, width: int) -> bool:
    return False


@dataclass(frozen=True)
class ViewForm:
    """An index map. `coordinates(op, result, at, shapes)`: where an element of the result lies in the
    operand; `alias`: of plain memory it is the same bytes under another shape; `aligned`: coordinates meet at
    the last axis, so that leading axes may be seen as one; `equal_part(op, width)`: whether each result is
    one of the equal parts, `width` long, of the operand's last axis.
    """

    coordinates: Callable[[Op, str, Coords, Callable[[str], tuple[object, ...]]], View]
    alias: bool = False
    aligned: bool = False
    equal_part: Callable[[Op, int], bool] = _no_part


@dataclass(frozen=True)
class Lowering:
    """One op's lowering.

    How it is computed: `emit` gives its value at coordinates inside any kernel, `view` maps coordinates,
    `template` builds kernels around it, `effect` writes memory for one instance of a grid over rows. An op
    with `emit` or `effect` and no template stands in the template for rows.

    What it reads: `whole`: operands that must lie in memory as they are, a view that is a part of a wider
    value being copied first; `picks`: the operand whose rows are picked at run time, never a value of the
    same kernel; `rows`: operands whose rows its kernel runs over, through which it joins the kernel of their
    producer (None: all). `matrix`, `table`: where a weight stands: contracted, or looked up by row.

    What stands beside it: `epilogue`: pointwise work may follow in its kernel; `siblings`: it shares a kernel
    with work on other parts of the same contraction's result; `together`: equal ops side by side share a
    kernel; `cuts`: places along the last axis that no chunk may cross, for ops that need constant
    channels.
    """

    op: str
    form: Form | Callable[[Op], Form]
    emit: Callable[[Emitter, Op, Coords], Tile] | None = None
    view: ViewForm | None = None
    template: Callable[[Job, Op], list[Built]] | None = None
    effect: Callable[[Job, Emitter, Op, Sequence[Affine]], None] | None = None
    whole: tuple[int, ...] = ()
    picks: int | None = None
    rows: tuple[int, ...] | None = (0,)
    matrix: Matrix | None = None
    table: int | None = None
    epilogue: bool = False
    siblings: bool = False
    together: bool = False
    cuts: Callable[[Emitter, Op], Sequence[int]] | None = None

    def form_of(self, op: Op) -> Form:
        """The form, where attributes or encodings of the op decide it too."""
        return self.form if isinstance(self.form, Form) else self.form(op)


LOWERINGS: dict[str, Lowering] = {}


def register_lowering(record: Lowering) -> Lowering:
    """Add a record. Raises OpTypeError if the op has one already."""
    if record.op in LOWERINGS:
        raise OpTypeError(f"op {record.op!r} has a lowering already")
    LOWERINGS[record.op] = record
    return record


def lowering_of(op: Op | str) -> Lowering | None:
    """The record of an op; a pointwise op needs none, its expression is its lowering. None: no kernel
    computes it."""
    name = op if isinstance(op, str) else op.name
    found = LOWERINGS.get(name)
    if found is None and name in OPS and OPS[name].expr is not None:
        return Lowering(name, Form.POINTWISE, rows=None)
    return found


def form_of(op: Op) -> Form:
    """The form of an op; one without a lowering stands alone, and has no kernel there either."""
    record = lowering_of(op)
    return Form.ALONE if record is None else record.form_of(op)


def is_view(op: Op) -> bool:
    return form_of(op) is Form.VIEW


def is_alias(op: Op) -> bool:
    """Whether an op names the same bytes under another shape."""
    record = lowering_of(op)
    return record is not None and record.view is not None and record.view.alias


def matrix_of(op: Op) -> Matrix | None:
    """Where the weight of a contraction stands; None for other ops."""
    record = lowering_of(op)
    return None if record is None else record.matrix
