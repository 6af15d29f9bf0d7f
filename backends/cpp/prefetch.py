"""Prefetches the cache lines of packed parameters that a loop will read some iterations later.

In: a loop whose variable the schedule names. Out: one prefetch per cache line, spread over the dots of the
body, or over the iterations of its only inner loop, since a burst of prefetches would fill the line buffers
that loads need. Results never change. In blocks of at most as many rows as the schedule's option `foreseen`,
processors whose hardware prefetcher follows these streams skip them (`tw_ahead` of the runtime's header).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tilewright.backends.cpp.address import Carries, coordinates, coordinates_at, offsets, place_of
from tilewright.backends.cpp.context import Bound, Context
from tilewright.backends.cpp.nodes import Item, LoopNode, Node, StoreNode, reachable, upstream
from tilewright.backends.cpp.target import BYTES
from tilewright.ir.affine import Affine

LINE = 64
DOTS = ("dot", "bit_dot")
Lines = dict[tuple[str, Affine], set[int]]
#: the declaration that a kernel needs if it tests `tw_ahead`
DECLARED = """#ifndef TW_AHEAD
#define TW_AHEAD
extern "C" { extern __attribute__((visibility("hidden"))) int tw_ahead; }
#endif
"""


def _fetch(ctx: Context, address: str) -> str:
    few = ctx.height <= dict(ctx.schedule.options).get("foreseen", -1)
    return f"{'if (tw_ahead) ' if few else ''}__builtin_prefetch({address});"


def prefetch(ctx: Context, s: LoopNode, name: str) -> None:
    """Decide what the loop's body prefetches; `trickle` and `flush` emit it."""
    ctx.ahead, handed = [], ctx.handed.pop(id(s), [])
    for pointer, base in handed:
        ctx.ahead.append(_fetch(ctx, f"{pointer} + {ctx.text(base, 8)}"))
    distance = dict(ctx.schedule.prefetch).get(name)
    if not distance or id(s) in ctx.fetched:
        return
    inner = _only_loop(s)
    for (pointer, terms), where in _lines(ctx, s, inner, distance).items():
        if inner is None:
            more = _onwards(ctx, s, terms, distance)
            ctx.ahead += [
                _fetch(ctx, f"{pointer} + {ctx.text(terms + at * 8, 8)}{more}") for at in sorted(where)
            ]
            continue
        starts = range(min(where), max(where) + LINE, LINE)
        ctx.handed.setdefault(id(inner), []).extend(_shares(pointer, terms, starts, inner))


def _onwards(ctx: Context, s: LoopNode, terms: Affine, distance: int) -> str:
    """C++ term that, near the end of the loop, moves the address from beyond the last iteration to the first
    iterations of the next column tile; empty if there is none."""
    span, step = s.hi - s.lo, terms.coefficient(f"i_{s.var}")
    tile = next((c for n, c in terms.terms if n in {f"b_{a.var}" for a in ctx.kernel.grid if not a.rows}), 0)
    if not span.is_const or not tile:
        return ""
    trips = int(span.const) // s.step
    beyond = int(tile - step * trips) // 8
    if not beyond:
        return ""
    return " + " + ctx.let(ctx.here, "int64_t", f"i_{s.var} >= {trips - distance} ? {beyond} : 0")


