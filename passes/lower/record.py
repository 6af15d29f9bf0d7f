"""The lowering record of an op: how it becomes a kernel or part of one.

One record per op, registered in the file that lowers the op; `fuse`, `lower` and the passes that store
weights read records, never names.

In: an op. Out: its record, None if no kernel computes it. A record does not depend on the graph around its
op: `legality` decides which ops may share a kernel.
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
    """The form of a region around the op.

    pointwise: each element by itself, in the kernel of the ops around it. rows: reads along the rows of its
    operands, or whole rows, with statistics computed once per row. reduction: removes axes. contraction: a
    template, which pointwise ops may follow. attention: a kernel of its own over a cache. append: writes rows
    to a cache, possibly in one kernel with other work on rows. view: an index map without work. constant:
    computed where it is read. alone: a kernel that holds nothing else.
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
    """The operand of a contraction that may be a weight: [N, K], or [E, N, K] with `experts`. N runs along
    the last axis of the result; K is contracted with the last axis of operand `times`, or runs over a window
    of it, with its last axis innermost (`windows`).
    """

    operand: int = 1
    times: int = 0
    experts: bool = False
    windows: bool = False


def _no_part(op: Op, width: int) -> bool:
    return False


@dataclass(frozen=True)
class ViewForm:
    """An index map. `coordinates(op, result, at, shapes)`: where an element of the result lies in the
    operand; `alias`: of plain memory it is the same bytes under another shape; `aligned`: coordinates
    correspond from the last axis on, so that leading axes may be collapsed into one; `equal_part(op, width)`:
    whether each result is one of the equal parts, `width` long, of the operand's last axis.
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
    with `emit` or `effect` and without a template is computed in the template for rows.

    What it reads: `whole`: operands that must be whole values in memory (a view of a part of a wider value is
    copied first); `picks`: the operand whose rows are picked at run time, never a value of the same kernel;
    `rows`: operands whose rows its kernel runs over, through which it joins the kernel of their producer
    (None: all). `matrix`, `table`: the operand that may be a weight: contracted, or looked up by row.

    What may share its kernel: `epilogue`: pointwise ops that follow it; `siblings`: ops on other parts of the
    same contraction's result; `together`: other ops of the same kind that do not depend on it. `cuts`:
    positions along the last axis that no chunk may cross, for ops that need constant channels.
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
        """The form of this op, which may also depend on its attributes and encodings."""
        return self.form if isinstance(self.form, Form) else self.form(op)


LOWERINGS: dict[str, Lowering] = {}


def register_lowering(record: Lowering) -> Lowering:
    """Add a record. Raises OpTypeError if the op has one already."""
    if record.op in LOWERINGS:
        raise OpTypeError(f"op {record.op!r} has a lowering already")
    LOWERINGS[record.op] = record
    return record


def lowering_of(op: Op | str) -> Lowering | None:
    """The record of an op; a pointwise op needs none, its expression is its lowering. None: no kernel can
    compute it."""
    name = op if isinstance(op, str) else op.name
    found = LOWERINGS.get(name)
    if found is None and name in OPS and OPS[name].expr is not None:
        return Lowering(name, Form.POINTWISE, rows=None)
    return found


def form_of(op: Op) -> Form:
    """The form of an op; an op without a lowering is alone in its region, and has no kernel."""
    record = lowering_of(op)
    return Form.ALONE if record is None else record.form_of(op)


def is_view(op: Op) -> bool:
    return form_of(op) is Form.VIEW


def is_alias(op: Op) -> bool:
    """Whether an op names the same bytes under another shape."""
    record = lowering_of(op)
    return record is not None and record.view is not None and record.view.alias


def matrix_of(op: Op) -> Matrix | None:
    """The operand of a contraction that may be a weight; None for other ops."""
    record = lowering_of(op)
    return None if record is None else record.matrix
