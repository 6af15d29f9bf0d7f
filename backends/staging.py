"""Staging, Tile to Tile: a named value is computed once at a grid axis, kept in a local, and read from there.

In: a bound kernel and a schedule whose `stages` name values and axes. Out: the kernel with locals and
rewritten uses, and per stage a kernel whose body is the loop nest that fills the local. The local is laid out
in the order in which the consuming dot reads it. Independent of instruction sets: the caller gives the lanes
and the grain of a dot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tilewright.ir.affine import Affine
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.layout import RecordSpec, StreamSpec
from tilewright.ir.tile.core import (
    At,
    Buffer,
    For,
    Index,
    Kernel,
    Let,
    Load,
    Schedule,
    Span,
    Stmt,
    Store,
    TileType,
    index_scalars,
    walk,
)

#: (acc, a, b, largest a, largest b) -> (lanes, grain), or None if there is no such instruction
DotShape = Callable[[str, str, str, int, int], "tuple[int, int] | None"]

#: loop variables of the copy nests carry this prefix, so that `prefetch copy n` finds them
COPY = "copy_"


@dataclass(frozen=True)
class Staged:
    """`copies`: (grid axis, a kernel whose body fills one local)."""

    kernel: Kernel
    copies: tuple[tuple[str, Kernel], ...]


def stage(kernel: Kernel, schedule: Schedule, dot_shape: DotShape) -> Staged:
    """Every stage of the schedule carried out, in order."""
    out = Staged(kernel, ())
    for value, axis in schedule.stages:
        out = _stage(out, value, axis, dot_shape)
    return out


def _stage(done: Staged, value: str, axis: str, dot_shape: DotShape) -> Staged:
    kernel = done.kernel
    loops = _path(kernel.body, value)
    if loops is None:
        raise UnsupportedError(
            f"schedule stages %{value}, which the kernel does not compute", f"kernel {kernel.name}"
        )
    body = loops[-1].body if loops else kernel.body
    made = next(s for s in body if isinstance(s, Let | Load) and s.name == value)
    nest = slice_of(kernel.body, value)
    inner = _needed(loops, {n for s in nest for n in _names(s)})
    trips = [_trips(f, kernel) for f in inner]
    local = _local(kernel, made, _fresh(kernel, f"{value}_{axis}"), trips, dot_shape)
    at: list[Index] = [At((Affine.of(f.var) - f.lo) / int(f.step)) for f in inner]
    tile: list[Index] = [Span(Affine(), n) for n in made.type.shape]
    read = Load(value, local.name, (*at, *tile), made.type)
    fill: tuple[Stmt, ...] = (*nest, Store(local.name, (*at, *tile), value))
    for f in reversed(inner):
        fill = (For(f.var, f.lo, f.hi, f.step, (), fill),)
    locals_ = (*kernel.locals, local)
    copy = replace(kernel, body=_renamed(fill, {f.var: COPY + f.var for f in inner}), locals=locals_)
    changed = replace(kernel, body=_replaced(kernel.body, value, read), locals=locals_)
    return Staged(changed, (*done.copies, (axis, copy)))


def _needed(loops: list[For], used: set[str]) -> list[For]:
    """The loops whose variables are used, by statements or by the bounds of a loop that is needed itself."""
    needed: list[For] = []
    for f in reversed(loops):
        if f.var in used:
            needed.insert(0, f)
            used = {*used, *f.lo.names, *f.hi.names}
    return needed


def _fresh(kernel: Kernel, name: str) -> str:
    """A name that no buffer has."""
    taken = {b.name for b in (*kernel.params, *kernel.locals)}
    while name in taken:
        name += "_"
    return name


def _path(body: tuple[Stmt, ...], value: str) -> list[For] | None:
    """The loops around the statement that makes a value; None if nothing does."""
    for s in body:
        if isinstance(s, Let | Load) and s.name == value:
            return []
        if isinstance(s, For):
            inner = _path(s.body, value)
            if inner is not None:
                return [s, *inner]
    return None


def slice_of(body: tuple[Stmt, ...], value: str) -> list[Stmt]:
    """The statements that a value is computed by, in order. Raises if it depends on a carried value."""
    makers = {s.name: s for s in walk(body) if isinstance(s, Let | Load)}
    needed: list[str] = []

    def visit(name: str) -> None:
        if name in needed:
            return
        if name not in makers:
            raise UnsupportedError(f"%{value} cannot be staged: it depends on %{name}, which a loop carries")
        made = makers[name]
        scalars = index_scalars(made.index) if isinstance(made, Load) else ()
        for a in (*made.args, *scalars):
            visit(a)
        needed.append(name)

    visit(value)
    return [makers[n] for n in needed]


def _names(s: Stmt) -> set[str]:
    if isinstance(s, Load):
        return {n for i in s.index if isinstance(i, At | Span) for n in i.start.names}
    if isinstance(s, Let):
        return {n for _, v in s.attrs if isinstance(v, Affine) for n in v.names} | {
            str(v) for k, v in s.attrs if k == "loop"
        }
    return set()


def _trips(f: For, kernel: Kernel) -> int:
    span = f.hi - f.lo
    if not span.is_const or span.const % int(f.step) or span.const <= 0:
        raise UnsupportedError(
            f"loop {f.var} does not have an integer number of iterations known at compile time: nothing "
            "inside it can be staged",
            f"kernel {kernel.name}",
        )
    return int(span.const) // int(f.step)


def _local(kernel: Kernel, made: Let | Load, name: str, trips: list[int], dot_shape: DotShape) -> Buffer:
    shape = [int(n) for n in made.type.shape]
    dims = tuple(Affine.of(n) for n in (*trips, *shape))
    top = largest(kernel, made.name)
    dtype = made.type.dtype
    user = next(
        (s for s in walk(kernel.body) if isinstance(s, Let) and s.op == "dot" and s.args[2] == made.name),
        None,
    )
    if user is not None:
        types = _types(kernel.body)
        entry = dot_shape(
            types[user.args[0]].dtype, types[user.args[1]].dtype, dtype, largest(kernel, user.args[1]), top
        )
        if entry and shape[0] % entry[0] == 0 and shape[1] % entry[1] == 0:
            lanes, grain = entry
            k, n = len(trips) + 1, len(trips)
            digits = (
                f"{k}.{shape[1] // grain}:{grain} {n}.{shape[0] // lanes}:{lanes} {n}.{lanes} {k}.{grain}"
            )
            prefix = " ".join(str(d) for d in range(len(trips)))
            return Buffer(
                name,
                dtype,
                dims,
                None,
                RecordSpec(
                    prefix,
                    (
                        StreamSpec(
                            "values", dtype, digits, 0 if top < 255 else None, top if top < 255 else None
                        ),
                    ),
                ),
            )
    return Buffer(name, dtype, dims)


def _types(body: tuple[Stmt, ...]) -> dict[str, TileType]:
    out: dict[str, TileType] = {}
    for s in walk(body):
        if isinstance(s, Let | Load):
            out[s.name] = s.type
        elif isinstance(s, For):
            out |= {c.name: c.type for c in s.carries} | {c.result: c.type for c in s.carries}
    return out


def largest(kernel: Kernel, value: str) -> int:
    """An upper bound of an unsigned byte value: what its stream or buffer promises, else 255."""
    made = next((s for s in walk(kernel.body) if isinstance(s, Let | Load) and s.name == value), None)
    if not isinstance(made, Load):
        return 255
    buffer, stream = kernel.buffer(made.buffer), made.buffer.partition(".")[2] or "values"
    shape = [int(d.const) if d.is_const else None for d in buffer.dims]
    spec = buffer.record or (buffer.encoding.record(shape) if buffer.encoding else None)
    found = next((s for s in spec.streams if s.name == stream), None) if spec else None
    if found is not None and found.dtype[0] == "u" and int(found.dtype[1:]) < 8:
        return found.hi if found.hi is not None else (1 << int(found.dtype[1:])) - 1
    hi = found.hi if found is not None else buffer.hi
    return hi if hi is not None else 255


def _replaced(body: tuple[Stmt, ...], value: str, by: Load) -> tuple[Stmt, ...]:
    return tuple(
        by
        if isinstance(s, Let | Load) and s.name == value
        else replace(s, body=_replaced(s.body, value, by))
        if isinstance(s, For)
        else s
        for s in body
    )


def _renamed(body: tuple[Stmt, ...], names: dict[str, str]) -> tuple[Stmt, ...]:
    def one(s: Stmt) -> Stmt:
        if isinstance(s, For):
            return replace(
                s,
                var=names.get(s.var, s.var),
                lo=s.lo.bind(names),
                hi=s.hi.bind(names),
                body=_renamed(s.body, names),
            )
        if isinstance(s, Let):
            attrs = tuple(
                (k, v.bind(names) if isinstance(v, Affine) else names.get(str(v), v) if k == "loop" else v)
                for k, v in s.attrs
            )
            return replace(s, attrs=attrs)
        index = tuple(
            replace(i, start=i.start.bind(names)) if isinstance(i, At | Span) else i for i in s.index
        )
        return replace(s, index=index)

    return tuple(one(s) for s in body)
