"""Canonical text of tile programs: one operation per line, with its type.

In: a `Kernel`. Out: text from which `parser.parse_kernels` makes an equal kernel. Independent of targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from tilewright.ir.layout import RecordSpec
from tilewright.ir.tile.core import (
    Buffer,
    Carry,
    For,
    GridAxis,
    Index,
    Kernel,
    Let,
    Load,
    Pick,
    Schedule,
    Span,
    Stmt,
    Store,
    TileType,
)
from tilewright.ir.types import FLOATS


def print_kernel(kernel: Kernel) -> str:
    """The kernel as text, ending in a newline."""
    params = ", ".join(print_buffer(b) for b in kernel.params)
    lines = [f"kernel @{kernel.name}({params}) {{"]
    lines += ["  " + _grid(a) for a in kernel.grid]
    lines += [f"  local {print_buffer(b)}" for b in kernel.locals]
    lines += _body(kernel.body, 1)
    lines += ["  " + print_schedule(s) for s in kernel.schedules]
    return "\n".join([*lines, "}"]) + "\n"


def print_kernels(kernels: Sequence[Kernel]) -> str:
    return "\n".join(print_kernel(k) for k in kernels)


def print_type(t: TileType) -> str:
    return t.dtype + (_list(t.shape) if t.shape else "")


def print_buffer(b: Buffer) -> str:
    dims = _list(b.dims) if b.dims else ""
    stored = f" as {b.encoding}" if b.encoding else f" as {print_record(b.record)}" if b.record else ""
    return f"%{b.name}: {b.dtype}{dims}{stored}{_range(b.lo, b.hi)}"


def print_record(r: RecordSpec) -> str:
    """`record "0/16 1/32" {codes: u4 "1.8:4 0.16", scale: f16 "0.16"}`"""
    streams = ", ".join(f'{s.name}: {s.dtype} "{s.digits}"{_range(s.lo, s.hi)}' for s in r.streams)
    return f'record "{r.prefix}" {{{streams}}}'


def print_statement(s: Stmt) -> str:
    """One statement without its body (loops end in `{`)."""
    if isinstance(s, Let):
        return f"%{s.name} = {_call(s)} : {print_type(s.type)}"
    if isinstance(s, Load):
        other = "" if s.other == 0 else f" else {_number(s.other, 'f32')}"
        return f"%{s.name} = load %{s.buffer}[{print_index(s.index)}]{other} : {print_type(s.type)}"
    if isinstance(s, Store):
        return f"store %{s.buffer}[{print_index(s.index)}], %{s.value}{' disjoint' if s.disjoint else ''}"
    results = ", ".join("%" + c.result for c in s.carries)
    carry = f" carry ({', '.join(_carry(c) for c in s.carries)})" if s.carries else ""
    return f"{results + ' = ' if results else ''}for {s.var} in {s.lo}..{s.hi} by {s.step}{carry} {{"


def print_index(index: Sequence[Index]) -> str:
    return ", ".join(
        f"%{i.tile}"
        if isinstance(i, Pick)
        else f"{i.start}:{i.size}"
        if isinstance(i, Span)
        else str(i.start)
        for i in index
    )


def print_schedule(s: Schedule) -> str:
    when = " when " + " and ".join(f"{c.symbol} {c.op} {c.value}" for c in s.when) if s.when else ""
    parts = [_assign(s.sizes)] if s.sizes else []
    parts += ["order " + " ".join(s.order)] if s.order else []
    parts += [f"threads {s.threads}"] if s.threads else []
    parts += [f"stage %{value} at {axis}" for value, axis in s.stages]
    parts += [f"prefetch {loop} {n}" for loop, n in s.prefetch]
    parts += ["options " + _assign(s.options)] if s.options else []
    return f"schedule {s.target}{when} {{ {'; '.join(parts)}{' ' if parts else ''}}}"


def _list(items: Sequence[object]) -> str:
    return f"[{', '.join(map(str, items))}]"


def _assign(items: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{k}={v}" for k, v in items)


def _range(lo: int | None, hi: int | None) -> str:
    return "" if lo is None or hi is None else f" in {lo}..{hi}"


def _grid(a: GridAxis) -> str:
    return f"grid {'rows ' if a.rows else ''}{a.var} in {a.extent} by {a.step}"


def _carry(c: Carry) -> str:
    return f"%{c.name} = %{c.init} : {print_type(c.type)}"


def _number(x: object, dtype: str) -> str:
    return repr(float(x)) if dtype in FLOATS else str(int(x))  # type: ignore[arg-type, call-overload]


def _shape(x: object) -> str:
    assert isinstance(x, tuple), f"a shape, got {x!r}"
    return _list(x)


#: operations with attributes: (arguments as text, attributes, dtype) to text
_SPECIAL: dict[str, Callable[[str, Mapping[str, object], str], str]] = {
    "const": lambda args, at, dtype: f"const {_number(at['value'], dtype)}",
    "iota": lambda args, at, dtype: f"iota {at['size']}",
    "index": lambda args, at, dtype: f"index {at['value']}",
    "cast": lambda args, at, dtype: f"cast {at['dtype']} {args}",
    "bitcast": lambda args, at, dtype: f"bitcast {at['dtype']} {args}",
    "reduce": lambda args, at, dtype: f"reduce {at['fn']} {args} axis {at['axis']}",
    "scan": lambda args, at, dtype: f"scan {at['fn']} {args} axis {at['axis']}",
    "expand": lambda args, at, dtype: f"expand {args} axis {at['axis']}",
    "reshape": lambda args, at, dtype: f"reshape {_shape(at['shape'])} {args}",
    "within": lambda args, at, dtype: (
        f"within {args}, {at['loop']}, {at['axis']} else {_number(at['other'], 'f32')}"
    ),
}


def _call(s: Let) -> str:
    args = ", ".join("%" + a for a in s.args)
    special = _SPECIAL.get(s.op)
    return special(args, dict(s.attrs), s.type.dtype) if special else f"{s.op} {args}"


def _body(body: Sequence[Stmt], depth: int) -> Iterator[str]:
    pad = "  " * depth
    for s in body:
        yield pad + print_statement(s)
        if isinstance(s, For):
            yield from _body(s.body, depth + 1)
            if s.carries:
                yield f"{pad}  yield {', '.join('%' + c.yields for c in s.carries)}"
            yield pad + "}"
