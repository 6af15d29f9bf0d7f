"""Checks the statements of a kernel: rules 2 to 10, 13, 17 and 19 of `tile.verify`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tilewright.ir.affine import Affine
from tilewright.ir.numbers import int_range
from tilewright.ir.tile.builder import arithmetic_dtype
from tilewright.ir.tile.core import (
    For,
    Index,
    Let,
    Load,
    Pick,
    Span,
    Stmt,
    Store,
    TileType,
    index_shape,
)
from tilewright.ir.tile.op_record import TileTypeError, broadcast
from tilewright.ir.tile.ops import TILE_OPS
from tilewright.ir.tile.scope import ARITHMETIC, Scope, type_shown
from tilewright.ir.types import FLOATS

#: first letters of the dtypes (`b` is bf16, `o` bool) that scalar primitives compute on; the others take
#: numbers
DOMAINS = dict.fromkeys(("exp", "log", "sqrt", "rsqrt", "erf", "sin", "cos", "round", "floor"), "fb")
DOMAINS |= dict.fromkeys(("and", "or", "xor", "not"), "iuo") | dict.fromkeys(("shl", "shr"), "iu")
DOMAINS |= dict.fromkeys(("eq", "ne", "select"), "iufbo")


def check_statements(scope: Scope) -> None:
    """Raise VerifyError for the first statement that violates a rule; defined values are added to the
    scope."""
    _Statements(scope).block(scope.kernel.body)


class _Statements:
    def __init__(self, scope: Scope) -> None:
        self.scope = scope

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
        types = [self.scope.use(a, s) for a in s.args]
        op = TILE_OPS.get(s.op)
        if op is None:
            raise self.scope.fail(4, f"no tile operation {s.op!r}", s, f"known: {', '.join(TILE_OPS)}")
        if len(s.args) != op.arity or [k for k, _ in s.attrs] != sorted(op.attrs):
            got = f"{len(s.args)} and {', '.join(k for k, _ in s.attrs) or 'none'}"
            raise self.scope.fail(
                4,
                f"{s.op} takes {op.arity} operands and attributes {', '.join(sorted(op.attrs)) or 'none'}, "
                f"got {got}",
                s,
            )
        attrs = dict(s.attrs)
        if s.op == "index":
            value = attrs["value"]
            if not isinstance(value, Affine):
                raise self.scope.fail(4, f"index of {value!r}, expected an affine", s)
            self.scope.affine(value, self.scope.inside(), "index", s)
        if s.op == "bitcast" and attrs["from"] != types[0].dtype:
            raise self.scope.fail(5, f"bitcast from {attrs['from']}, but the operand is {types[0].dtype}", s)
        if op.elementwise:
            domain = DOMAINS.get(s.op, "iufb")
            if any(("o" if t.dtype == "bool" else t.dtype[0]) not in domain for t in types):
                raise self.scope.fail(
                    5, f"{s.op} does not compute on {types[0].dtype}", s, "cast the operands"
                )
        if s.op in ("reduce", "scan") and types[0].dtype == "bool":
            raise self.scope.fail(5, f"{s.op} does not compute on bool", s, "cast the operand")
        if s.op in ("reduce", "scan"):
            self.order(s, types[0], attrs)
        if s.op == "const":
            self.constant(s, attrs["value"], str(attrs["dtype"]))
        if s.op == "within":
            self.within(s, types[0], attrs)
        try:
            want = op.infer(types, attrs)
        except (TileTypeError, KeyError, TypeError, IndexError) as e:
            raise self.scope.fail(5, str(e), s) from None
        self.same(want, s.type, s)
        self.scope.define(s.name, s.type, s)

    def order(self, s: Let, t: TileType, attrs: Mapping[str, object]) -> None:
        axis = attrs["axis"]
        size = t.shape[axis] if isinstance(axis, int) and 0 <= axis < len(t.shape) else 1
        if attrs["fn"] == "add" and t.dtype in FLOATS and isinstance(size, str):
            hint = "use a constant size: schedules must not change the order of summation"
            raise self.scope.fail(
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
            raise self.scope.fail(5, f"{value} is not a value of {dtype}", s)

    def same(self, want: TileType, got: TileType, s: Stmt) -> None:
        if want != got:
            raise self.scope.fail(5, f"type {type_shown(got)}, but the operation gives {type_shown(want)}", s)

    def within(self, s: Let, t: TileType, attrs: Mapping[str, object]) -> None:
        loop, axis = self.scope.loops.get(str(attrs["loop"])), attrs["axis"]
        if loop is None:
            raise self.scope.fail(
                13,
                f"no enclosing loop {attrs['loop']}",
                s,
                f"here: {', '.join(self.scope.loops) or 'no loop'}",
            )
        if not isinstance(axis, int) or not 0 <= axis < len(t.shape) or t.shape[axis] != loop.step:
            raise self.scope.fail(
                13, f"axis {axis} of {list(t.shape)} is not as long as the step of {loop.var}, {loop.step}", s
            )

    def indices(self, s: Load | Store) -> str:
        """Checks the index of an access; returns the dtype of its values in arithmetic."""
        try:
            buffer = self.scope.kernel.buffer(s.buffer)
            dtype = arithmetic_dtype(buffer, s.buffer)
        except (KeyError, TileTypeError) as e:
            raise self.scope.fail(6, str(e.args[0]), s) from None
        if "." not in s.buffer and buffer.record and "values" not in {x.name for x in buffer.record.streams}:
            raise self.scope.fail(
                6,
                f"%{s.buffer} is packed: name one of its streams",
                s,
                ", ".join(x.name for x in buffer.record.streams),
            )
        if len(s.index) != len(buffer.dims):
            raise self.scope.fail(
                6, f"{len(s.index)} indices for the {len(buffer.dims)} dimensions of %{s.buffer}", s
            )
        for i in s.index:
            self.entry(i, s)
        return dtype

    def entry(self, i: Index, s: Stmt) -> None:
        if isinstance(i, Pick):
            t = self.scope.use(i.tile, s)
            if len(t.shape) != 1 or t.dtype[0] not in "iu":
                raise self.scope.fail(
                    6, f"%{i.tile} is {type_shown(t)}; an index tile has rank 1 and integers", s
                )
            return
        if isinstance(i, Span) and isinstance(i.size, int) and i.size < 1:
            raise self.scope.fail(17, f"span of {i.size}", s)
        self.scope.affine(i.start, self.scope.inside(), "index", s)

    def load(self, s: Load) -> None:
        dtype = self.indices(s)
        name = s.buffer.split(".")[0]
        if name in {b.name for b in self.scope.kernel.locals} and not self.scope.stored.get(name):
            raise self.scope.fail(10, f"local %{name} is read before it is written", s)
        if not math.isfinite(s.other) and dtype not in FLOATS:
            raise self.scope.fail(5, f"else {s.other} is not a value of {dtype}", s)
        self.same(TileType(dtype, index_shape(s.index, self.scope.types)), s.type, s)
        self.scope.define(s.name, s.type, s)

    def store(self, s: Store) -> None:
        dtype = self.indices(s)
        t, want = self.scope.use(s.value, s), index_shape(s.index, self.scope.types)
        try:
            fits = broadcast([t.shape, want]) == want
        except TileTypeError:
            fits = False
        if not fits or t.dtype != dtype:
            raise self.scope.fail(
                8,
                f"%{s.value} is {type_shown(t)}, the destination {dtype}{list(want)}",
                s,
                "cast it, or index another tile",
            )
        name = s.buffer.split(".")[0]
        self.scope.stored[name] = self.scope.stored.get(name, 0) + 1
        if self.scope.stored[name] > 1 and name in {b.name for b in self.scope.kernel.locals}:
            raise self.scope.fail(10, f"local %{name} is written by more than one statement", s)
        encoded = self.scope.kernel.buffer(s.buffer).encoding
        if encoded and "." not in s.buffer:
            raise self.scope.fail(8, f"%{s.buffer} is stored as {encoded}: store its streams", s)

    def loop(self, s: For) -> None:
        if s.var in self.scope.loops:
            raise self.scope.fail(1, f"loop {s.var} inside a loop {s.var}", s)
        if isinstance(s.step, int) and s.step < 1:
            raise self.scope.fail(11, f"loop {s.var} steps by {s.step}; steps are at least 1", s)
        self.scope.affine(s.lo, self.scope.inside(), "bound", s)
        self.scope.affine(s.hi, self.scope.inside(), "bound", s)
        for c in s.carries:
            if self.scope.use(c.init, s) != c.type:
                raise self.scope.fail(
                    9, f"%{c.name} is carried as {type_shown(c.type)}, but starts as another type", s
                )
        outside = dict(self.scope.types)
        self.scope.loops[s.var] = s
        for c in s.carries:
            self.scope.define(c.name, c.type, s)
        self.block(s.body)
        for c in s.carries:
            t = self.scope.use(c.yields, s)
            if t != c.type:
                raise self.scope.fail(
                    9,
                    f"%{c.name} is carried as {type_shown(c.type)}, but %{c.yields} is {type_shown(t)}",
                    s,
                )
        del self.scope.loops[s.var]
        self.scope.types = outside
        for c in s.carries:
            self.scope.define(c.result, c.type, s)
