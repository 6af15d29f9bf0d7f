"""The verifier of Tile IR: raises a VerifyError whose message starts with the number of the violated rule.

 1. Names are words and not reserved; buffer names are unique; axes, loop variables, sizes and symbols do not
    share a name.
 2. Every value is defined once.
 3. Every value is used after its definition and inside the loop that defines it.
 4. Operations are known and have exactly the operands and attributes (sorted by key) that they take.
 5. Every type is the one that the operation, or the index of a load, determines.
 6. Loads and stores name a buffer or a stream, with one index per dimension; tile indices are integers.
 7. Names in indices, bounds, extents and dimensions are in scope.
 8. A stored value has the buffer's dtype and broadcasts to the index's tile.
 9. A carried value keeps its type, from the initial value to the yielded one.
10. A local is written by one statement, which precedes every statement that reads it.
11. Every schedule binds exactly the sizes that the kernel uses, to at least 1; a `rows` axis steps by a size.
12. Schedules name existing axes, values and loops; a staged value depends on nothing that the kernel writes
    or that is defined inside the stage's axis.
13. `within` names an enclosing loop, along an axis as long as the loop's step.
14. No instance of the grid accesses what another one writes, unless the kernel's author declares the store
    disjoint.
15. Reads of packed buffers stay inside their padding under every schedule.
16. Indices, bounds, extents and dimensions are integers under every schedule.
17. No tile has more than 2^20 elements, no buffer more than 2^48 bytes; no index or bound reaches 2^62.
18. Records and value ranges are well-formed.
19. Floats are not summed along an axis whose length a schedule chooses: the order of summation is part of the
    kernel.
20. Every element of a local that a load may read has been stored before by the same instance, for all values
    of the symbols and of the data.

Must not depend on targets. Rule 12 of stages is in `tile.stages`, rule 14 in `tile.races`, rules
15 to 17 in `tile.bounds`, rule 20 in `tile.locals`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from tilewright.ir.affine import Affine
from tilewright.ir.encoding import EncodingError
from tilewright.ir.errors import VerifyError
from tilewright.ir.layout import record
from tilewright.ir.numbers import HELD, int_range
from tilewright.ir.text.tile_printer import print_statement
from tilewright.ir.tile.bounds import check_bounds, record_of
from tilewright.ir.tile.builder import arithmetic_dtype
from tilewright.ir.tile.core import (
    At,
    Buffer,
    For,
    Index,
    Kernel,
    Let,
    Load,
    Pick,
    Schedule,
    Size,
    Span,
    Stmt,
    Store,
    TileType,
    index_shape,
    index_values,
    walk,
)  # fmt: skip
from tilewright.ir.tile.locals import check_locals
from tilewright.ir.tile.ops import TILE_OPS, TileTypeError, broadcast
from tilewright.ir.tile.races import check_races
from tilewright.ir.tile.stages import check_stages
from tilewright.ir.types import BITS, FLOATS

RESERVED = frozenset({
    "kernel", "as", "record", "in", "grid", "rows", "by", "local", "store", "disjoint", "for", "carry",
    "yield", "load", "else",
    "const", "iota", "index", "cast", "bitcast", "reduce", "scan", "expand", "axis", "reshape", "within",
    "inf", "nan",
    "schedule", "when", "and", "order", "threads", "stage", "at", "prefetch", "options",
})  # fmt: skip
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_BUFFER = re.compile(r"[A-Za-z0-9_]+\Z")
_KERNEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\Z")
_VALUE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\Z")
_NARROW = ("u1", "u2", "u3", "u4", "u5", "u6", "u7")
ARITHMETIC = tuple(d for d in HELD if d not in _NARROW)
#: first letters of the dtypes (`b` is bf16, `o` bool) that scalar primitives compute on; the others take
#: numbers
_DOMAINS = dict.fromkeys(("exp", "log", "sqrt", "rsqrt", "erf", "sin", "cos", "round", "floor"), "fb")
_DOMAINS |= dict.fromkeys(("and", "or", "xor", "not"), "iuo") | dict.fromkeys(("shl", "shr"), "iu")
_DOMAINS |= dict.fromkeys(("eq", "ne", "select"), "iufbo")


def verify_kernel(kernel: Kernel) -> None:
    """Raises VerifyError naming the first broken invariant."""
    _Checker(kernel).check()


def verify_bound(kernel: Kernel) -> None:
    """The same for a kernel that `tile.bind` has bound: also refuses sizes that are still names."""
    left = used_sizes(kernel)
    if left:
        raise VerifyError(
            f"sizes {', '.join(sorted(left))} are not bound",
            f"kernel @{kernel.name}",
            "bind every size first",
            11,
        )
    verify_kernel(kernel)


def _shown(t: TileType) -> str:
    return f"{t.dtype}{list(t.shape)}"


def _arithmetic(dtype: str) -> str:
    return "u8" if dtype in _NARROW else dtype


def used_sizes(kernel: Kernel) -> set[str]:
    """Names that stand where a size must: tile shapes, steps, spans."""
    found: set[Size] = {a.step for a in kernel.grid}
    for s in walk(kernel.body):
        if isinstance(s, Let | Load):
            found.update(s.type.shape)
        if isinstance(s, For):
            found.add(s.step)
            found.update(n for c in s.carries for n in c.type.shape)
        if isinstance(s, Load | Store):
            found.update(i.size for i in s.index if isinstance(i, Span))
    return {n for n in found if isinstance(n, str)}


class _Checker:
    """One walk over one kernel: what is defined, and what is in scope here."""

    def __init__(self, kernel: Kernel) -> None:
        self.k = kernel
        self.types: dict[str, TileType] = {}
        self.defined: set[str] = set()
        self.loops: dict[str, For] = {}
        self.sizes = used_sizes(kernel) | {n for s in kernel.schedules for n, _ in s.sizes}
        self.stored: dict[str, int] = {}
        self.axes = [a.var for a in kernel.grid]
        self.loop_vars = {s.var for s in walk(kernel.body) if isinstance(s, For)}
        bounds = [s.hi for s in walk(kernel.body) if isinstance(s, For)] + [
            s.lo for s in walk(kernel.body) if isinstance(s, For)
        ]
        bounds += index_values(kernel.body)
        outer = [d for b in kernel.params for d in b.dims] + [a.extent for a in kernel.grid] + bounds
        inner = {*self.axes, *self.loop_vars, *self.sizes}
        self.symbols = {n for a in outer for n in a.names if n not in inner and not n.startswith("%")}

    def fail(self, number: int, message: str, s: Stmt | None = None, hint: str = "") -> VerifyError:
        return VerifyError(
            message, f"kernel @{self.k.name}", hint, number, print_statement(s) if s is not None else ""
        )

    def check(self) -> None:
        self.names()
        for b in (*self.k.params, *self.k.locals):
            self.buffer(b)
        for a in self.k.grid:
            self.affine(a.extent, {*self.symbols, *self.sizes}, f"extent of grid {a.var}")
            if a.rows and not isinstance(a.step, str) and self.k.schedules:
                raise self.fail(
                    11,
                    f"grid rows {a.var} steps by {a.step}",
                    hint="a `rows` axis steps by a size that schedules bind",
                )
            if isinstance(a.step, int) and a.step < 1:
                raise self.fail(11, f"grid {a.var} steps by {a.step}; steps are at least 1")
        self.block(self.k.body)
        for s in self.k.schedules:
            self.schedule(s)
        self.bounds()

    def bounds(self) -> None:
        ways = [dict(s.sizes) for s in self.k.schedules] or ([] if used_sizes(self.k) else [{}])
        for sizes in ways:
            check_bounds(self.k, sizes)
            check_races(self.k, sizes)
            check_locals(self.k, sizes)

    # -------------------------------------------------------- 1: names
    def names(self) -> None:
        buffers = [b.name for b in (*self.k.params, *self.k.locals)]
        if len(set(buffers)) != len(buffers):
            raise self.fail(1, f"buffers {', '.join('%' + b for b in buffers)} are not unique")
        if len(set(self.axes)) != len(self.axes):
            raise self.fail(1, f"grid axes {', '.join(self.axes)} are not unique")
        streams = [s.name for b in self.k.params + self.k.locals if b.record for s in b.record.streams]
        options = [n for s in self.k.schedules for n, _ in s.options]
        words = [*self.axes, *self.loop_vars, *self.sizes, *self.symbols, *streams, *options]
        bad = [w for w in words if not _WORD.match(w) or w in RESERVED] + [
            w for w in buffers if not _BUFFER.match(w)
        ]
        bad += [] if _KERNEL.match(self.k.name) else [self.k.name]
        if bad:
            raise self.fail(
                1,
                f"{bad[0]!r} is not a name",
                hint="use letters, digits and _, not starting with a digit, and no reserved word",
            )
        for one, other in (
            (self.axes, self.sizes),
            (self.loop_vars, self.sizes),
            (self.axes, self.loop_vars),
        ):
            both = set(one) & set(other)
            if both:
                raise self.fail(
                    1,
                    f"{', '.join(sorted(both))} is used for two of axes, loop variables, sizes and symbols",
                )

    # -------------------------------------------------------- 18, 7: buffers
    def buffer(self, b: Buffer) -> None:
        local = b in self.k.locals
        for d in b.dims:
            self.affine(d, {*self.symbols, *(self.sizes if local else ())}, f"dims of %{b.name}")
        if b.dtype not in ARITHMETIC or (b.encoding and b.record) or (b.encoding and local):
            raise self.fail(
                18,
                f"buffer %{b.name}: {b.dtype} with encoding {b.encoding} and record {b.record}",
                hint="a buffer must be dense, encoded (parameters only) or packed with a record",
            )
        self.value_range(f"%{b.name}", b.dtype, b.lo, b.hi)
        try:
            spec = record_of(b)
            if spec:
                if not spec.streams or len({s.name for s in spec.streams}) != len(spec.streams):
                    raise ValueError("streams need different names")
                if (
                    any(s.name == "values" and _arithmetic(s.dtype) != b.dtype for s in spec.streams)
                    and b.record
                ):
                    raise ValueError(
                        f"stream `values` is read as the buffer itself, so it must have type {b.dtype}"
                    )
                record(
                    [64] * len(b.dims), spec.prefix, {s.name: (BITS[s.dtype], s.digits) for s in spec.streams}
                )
        except (EncodingError, ValueError, IndexError, KeyError, ZeroDivisionError) as e:
            raise self.fail(
                18,
                f"buffer %{b.name}: {e}",
                hint="digits must name dimensions of the buffer, and sizes and steps must be at least 1",
            ) from None
        for s in spec.streams if spec else ():
            self.value_range(f"%{b.name}.{s.name}", s.dtype, s.lo, s.hi)

    def value_range(self, what: str, dtype: str, lo: int | None, hi: int | None) -> None:
        if lo is None and hi is None:
            return
        if (
            lo is None
            or hi is None
            or lo > hi
            or dtype[0] not in "iu"
            or lo < int_range(dtype)[0]
            or hi > int_range(dtype)[1]
        ):
            raise self.fail(
                18,
                f"{what}: range {lo}..{hi} of {dtype}",
                hint="expected both ends, in order, within an integer dtype",
            )

    # -------------------------------------------------------- 7: affine names
    def affine(self, a: Affine, known: Iterable[str], what: str, s: Stmt | None = None) -> None:
        for n in a.names:
            if n.startswith("%"):
                if s is None:
                    raise self.fail(7, f"{what}: {n} is not in scope", s)
                t = self.use(n[1:], s)
                if t.shape or t.dtype[0] not in "iu":
                    raise self.fail(6, f"{what}: {n} is {_shown(t)}, expected one integer", s)
            elif n not in known:
                raise self.fail(
                    7, f"{what}: {n} is not in scope", s, f"known: {', '.join(sorted(known)) or 'nothing'}"
                )

    def inside(self) -> set[str]:
        return {*self.symbols, *self.sizes, *self.axes, *self.loops}

    # -------------------------------------------------------- 2, 3: values
    def define(self, name: str, t: TileType, s: Stmt) -> None:
        if not _VALUE.match(name):
            raise self.fail(1, f"%{name} is not a name", s)
        if name in self.defined:
            raise self.fail(2, f"%{name} is defined twice", s, "rename the second value")
        if t.dtype not in ARITHMETIC:
            raise self.fail(
                5, f"%{name}: a value cannot have type {t.dtype}", s, f"one of {', '.join(ARITHMETIC)}"
            )
        self.defined.add(name)
        self.types[name] = t

    def use(self, name: str, s: Stmt) -> TileType:
        if name not in self.types:
            why = (
                "is used outside the loop that defines it or before its definition"
                if name in self.defined
                else "is not defined before this"
            )
            raise self.fail(3, f"%{name} {why}", s)
        return self.types[name]

    # -------------------------------------------------------- statements
    def block(self, body: tuple[Stmt, ...]) -> None:
        for s in body:
            if isinstance(s, Let):
                self.let(s)
            elif isinstance(s, Load):
                self.load(s)
            elif isinstance(s, Store):
                self.store(s)
            else:
                self.loop(s)

    def let(self, s: Let) -> None:
        types = [self.use(a, s) for a in s.args]
        op = TILE_OPS.get(s.op)
        if op is None:
            raise self.fail(4, f"no tile operation {s.op!r}", s, f"known: {', '.join(TILE_OPS)}")
        if len(s.args) != op.arity or [k for k, _ in s.attrs] != sorted(op.attrs):
            got = f"{len(s.args)} and {', '.join(k for k, _ in s.attrs) or 'none'}"
            raise self.fail(
                4,
                f"{s.op} takes {op.arity} operands and attributes {', '.join(sorted(op.attrs)) or 'none'}, "
                f"got {got}",
                s,
            )
        attrs = dict(s.attrs)
        if s.op == "index":
            value = attrs["value"]
            if not isinstance(value, Affine):
                raise self.fail(4, f"index of {value!r}, expected an affine", s)
            self.affine(value, self.inside(), "index", s)
        if s.op == "bitcast" and attrs["from"] != types[0].dtype:
            raise self.fail(5, f"bitcast from {attrs['from']}, but the operand is {types[0].dtype}", s)
        if op.elementwise:
            domain = _DOMAINS.get(s.op, "iufb")
            if any(("o" if t.dtype == "bool" else t.dtype[0]) not in domain for t in types):
                raise self.fail(5, f"{s.op} does not compute on {types[0].dtype}", s, "cast the operands")
        if s.op in ("reduce", "scan") and types[0].dtype == "bool":
            raise self.fail(5, f"{s.op} does not compute on bool", s, "cast the operand")
        if s.op in ("reduce", "scan"):
            self.order(s, types[0], attrs)
        if s.op == "const":
            self.constant(s, attrs["value"], str(attrs["dtype"]))
        if s.op == "within":
            self.within(s, types[0], attrs)
        try:
            want = op.infer(types, attrs)
        except (TileTypeError, KeyError, TypeError, IndexError) as e:
            raise self.fail(5, str(e), s) from None
        self.same(want, s.type, s)
        self.define(s.name, s.type, s)

    def order(self, s: Let, t: TileType, attrs: Mapping[str, object]) -> None:
        axis = attrs["axis"]
        size = t.shape[axis] if isinstance(axis, int) and 0 <= axis < len(t.shape) else 1
        if attrs["fn"] == "add" and t.dtype in FLOATS and isinstance(size, str):
            hint = "use a constant size: schedules must not change the order of summation"
            raise self.fail(
                19,
                f"{s.op} add of {t.dtype} along an axis of {size} elements, which a schedule chooses",
                s,
                hint,
            )

    def constant(self, s: Let, value: object, dtype: str) -> None:
        whole = isinstance(value, int) and dtype in ARITHMETIC and dtype[0] in "iub" and dtype != "bf16"
        if whole and isinstance(value, int) and int_range(dtype)[0] <= value <= int_range(dtype)[1]:
            return
        if not isinstance(value, int | float) or dtype not in FLOATS:
            raise self.fail(5, f"{value} is not a value of {dtype}", s)

    def same(self, want: TileType, got: TileType, s: Stmt) -> None:
        if want != got:
            raise self.fail(5, f"type {_shown(got)}, but the operation gives {_shown(want)}", s)

    def within(self, s: Let, t: TileType, attrs: Mapping[str, object]) -> None:
        loop, axis = self.loops.get(str(attrs["loop"])), attrs["axis"]
        if loop is None:
            raise self.fail(
                13, f"no enclosing loop {attrs['loop']}", s, f"here: {', '.join(self.loops) or 'no loop'}"
            )
        if not isinstance(axis, int) or not 0 <= axis < len(t.shape) or t.shape[axis] != loop.step:
            raise self.fail(
                13, f"axis {axis} of {list(t.shape)} is not as long as the step of {loop.var}, {loop.step}", s
            )

    def indices(self, s: Load | Store) -> str:
        """Checks an access; gives the dtype that arithmetic sees."""
        try:
            buffer = self.k.buffer(s.buffer)
            dtype = arithmetic_dtype(buffer, s.buffer)
        except (KeyError, TileTypeError) as e:
            raise self.fail(6, str(e.args[0]), s) from None
        if "." not in s.buffer and buffer.record and "values" not in {x.name for x in buffer.record.streams}:
            raise self.fail(
                6,
                f"%{s.buffer} is packed: name one of its streams",
                s,
                ", ".join(x.name for x in buffer.record.streams),
            )
        if len(s.index) != len(buffer.dims):
            raise self.fail(
                6, f"{len(s.index)} indices for the {len(buffer.dims)} dimensions of %{s.buffer}", s
            )
        for i in s.index:
            self.entry(i, s)
        return dtype

    def entry(self, i: Index, s: Stmt) -> None:
        if isinstance(i, Pick):
            t = self.use(i.tile, s)
            if len(t.shape) != 1 or t.dtype[0] not in "iu":
                raise self.fail(6, f"%{i.tile} is {_shown(t)}; an index tile has rank 1 and integers", s)
            return
        if isinstance(i, Span) and isinstance(i.size, int) and i.size < 1:
            raise self.fail(17, f"span of {i.size}", s)
        self.affine(i.start, self.inside(), "index", s)

    def load(self, s: Load) -> None:
        dtype = self.indices(s)
        name = s.buffer.split(".")[0]
        if name in {b.name for b in self.k.locals} and not self.stored.get(name):
            raise self.fail(10, f"local %{name} is read before it is written", s)
        if not math.isfinite(s.other) and dtype not in FLOATS:
            raise self.fail(5, f"else {s.other} is not a value of {dtype}", s)
        self.same(TileType(dtype, index_shape(s.index, self.types)), s.type, s)
        self.define(s.name, s.type, s)

    def store(self, s: Store) -> None:
        dtype = self.indices(s)
        t, want = self.use(s.value, s), index_shape(s.index, self.types)
        try:
            fits = broadcast([t.shape, want]) == want
        except TileTypeError:
            fits = False
        if not fits or t.dtype != dtype:
            raise self.fail(
                8,
                f"%{s.value} is {_shown(t)}, the destination {dtype}{list(want)}",
                s,
                "cast it, or index another tile",
            )
        name = s.buffer.split(".")[0]
        self.stored[name] = self.stored.get(name, 0) + 1
        if self.stored[name] > 1 and name in {b.name for b in self.k.locals}:
            raise self.fail(10, f"local %{name} is written by more than one statement", s)
        encoded = self.k.buffer(s.buffer).encoding
        if encoded and "." not in s.buffer:
            raise self.fail(8, f"%{s.buffer} is stored as {encoded}: store its streams", s)

    def loop(self, s: For) -> None:
        if s.var in self.loops:
            raise self.fail(1, f"loop {s.var} inside a loop {s.var}", s)
        if isinstance(s.step, int) and s.step < 1:
            raise self.fail(11, f"loop {s.var} steps by {s.step}; steps are at least 1", s)
        self.affine(s.lo, self.inside(), "bound", s)
        self.affine(s.hi, self.inside(), "bound", s)
        for c in s.carries:
            if self.use(c.init, s) != c.type:
                raise self.fail(9, f"%{c.name} is carried as {_shown(c.type)}, but starts as another type", s)
        outside = dict(self.types)
        self.loops[s.var] = s
        for c in s.carries:
            self.define(c.name, c.type, s)
        self.block(s.body)
        for c in s.carries:
            t = self.use(c.yields, s)
            if t != c.type:
                raise self.fail(
                    9,
                    f"%{c.name} is carried as {_shown(c.type)}, but %{c.yields} is {_shown(t)}",
                    s,
                )
        del self.loops[s.var]
        self.types = outside
        for c in s.carries:
            self.define(c.result, c.type, s)

    # -------------------------------------------------------- 11, 12: schedules
    def schedule(self, s: Schedule) -> None:
        bound, used = [n for n, _ in s.sizes], used_sizes(self.k)
        where = f"schedule {s.target}"
        missing, extra = sorted(used - set(bound)), sorted(set(bound) - self.all_names())
        if missing or extra or len(set(bound)) != len(bound) or any(n < 1 for _, n in s.sizes):
            why = (
                f"does not bind {', '.join(missing)}"
                if missing
                else f"binds {', '.join(extra)}, which the kernel does not use"
                if extra
                else "binds a size twice or below 1"
            )
            raise self.fail(11, f"{where} {why}")
        if s.order and sorted(s.order) != sorted(self.axes):
            raise self.fail(
                12,
                f"{where}: order {' '.join(s.order)} is not a permutation of the axes {' '.join(self.axes)}",
            )
        if s.threads and not set(s.threads.split()) <= set(self.axes):
            raise self.fail(
                12, f"{where}: threads {s.threads}, expected one of the axes {' '.join(self.axes)}"
            )
        for value, axis in s.stages:
            if value not in self.defined or axis not in self.axes:
                raise self.fail(
                    12, f"{where}: stage %{value} at {axis} needs an existing value and a grid axis"
                )
        check_stages(self.k, s)
        for loop, n in s.prefetch:
            if loop not in {*self.loop_vars, "copy"} or n < 1:
                raise self.fail(
                    12, f"{where}: prefetch {loop} {n} needs a loop (or copy) and a distance of at least 1"
                )
        for c in s.when:
            if c.symbol not in self.symbols:
                raise self.fail(
                    12, f"{where}: condition on {c.symbol}, expected one of {', '.join(sorted(self.symbols))}"
                )

    def all_names(self) -> set[str]:
        """Sizes in use, those inside index arithmetic and local dims included."""
        affines = [d for b in self.k.locals for d in b.dims]
        for s in walk(self.k.body):
            if isinstance(s, Load | Store):
                affines += [i.start for i in s.index if isinstance(i, At | Span)]
            elif isinstance(s, For):
                affines += [s.lo, s.hi]
            elif isinstance(s, Let):
                affines += [v for _, v in s.attrs if isinstance(v, Affine)]
        return used_sizes(self.k) | {n for a in affines for n in a.names}