def whole(ctx: Context, items: Sequence[Item]) -> None:
    """Before the first of several loops: prefetch all that the later ones read, if the schedule names
    them."""
    scheduled = dict(ctx.schedule.prefetch)
    for s in [x for x in items if isinstance(x, LoopNode)][1:]:
        span = s.hi - s.lo
        if s.var not in scheduled or not span.is_const:
            continue
        saved, ctx.vars = (
            ctx.vars,
            {**ctx.vars, s.var: ctx.resolve(s.lo, s.scalars) + Affine(((f"i_{s.var}", s.step),))},
        )
        ctx.bounds[f"i_{s.var}"], ctx.extents[f"i_{s.var}"] = (
            Bound(span - s.step, s.step),
            max(int(span.const) // s.step, 1),
        )
        for (pointer, base), where in _lines(ctx, s, None, 0).items():
            step, last = base.coefficient(f"i_{s.var}"), (int(span.const) - 1) // s.step
            first = base - Affine(((f"i_{s.var}", step),)) if step else base
            ends = (min(where), max(where) + int(step) * last // 8)
            for at in range(ends[0], ends[1] + 1, LINE):
                ctx.emit(_fetch(ctx, f"{pointer} + {ctx.text(first + at * 8, 8)}"))
        ctx.vars = saved
        del ctx.bounds[f"i_{s.var}"], ctx.extents[f"i_{s.var}"]
        ctx.fetched.add(id(s))


def beside(ctx: Context, items: Sequence[Item]) -> None:
    """If the schedule has the option `epilogue`: prefetch the epilogue's operands before the contraction
    begins."""
    loops = [
        k
        for k, s in enumerate(items)
        if isinstance(s, LoopNode) and any(n.op in DOTS for n in upstream(s.yields))
    ]
    if not loops or not dict(ctx.schedule.options).get("epilogue"):
        return
    rows = {a.var for a in ctx.kernel.grid if a.rows}
    params = {b.name for b in ctx.kernel.params}.difference(ctx.kernel.written())
    later = [s.value for s in items[loops[-1] + 1 :] if isinstance(s, StoreNode)]
    for node in upstream(later):
        if node.op != "load" or node.args or node.source.name not in params or not rows & node.roots:
            continue
        known = all(r in ctx.roots or r in ctx.vars or r.startswith("buffer:") for r in node.roots)
        if node.source.encoding or node.source.record or not known:
            continue
        place = place_of(ctx, node.source, node.stream)
        across = LINE // BYTES[node.dtype]
        for pos in itertools.product(*[range(n) for n in node.shape[:-1]], range(0, node.shape[-1], across)):
            base, _ = offsets(ctx, place, coordinates(ctx, place, node.index, node.scalars, pos, ()))
            ctx.emit(f"__builtin_prefetch({place.pointer} + {ctx.text(base, 8)});")


def trickle(ctx: Context, dots: Sequence[Node]) -> None:
    """Emit a share of the remaining prefetches; called at every step of the body's dots."""
    if ctx.ahead:
        steps = sum(a.shape[1] * BYTES[a.dtype] // 4 for a in {n.args[1] for n in dots})
        for _ in range(-(-ctx.planned // max(steps, 1))):
            if ctx.ahead:
                ctx.emit(ctx.ahead.pop(0))


def flush(ctx: Context) -> None:
    """Emit the remaining prefetches, at the end of the body."""
    for text in ctx.ahead:
        ctx.emit(text)
    ctx.ahead = []


def _only_loop(s: LoopNode) -> LoopNode | None:
    loops = [x for x in s.body if isinstance(x, LoopNode)]
    return loops[0] if len(loops) == 1 and (loops[0].hi - loops[0].lo).is_const else None


def _shares(pointer: str, terms: Affine, starts: Sequence[int], inner: LoopNode) -> list[tuple[str, Affine]]:
    """Consecutive lines distributed over the iterations of the inner loop; the last iteration may fetch a few
    lines too many."""
    trips = max(int((inner.hi - inner.lo).const) // inner.step, 1)
    each = -(-len(starts) // trips)
    base = terms + Affine(((f"i_{inner.var}", 8 * LINE * each),)) + 8 * starts[0]
    return [(pointer, base + 8 * LINE * n) for n in range(each)]


def _lines(ctx: Context, s: LoopNode, inner: LoopNode | None, distance: int) -> Lines:
    """The start of every line, by pointer and terms of the address. Of an inner loop, only the lines of its
    first and last iteration, which delimit the others. Data that differs from row to row is not prefetched,
    since it is read repeatedly."""
    params = {b.name for b in ctx.kernel.params}
    rows = {f"r_{a.var}" for a in ctx.kernel.grid if a.rows}
    lines: Lines = {}
    ctx.roots[s.var] = ctx.here
    ctx.names[f"i_{s.var}"] = ctx.here
    ends: list[Affine | None] = [None] if inner is None else [inner.lo, inner.hi - inner.step]
    body = [
        *s.body,
        *(inner.body if inner else ()),
        LoopNode(s.var, s.lo, s.hi, s.step, [], [], s.yields, [], [], {}),
    ]
    found = [
        n
        for n in reachable(body)
        if n.op == "load" and n.source.name in params and s.var in n.roots and not n.args
    ]
    for end in ends:
        if inner is not None and end is not None:
            ctx.vars[inner.var] = ctx.resolve(end, {})
        for node in found:
            _lines_of(ctx, node, s, distance, lines, inner is not None)
    if inner is not None:
        del ctx.vars[inner.var]
    return {(p, terms): where for (p, terms), where in lines.items() if not rows & set(terms.names)}


def _lines_of(ctx: Context, node: Node, s: LoopNode, distance: int, lines: Lines, ends: bool) -> None:
    place = place_of(ctx, node.source, node.stream)
    if not place.padded or any(place.factors) and not node.source.record and not node.source.encoding:
        return
    if any(ctx.roots.get(n.name, 0) > ctx.here for n in node.scalars.values()) or any(
        r not in ctx.roots and r not in ctx.vars for r in node.roots if "#" not in r and ":" not in r
    ):
        return
    coords = _corners(node.shape) if ends else np.indices(node.shape).reshape(len(node.shape), -1).T
    for group in (
        [coords] if not any(place.factors) else np.split(coords, len(coords))
    ):  # run-time strides: one by one
        try:
            base, rel = offsets(ctx, place, coordinates_at(ctx, place, node.index, node.scalars, group, {}))
        except Carries:
            return
        ahead = distance * int(base.coefficient(f"i_{s.var}"))
        starts = (int(base.const) + ahead + rel) // (8 * LINE) * LINE
        lines.setdefault((place.pointer, Affine(base.terms)), set()).update(np.unique(starts).tolist())


def _corners(shape: Sequence[int]) -> NDArray[np.int64]:
    """The first and the last element along every axis, in all combinations."""
    ends = [(0, n - 1) for n in shape]
    return np.array(list(itertools.product(*ends)), np.int64).reshape(-1, len(shape))
