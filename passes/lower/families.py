"""All lowerings, and the kernels of one region.

Importing this module registers the lowering record of every op; each family of ops has a file.
"""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.passes.lower import (
    axis_positions,
    cache,
    convolution,
    encode,
    gather,
    index_maps,
    linear,
    make,
    matmul,
    move,
    ordered,
    packing,
    recurrent,
    reductions,
    rotary,
    rowwise,
    scatter,
    sorting,
)
from tilewright.passes.lower.dims import CannotEmit
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import lowering_of
from tilewright.passes.lower.regions import Region
from tilewright.passes.lower.rows import over_rows

#: the files that register records
FAMILIES = (
    axis_positions, cache, convolution, encode, gather, index_maps, linear, make, matmul, move, ordered,
    packing, recurrent, reductions, rotary, rowwise, scatter, sorting,
)  # fmt: skip


def build_region(module: Module, graph: Graph, region: Region, free: Mapping[str, Op]) -> list[Built]:
    """The kernels of a region, in call order: by the template of its anchor, or else the template for rows.
    CannotEmit says why no single template can compute it."""
    job = Job(module, graph, region, region.inside(free))
    anchors = [
        (op, record.template)
        for op in region.ops
        if (record := lowering_of(op)) is not None and record.template is not None
    ]
    if not anchors:
        return over_rows(job)
    if len(anchors) > 1:
        names = ", ".join(op.name for op, _ in anchors)
        raise CannotEmit(f"{len(anchors)} ops in one region each need a kernel of their own: {names}")
    op, template = anchors[0]
    return template(job, op)
