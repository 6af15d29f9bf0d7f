"""Prefetch: the cache lines that a loop's packed parameters will need some iterations ahead.

In: a loop whose variable the schedule names. Out: one prefetch a line in the open scope. Never changes a result.
"""

from __future__ import annotations

from tilewright.backends.cpp.address import Carries, coordinates, offsets, place_of
from tilewright.backends.cpp.context import Context
from tilewright.backends.cpp.nodes import LoopNode, Node, reachable
from tilewright.backends.cpp.units import units
from tilewright.ir.affine import Affine


def prefetch(ctx: Context, s: LoopNode, name: str) -> None:
    """The cache lines that this loop's packed parameters will need some iterations ahead."""
    distance = dict(ctx.schedule.prefetch).get(name)
    if not distance:
        return
    params = {b.name for b in ctx.kernel.params}
    lines: dict[tuple[str, Affine], set[int]] = {}
    ctx.roots[s.var] = ctx.here
    ctx.names[f"i_{s.var}"] = ctx.here
    for node in reachable(s.body + [LoopNode(s.var, s.lo, s.hi, s.step, [], [], s.yields, [], [], {})]):
        if node.op != "load" or node.source.name not in params or s.var not in node.roots or node.args:
            continue
        _lines_of(ctx, node, s, distance, lines)
    for (pointer, terms), where in lines.items():
        for at in sorted(where):
            ctx.emit(f"__builtin_prefetch({pointer} + {ctx.text(terms + at * 8, 8)});")


def _lines_of(ctx: Context, node: Node, s: LoopNode, distance: int, lines: dict[tuple[str, Affine], set[int]]) -> None:
    place = place_of(ctx, node.source, node.stream)
    if not place.padded or any(place.factors) and not node.source.record and not node.source.encoding:
        return
    if any(ctx.roots.get(n.name, 0) > ctx.here for n in node.scalars.values()) or any(
        r not in ctx.roots and r not in ctx.vars for r in node.roots if "#" not in r and ":" not in r
    ):
        return
    for pos in units(node.shape, ()):
        try:
            base, _ = offsets(ctx, place, coordinates(ctx, place, node.index, node.scalars, pos, ()))
        except Carries:
            return
        ahead = distance * int(base.coefficient(f"i_{s.var}"))
        lines.setdefault((place.pointer, Affine(base.terms)), set()).add((int(base.const) + ahead) // 512 * 64)
