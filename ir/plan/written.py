"""Rule 12 of plans: everything that is read, and every result, has been completely written by earlier calls.

In: a plan whose sizes are proved (`plan.bounds`). The ranges of its symbols are divided into cases, in each
of which every condition either holds or does not; in each case the boxes that kernels fill (`tile.cover`) are
combined. Stores that cannot be analysed count as not written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tilewright.ir.plan.bounds import PlanSizes, sizes_of
from tilewright.ir.plan.core import Call, Program
from tilewright.ir.plan.dim_bounds import (
    ZERO,
    NotWhole,
    Poly,
    Ranges,
    at_most,
    bounds,
    polynomial,
    product,
    substituted,
)
from tilewright.ir.plan.step import STEP, STEP_INPUTS
from tilewright.ir.text.plan_printer import call_text
from tilewright.ir.tile.core import Buffer, Condition, Kernel
from tilewright.ir.tile.cover import Box, Table, filled, loaded
from tilewright.ir.types import as_dim

#: most cases that conditions may distinguish
MAX_CASES = 4096
#: offsets from a condition's value at which its truth changes, by operator
_PAST = {"<=": (1,), "<": (0,), ">=": (0,), ">": (1,), "==": (0, 1)}
_DECLARE = "let earlier calls store every element, under conditions that cover all cases"
Ends = tuple[Poly, Poly]


def check_sizes(program: Program) -> None:
    """Raise VerifyError for the first rule among 9 to 13 that a plan violates. The rules of `plan.verify`
    must hold."""
    for sizes in sizes_of(program):
        for case in cases(sizes):
            _Case(sizes, case).check()


# ------------------------------------------------------------------ cases
def cases(plan: PlanSizes) -> Iterator[Ranges]:
    """The symbols' ranges, divided so that every condition holds for all values of a case or for none; 0 is a
    case of its own."""
    cuts: dict[str, set[int]] = {
        n: {1} if lo == 0 and n != "slots" else set() for n, (lo, _) in plan.ranges.items()
    }
    for c in plan.plan.calls:
        for w in c.when:
            p = meant(plan, c, w)
            for name in p.symbols():
                cuts[name] |= {w.value + past for past in _PAST[w.op]}
    parts = [list(_cut(plan.ranges[n], at)) for n, at in cuts.items()]
    count = 1
    for part in parts:
        count *= len(part)
    if count > MAX_CASES:
        raise plan.fail(12, f"conditions distinguish {count} cases, at most {MAX_CASES} are checked")
    for case in itertools.product(*parts):
        yield dict(zip(cuts, case, strict=True))


def meant(plan: PlanSizes, c: Call, w: Condition) -> Poly:
    """The symbol of the program that a condition tests; a kernel's symbol must be bound to one."""
    p = plan.values(c).get(w.symbol) or polynomial(as_dim(w.symbol))
    if p not in [Poly.of(n) for n in p.symbols()]:
        raise plan.fail(
            12,
            f"a condition on {w.symbol}, which is bound to {p}: expected a symbol of the program",
            call_text(c),
        )
    return p


def _cut(ends: tuple[int, int], at: set[int]) -> Iterator[tuple[int, int]]:
    """A range divided before each of these values."""
    lo, hi = ends
    for value in sorted(v for v in at if lo < v <= hi):
        yield lo, value - 1
        lo = value
    yield lo, hi


@dataclass
class _Written:
    """What calls have written of one buffer so far: the streams that are complete, and boxes by the shape
    under which they were written."""

    whole: set[str] = field(default_factory=set)
    boxes: dict[tuple[str, tuple[Poly, ...]], list[tuple[tuple[Poly, Poly], ...]]] = field(
        default_factory=dict
    )


