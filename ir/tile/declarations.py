"""Checks what a kernel declares: names, buffers and grid; rules 1, 7, 11 and 18 of `tile.verify`."""

from __future__ import annotations

import re

from tilewright.ir.encoding import EncodingError
from tilewright.ir.layout import RecordSpec, record
from tilewright.ir.numbers import int_range
from tilewright.ir.tile.bounds import record_of
from tilewright.ir.tile.core import Buffer, GridAxis
from tilewright.ir.tile.scope import ARITHMETIC, NARROW, Scope
from tilewright.ir.types import BITS

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


def check_declarations(scope: Scope) -> None:
    """Raise VerifyError for the first name, buffer or grid axis that is not well-formed."""
    _names(scope)
    for b in (*scope.kernel.params, *scope.kernel.locals):
        _buffer(scope, b)
    for a in scope.kernel.grid:
        _axis(scope, a)


def _axis(scope: Scope, a: GridAxis) -> None:
    scope.affine(a.extent, {*scope.symbols, *scope.sizes}, f"extent of grid {a.var}")
    if a.rows and not isinstance(a.step, str) and scope.kernel.schedules:
        hint = "a `rows` axis steps by a size that schedules bind"
        raise scope.fail(11, f"grid rows {a.var} steps by {a.step}", hint=hint)
    if isinstance(a.step, int) and a.step < 1:
        raise scope.fail(11, f"grid {a.var} steps by {a.step}; steps are at least 1")


def _names(scope: Scope) -> None:
    buffers = [b.name for b in (*scope.kernel.params, *scope.kernel.locals)]
    if len(set(buffers)) != len(buffers):
        raise scope.fail(1, f"buffers {', '.join('%' + b for b in buffers)} are not unique")
    if len(set(scope.axes)) != len(scope.axes):
        raise scope.fail(1, f"grid axes {', '.join(scope.axes)} are not unique")
    streams = [
        s.name for b in scope.kernel.params + scope.kernel.locals if b.record for s in b.record.streams
    ]
    options = [n for s in scope.kernel.schedules for n, _ in s.options]
    words = [*scope.axes, *scope.loop_vars, *scope.sizes, *scope.symbols, *streams, *options]
    bad = [w for w in words if not _WORD.match(w) or w in RESERVED] + [
        w for w in buffers if not _BUFFER.match(w)
    ]
    bad += [] if _KERNEL.match(scope.kernel.name) else [scope.kernel.name]
    if bad:
        raise scope.fail(
            1,
            f"{bad[0]!r} is not a name",
            hint="use letters, digits and _, not starting with a digit, and no reserved word",
        )
    for one, other in (
        (scope.axes, scope.sizes),
        (scope.loop_vars, scope.sizes),
        (scope.axes, scope.loop_vars),
    ):
        both = set(one) & set(other)
        if both:
            raise scope.fail(
                1,
                f"{', '.join(sorted(both))} is used for two of axes, loop variables, sizes and symbols",
            )


def _buffer(scope: Scope, b: Buffer) -> None:
    local = b in scope.kernel.locals
    for d in b.dims:
        scope.affine(d, {*scope.symbols, *(scope.sizes if local else ())}, f"dims of %{b.name}")
    if b.dtype not in ARITHMETIC or (b.encoding and b.record) or (b.encoding and local):
        raise scope.fail(
            18,
            f"buffer %{b.name}: {b.dtype} with encoding {b.encoding} and record {b.record}",
            hint="a buffer must be dense, encoded (parameters only) or packed with a record",
        )
    _value_range(scope, f"%{b.name}", b.dtype, b.lo, b.hi)
    try:
        spec = record_of(b)
        if spec:
            _record(b, spec)
    except (EncodingError, ValueError, IndexError, KeyError, ZeroDivisionError) as e:
        hint = "digits must name dimensions of the buffer, and sizes and steps must be at least 1"
        raise scope.fail(18, f"buffer %{b.name}: {e}", hint=hint) from None
    for s in spec.streams if spec else ():
        _value_range(scope, f"%{b.name}.{s.name}", s.dtype, s.lo, s.hi)


def _record(b: Buffer, spec: RecordSpec) -> None:
    """Raise ValueError, or what `layout.record` raises, for a record that is not valid for a buffer of this
    type."""
    if not spec.streams or len({s.name for s in spec.streams}) != len(spec.streams):
        raise ValueError("streams need different names")
    values = ["u8" if s.dtype in NARROW else s.dtype for s in spec.streams if s.name == "values"]
    if b.record and any(dtype != b.dtype for dtype in values):
        raise ValueError(f"stream `values` is read as the buffer itself, so it must have type {b.dtype}")
    record([64] * len(b.dims), spec.prefix, {s.name: (BITS[s.dtype], s.digits) for s in spec.streams})


def _value_range(scope: Scope, what: str, dtype: str, lo: int | None, hi: int | None) -> None:
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
        raise scope.fail(
            18,
            f"{what}: range {lo}..{hi} of {dtype}",
            hint="expected both ends, in order, within an integer dtype",
        )
