"""The state of the verifier in one kernel: the values defined so far, and the names in scope.

In: a kernel. Out: types of values, and VerifyErrors for names that are not in scope. The numbers of the rules
are those of `tile.verify`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tilewright.ir.affine import Affine
from tilewright.ir.errors import VerifyError
from tilewright.ir.numbers import HELD
from tilewright.ir.text.tile_printer import print_statement
from tilewright.ir.tile.core import (
    For,
    Kernel,
    Let,
    Load,
    Size,
    Span,
    Stmt,
    Store,
    TileType,
    index_values,
    walk,
)

_VALUE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\Z")
NARROW = ("u1", "u2", "u3", "u4", "u5", "u6", "u7")
ARITHMETIC = tuple(d for d in HELD if d not in NARROW)


def type_shown(t: TileType) -> str:
    """`f32[4, 16]`."""
    return f"{t.dtype}{list(t.shape)}"


def used_sizes(kernel: Kernel) -> set[str]:
    """Names used as sizes: in tile shapes, steps and spans."""
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


class Scope:
    """What is defined so far, and what is in scope at the statement being checked."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
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
        """The error for rule `number`, at a statement."""
        return VerifyError(
            message, f"kernel @{self.kernel.name}", hint, number, print_statement(s) if s is not None else ""
        )

    def affine(self, a: Affine, known: Iterable[str], what: str, s: Stmt | None = None) -> None:
        """Rules 6 and 7: every name is known, or an integer value."""
        for n in a.names:
            if n.startswith("%"):
                if s is None:
                    raise self.fail(7, f"{what}: {n} is not in scope", s)
                t = self.use(n[1:], s)
                if t.shape or t.dtype[0] not in "iu":
                    raise self.fail(6, f"{what}: {n} is {type_shown(t)}, expected one integer", s)
            elif n not in known:
                raise self.fail(
                    7, f"{what}: {n} is not in scope", s, f"known: {', '.join(sorted(known)) or 'nothing'}"
                )

    def inside(self) -> set[str]:
        """Names that indices and bounds may use here."""
        return {*self.symbols, *self.sizes, *self.axes, *self.loops}

    def define(self, name: str, t: TileType, s: Stmt) -> None:
        """Rules 1, 2 and 5 for a new value."""
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
        """The type of a value that a statement reads; rule 3."""
        if name not in self.types:
            why = (
                "is used outside the loop that defines it or before its definition"
                if name in self.defined
                else "is not defined before this"
            )
            raise self.fail(3, f"%{name} {why}", s)
        return self.types[name]