class _Case:
    """Follows what calls write and read, for the values of the symbols in one case."""

    def __init__(self, plan: PlanSizes, ranges: Ranges) -> None:
        self.plan, self.ranges = plan, ranges
        self.written: dict[str, _Written] = {}

    def check(self) -> None:
        for c in self.plan.plan.calls:
            if all(self.holds(c, w) for w in c.when):
                self.call(c)
        for name, ref in (*self.plan.plan.outputs, *self.plan.plan.counted):
            if ref in self.plan.buffers and not self.whole(ref):
                message = f"result {name}: {ref} is not known to be completely written{self.said()}"
                raise self.plan.fail(12, message, self.plan.types[ref][1], _DECLARE)

    def holds(self, c: Call, w: Condition) -> bool:
        return Condition("x", w.op, w.value).holds({"x": bounds(meant(self.plan, c, w), self.ranges)[0]})

    def said(self) -> str:
        """The case as text, for messages; empty if it covers all values."""
        parts = [
            f"{n} = {lo}" if lo == hi else f"{n} from {lo} to {hi}"
            for n, (lo, hi) in self.ranges.items() if (lo, hi) != self.plan.ranges[n]
        ]  # fmt: skip
        return f" for {', '.join(parts)}" if parts else ""

    def call(self, c: Call) -> None:
        kernel, values = self.plan.kernels[c.kernel], self.plan.values(c)
        if all(self.empty(kernel, s, values) for s in _sizes(kernel)):
            return  # no instance runs
        reads = loaded(kernel)
        for param, arg in zip(kernel.params, c.args, strict=True):
            if param.name in reads and param.encoding is not None:
                self.inhabited(param, values, c)
            if param.name in reads and arg in self.plan.buffers and not self.whole(arg):
                message = f"reads {arg}, which is not known to be completely written{self.said()}"
                raise self.plan.fail(12, message, call_text(c), _DECLARE)
        boxes = filled(kernel)
        for param, arg in zip(kernel.params, c.args, strict=True):
            if param.name in boxes and arg in self.plan.buffers:
                self.fill(kernel, param, arg, boxes[param.name], values, c)

    def empty(self, kernel: Kernel, sizes: Mapping[str, int], values: Mapping[str, Poly]) -> bool:
        return any(
            bounds(substituted(a.extent.bind(sizes), values), self.ranges)[1] <= 0 for a in kernel.grid
        )

    def inhabited(self, param: Buffer, values: Mapping[str, Poly], c: Call) -> None:
        """Checks that a packed parameter is not empty, since packed buffers are read without masks."""
        for d in self.plan.spans(param, values, c).dims:
            if bounds(d, self.ranges)[0] < 1:
                message = (
                    f"parameter %{param.name} may be empty (dimension {d} is 0) while the kernel "
                    f"runs{self.said()}"
                )
                raise self.plan.fail(
                    10,
                    message,
                    call_text(c),
                    "let a grid axis span that dimension, or raise the symbol's minimum",
                )

    # -------------------------------------------------------- what is complete
    def whole(self, ref: str) -> bool:
        if bounds(product(self.plan.stored[ref].dims), self.ranges)[1] == 0:
            return True
        return ref in self.written and self.plan.streams[ref] <= self.written[ref].whole

    def fill(
        self, kernel: Kernel, param: Buffer, arg: str, boxes: Sequence[Box], values: Mapping[str, Poly],
        c: Call
    ) -> None:  # fmt: skip
        spans, has = self.plan.spans(param, values, c), self.plan.stored[arg]
        if not (has.fits(spans, self.ranges)):
            return  # the parameter spans only a part of the buffer
        given = dict(zip((p.name for p in kernel.params), c.args, strict=True))
        done = self.written.setdefault(arg, _Written())
        for box in boxes:
            try:
                once = all(bounds(substituted(e, values), self.ranges)[0] >= 1 for e in box.once)
                ends = [self.ends(e, values, given, c) for e in box.ends]
            except NotWhole:
                continue
            if once and all(e is not None for e in ends):
                known = done.boxes.setdefault((box.stream, spans.dims), [])
                known.append(tuple(e for e in ends if e is not None))
                if self.covers(known, spans.dims):
                    done.whole.add(box.stream)

    def ends(
        self, e: tuple[object, object] | Table, values: Mapping[str, Poly], given: Mapping[str, str], c: Call
    ) -> tuple[Poly, Poly] | None:  # fmt: skip
        if not isinstance(e, Table):
            lo, hi = e
            return substituted(lo, values), substituted(hi, values)  # type: ignore[arg-type]
        blocks = self.plan.plan.name == STEP and given[e.param] == "%blocks"
        rows = polynomial(as_dim(STEP_INPUTS["ids"][0]))
        listed = self.plan.stored.get("%blocks")
        param = next(p for p in self.plan.kernels[c.kernel].params if p.name == e.param)
        if not blocks or listed is None or self.plan.spans(param, values, c).dims != listed.dims:
            return None
        if e.single and self.ranges.get("Q", (1, 2))[1] > 1:
            return None
        return ZERO, rows

    def covers(self, boxes: Sequence[tuple[tuple[Poly, Poly], ...]], dims: tuple[Poly, ...]) -> bool:
        """Whether boxes fill a shape: a single box, or a chain of them along one axis."""
        if any(all(self.spanned(b[n], d) for n, d in enumerate(dims)) for b in boxes):
            return True
        for axis, d in enumerate(dims):
            along = [
                b[axis] for b in boxes if all(self.spanned(b[n], x) for n, x in enumerate(dims) if n != axis)
            ]
            if self.chained(along, d):
                return True
        return False

    def spanned(self, ends: tuple[Poly, Poly], d: Poly) -> bool:
        return at_most(ends[0], ZERO, self.ranges) and at_most(d, ends[1], self.ranges)

    def chained(self, intervals: list[tuple[Poly, Poly]], d: Poly) -> bool:
        at, left = ZERO, list(intervals)
        while not at_most(d, at, self.ranges):
            found = next(
                (x for x in left if at_most(x[0], at, self.ranges) and at_most(at, x[1], self.ranges)), None
            )
            if found is None:
                return False
            left.remove(found)
            at = found[1]
        return True


def _sizes(kernel: Kernel) -> list[dict[str, int]]:
    return [dict(s.sizes) for s in kernel.schedules] or [{}]
