"""Rules 9, 10, 11 and 13 of plans (see `plan.verify`): sizes and offsets, for all values of the symbols.

In: a program that satisfies rules 1 to 8. Out: per plan, the sizes of its tensors and bindings, or
`VerifyError`. Proofs are by bounds of polynomials (`plan.dim_bounds`). Accesses of kernels inside their
parameters are checked by `tile.bounds`. Independent of targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tilewright.ir.encoding import Encoding
from tilewright.ir.errors import VerifyError
from tilewright.ir.plan.core import UNBOUNDED, Call, Plan, PlanBuffer, Program, plan_symbols
from tilewright.ir.plan.dim_bounds import (
    NotWhole,
    Poly,
    Ranges,
    at_most,
    bounds,
    computable,
    polynomial,
    product,
    substituted,
)
from tilewright.ir.plan.step import STEP
from tilewright.ir.text.plan_printer import buffer_text, call_text
from tilewright.ir.tile.core import Buffer, Kernel
from tilewright.ir.types import BITS, TensorType

#: the largest value of a dimension, the largest size of a buffer in bytes, the alignment of offsets
MOST, MOST_BYTES, ALIGN = (1 << 31) - 1, 1 << 46, 64
#: most cases that conditions may distinguish
MAX_CASES = 4096
#: offsets from a condition's value at which its truth changes, by operator
_PAST = {"<=": (1,), "<": (0,), ">=": (0,), ">": (1,), "==": (0, 1)}
_DECLARE = "let earlier calls store every element, under conditions that cover all cases"


def sizes_of(program: Program) -> Iterator[PlanSizes]:
    """Each plan, after checking its rules 9, 10, 11 and 13. Raises VerifyError. The rules of `plan.verify`
    must hold."""
    ranges: dict[str, tuple[int, int]] = {}
    for name, r in plan_symbols(program):
        lo, hi = r.lo, UNBOUNDED if r.hi is None else r.hi
        if not 0 <= lo <= hi <= MOST:
            raise VerifyError(
                f"symbol {name} ranges from {lo} to {hi}, expected 0 <= least <= most < 2^31",
                "program",
                "",
                9,
            )
        ranges[name] = (lo, hi)
    for plan in program.plans:
        sizes = PlanSizes(program, plan, ranges)
        sizes.check()
        yield sizes


@dataclass(frozen=True)
class Stored:
    """A tensor in memory: its dimensions and how it is stored (`encoding` None: a row-major array of
    `dtype`)."""

    dims: tuple[Poly, ...]
    dtype: str
    encoding: Encoding | None

    def bits(self) -> Poly:
        return product(self.dims) * Poly.of(BITS[self.dtype])

    def streams(self) -> set[str]:
        """The names of its streams, as kernels use them. Raises EncodingError."""
        if self.encoding is None:
            return {""}
        known = [bounds(d, {})[0] if not d.names else None for d in self.dims]
        return {x.name for x in self.encoding.record(known).streams}

    def most(self, ranges: Ranges) -> int:
        """Bytes that it takes at most, over all values of the symbols. Raises EncodingError."""
        if self.encoding is not None:
            return self.encoding.nbytes([bounds(d, ranges)[1] for d in self.dims])
        return -(-bounds(self.bits(), ranges)[1] // 8)

    def fits(self, into: Stored, ranges: Ranges) -> bool:
        """Whether it takes no more bytes than `into`, for all values of the symbols."""
        if self.encoding is None and into.encoding is None:
            return at_most(self.bits(), into.bits(), ranges)
        if self.encoding != into.encoding:
            return False
        if self.dims == into.dims:
            return True
        if len(self.dims) == len(into.dims):
            return self.dims[1:] == into.dims[1:] and at_most(self.dims[0], into.dims[0], ranges)
        return False


class PlanSizes:
    """Checks one plan against rules 9, 10, 11 and 13; the sizes of its tensors and bindings."""

    def __init__(self, program: Program, plan: Plan, ranges: Ranges) -> None:
        self.plan, self.ranges, self.where = plan, dict(ranges), f"plan @{plan.name}"
        if plan.name == STEP and "slots" in ranges:
            lo, hi = ranges["slots"]
            self.ranges["slots"] = (max(lo, 1), max(hi, 1))  # each token of a step has a slot
        self.kernels = {k.name: k for k in program.kernels}
        self.types: dict[str, tuple[TensorType, str]] = {"@" + w.name: (w.type, "") for w in program.weights}
        for s in program.states:
            for c in s.streams:
                self.types[f"@{s.name}.{c.name}"] = c.type, ""
        self.types |= {"%" + v.name: (v.type, "") for v in plan.inputs}
        self.types |= {"%" + b.name: (b.type, buffer_text(b)) for b in plan.buffers}
        self.buffers = {"%" + b.name for b in plan.buffers}
        self.stored: dict[str, Stored] = {}
        self.streams: dict[str, set[str]] = {}
        self.bound: dict[tuple[tuple[str, object], ...], dict[str, Poly]] = {}

    def fail(self, rule: int, message: str, source: str = "", hint: str = "") -> VerifyError:
        return VerifyError(message, self.where, hint, rule, source)

    def check(self) -> None:
        for name, (t, text) in self.types.items():
            dtype, encoding = t.stored
            self.stored[name] = Stored(tuple(self.dim(d, name, text) for d in t.shape), dtype, encoding)
            self.small(name, text)
        for b in self.plan.buffers:
            self.room(b)
        self.apart()
        for c in self.plan.calls:
            self.call(c)

    # -------------------------------------------------------- 9: dimensions
    def dim(self, d: object, what: str, source: str) -> Poly:
        try:
            p = polynomial(d)
        except NotWhole as e:
            raise self.fail(9, f"{what}: {e}", source) from None
        lo, hi = bounds(p, self.ranges)
        if lo < 0 or hi > MOST:
            raise self.fail(
                9,
                f"{what}: {d} takes values from {lo} to {hi}, expected 0 or more and less than 2^31",
                source,
            )
        if not computable(p, self.ranges):
            raise self.fail(
                9, f"{what}: {d} divides or compares numbers that may be negative or larger than 2^62", source
            )
        return p

    def small(self, name: str, source: str) -> None:
        """Checks the number of elements: sizes in bytes are computed in 64-bit integers."""
        elements = bounds(product(self.stored[name].dims), self.ranges)[1]
        if elements > MOST_BYTES // 8:
            raise self.fail(
                9, f"{name} has {elements} elements at the largest step, at most 2^43 are allowed", source
            )

    # -------------------------------------------------------- 11: room and places
    def room(self, b: PlanBuffer) -> None:
        try:
            self.streams["%" + b.name] = self.stored["%" + b.name].streams()
            need = self.stored["%" + b.name].most(self.ranges)
        except (ValueError, IndexError, ZeroDivisionError) as e:  # the encoding does not fit the shape
            raise self.fail(11, f"%{b.name}: {e}", buffer_text(b)) from None
        if need > MOST_BYTES:
            raise self.fail(
                11,
                f"%{b.name} takes {need} bytes at the largest step, at most 2^46 are allowed",
                buffer_text(b),
            )
        if b.nbytes < need:
            raise self.fail(
                11,
                f"%{b.name} has {b.nbytes} bytes, its type takes {need} at the largest step",
                buffer_text(b),
            )
        if b.offset >= 0 and b.offset % ALIGN:
            raise self.fail(
                11,
                f"%{b.name} starts at {b.offset}, expected a multiple of {ALIGN}",
                buffer_text(b),
                "run plan-memory",
            )

    def apart(self) -> None:
        """Checks that buffers needed at the same time do not overlap; results are needed until the end."""
        lives: dict[str, tuple[int, int]] = {}
        for n, c in enumerate(self.plan.calls):
            for a in c.args:
                lives[a] = (lives.get(a, (n, n))[0], n)
        for _, ref in self.plan.outputs:
            lives[ref] = (lives.get(ref, (0, 0))[0], len(self.plan.calls))
        placed = sorted(
            (b for b in self.plan.buffers if b.offset >= 0 and "%" + b.name in lives), key=lambda b: b.offset
        )
        for n, low in enumerate(placed):
            for high in placed[n + 1 :]:
                if high.offset >= low.offset + low.nbytes:
                    break
                (first, last), (start, end) = lives["%" + low.name], lives["%" + high.name]
                if first <= end and start <= last:
                    both = f"calls {max(first, start)} to {min(last, end)} need both"
                    message = f"%{high.name} overlaps %{low.name} in memory, and {both}"
                    raise self.fail(11, message, buffer_text(high), "run plan-memory")

    # -------------------------------------------------------- 10, 13: arguments
    def values(self, c: Call) -> dict[str, Poly]:
        if c.symbols not in self.bound:
            self.bound[c.symbols] = {k: self.dim(d, k, call_text(c)) for k, d in c.symbols}
        return self.bound[c.symbols]

    def call(self, c: Call) -> None:
        kernel, values = self.kernels[c.kernel], self.values(c)
        self.instances(kernel, values, c)
        for param, arg in zip(kernel.params, c.args, strict=True):
            if param.lo is not None or param.record is not None:
                what = "a range of values" if param.record is None else "a packed layout"
                raise self.fail(
                    13,
                    f"parameter %{param.name} states {what}, which is not guaranteed for its argument",
                    call_text(c),
                )
            wants, has = self.spans(param, values, c), self.stored[arg]
            if not wants.fits(has, self.ranges):
                shapes = (
                    f"[{', '.join(map(str, wants.dims))}] of it, which is [{', '.join(map(str, has.dims))}]"
                )
                raise self.fail(
                    10,
                    f"parameter %{param.name} spans {shapes}: {arg} is not known to be that large",
                    call_text(c),
                )

    def instances(self, kernel: Kernel, values: Mapping[str, Poly], c: Call) -> None:
        """Checks the number of instances: they are numbered and distributed in 64-bit integers."""
        total = 1
        for a in kernel.grid:
            try:
                most = bounds(substituted(a.extent.bind(_any_sizes(kernel)), values), self.ranges)[1]
            except (NotWhole, KeyError) as e:
                raise self.fail(9, f"grid axis {a.var} of @{kernel.name}: {e}", call_text(c)) from None
            total *= max(most, 1)
            if most > MOST or total > MOST_BYTES:
                message = (
                    f"@{kernel.name} has {total} instances at the largest step, at most 2^46 are allowed"
                )
                raise self.fail(9, message, call_text(c))

    def spans(self, param: Buffer, values: Mapping[str, Poly], c: Call) -> Stored:
        """The tensor that a parameter is under the bindings of a call."""
        dtype, encoding = TensorType(param.dtype, (), param.encoding).stored
        try:
            dims = tuple(substituted(d, values) for d in param.dims)
        except (NotWhole, KeyError) as e:
            raise self.fail(10, f"parameter %{param.name}: {e}", call_text(c)) from None
        for d in dims:
            if bounds(d, self.ranges)[0] < 0:
                raise self.fail(10, f"parameter %{param.name}: dimension {d} may be negative", call_text(c))
        return Stored(dims, dtype, encoding)


def _any_sizes(kernel: Kernel) -> dict[str, int]:
    """The sizes of any schedule, since extents do not depend on the choice."""
    return dict(kernel.schedules[0].sizes) if kernel.schedules else {}
