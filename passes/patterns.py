"""Matching small graph patterns, and the plumbing that rewriting passes share.

A pattern is data: `op("mul", op("rsqrt", …), var("x"))`; `add`, `mul`, `and`, `min`, `max` match in either
order, and casts between float types are looked through where `wide` says so. In: a graph. Out: bindings of
names to operands. Knows no particular rewrite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilewright.ir.graph.core import Graph, Inline, Module, Op
from tilewright.ir.numbers import STORED, from_bits
from tilewright.ir.ops.base import OPS
from tilewright.ir.types import TensorType

COMMUTATIVE = ("add", "mul", "and", "or", "min", "max", "eq", "ne")


# ------------------------------------------------------------------ patterns
@dataclass(frozen=True)
class Var:
    """Any operand; the same name must bind the same operand."""

    name: str


@dataclass(frozen=True)
class Num:
    """A scalar known at compile time: bound as a number; `value`: only this one (relative 1e-6)."""

    name: str = ""
    value: float | None = None


@dataclass(frozen=True)
class Of:
    """The result of an op of one of `names` on `args`; `bind` names the op itself."""

    names: tuple[str, ...]
    args: tuple[Pattern, ...]
    bind: str = ""


@dataclass(frozen=True)
class Either:
    """The first alternative that matches."""

    options: tuple[Pattern, ...]


Pattern = Var | Num | Of | Either


def op(names: str, *args: Pattern, bind: str = "") -> Of:
    """`names`: alternatives separated by `|`."""
    return Of(tuple(names.split("|")), args, bind)


def var(name: str) -> Var:
    return Var(name)


def num(name: str = "", value: float | None = None) -> Num:
    return Num(name, value)


def either(*options: Pattern) -> Either:
    return Either(options)


@dataclass(frozen=True)
class Match:
    """What a pattern bound: operands, numbers and ops by name."""

    operands: dict[str, str]
    numbers: dict[str, float]
    ops: dict[str, Op]

    def __getitem__(self, name: str) -> str:
        return self.operands[name]

    def merged(self, **operands: str) -> Match:
        return Match({**self.operands, **operands}, self.numbers, self.ops)


EMPTY = Match({}, {}, {})


class View:
    """One graph with its lookups: producers, uses, types, scalars."""

    def __init__(self, module: Module, graph: Graph) -> None:
        self.module, self.graph = module, graph
        self.producers = graph.producers()
        self.users = graph.uses()
        self.types = {"%" + n: v.type for n, v in graph.values().items()}
        self.weights = module.weight_map()
        self.types.update({"@" + n: w.type for n, w in self.weights.items()})

    def producer(self, operand: str, *names: str) -> Op | None:
        """The op that makes `operand`, if it is one of `names` (any if none are given)."""
        found = self.producers.get(operand[1:]) if operand[0] == "%" else None
        return found if found is not None and (not names or found.name in names) else None

    def type(self, operand: str) -> TensorType:
        return self.types[operand]

    def scalar(self, operand: str) -> float | None:
        """The value of a constant of one number, looking through what only moves or casts it."""
        made = self.producer(operand)
        if made is not None:
            if OPS[made.name].moves and len(made.operands) == 1:
                return self.scalar(made.operands[0])
            value = None if made.operands else dict(made.attrs).get("value")
            return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        w = self.weights.get(operand[1:]) if operand[0] == "@" else None
        if w is None or not isinstance(w.source, Inline) or any(d != 1 for d in w.source.shape):
            return None
        raw = np.frombuffer(w.source.data, STORED[w.source.dtype])
        return float(from_bits(raw, w.source.dtype).reshape(-1)[0])

    def single_use(self, operand: str) -> bool:
        return len(self.users.get(operand, [])) == 1 and operand not in self.graph.outputs

    def match(self, pattern: Pattern, operand: str, so_far: Match = EMPTY) -> Match | None:
        """Bindings under which `operand` is an instance of `pattern`."""
        if isinstance(pattern, Var):
            known = so_far.operands.get(pattern.name, operand)
            return so_far.merged(**{pattern.name: operand}) if known == operand else None
        if isinstance(pattern, Num):
            return self._number(pattern, operand, so_far)
        if isinstance(pattern, Either):
            return next(
                (m for p in pattern.options if (m := self.match(p, operand, so_far)) is not None), None
            )
        return self._op(pattern, operand, so_far)

    def _number(self, pattern: Num, operand: str, so_far: Match) -> Match | None:
        value = self.scalar(operand)
        if (
            value is None
            or pattern.value is not None
            and not np.isclose(value, pattern.value, rtol=1e-6, atol=0)
        ):
            return None
        numbers = {**so_far.numbers, pattern.name: value} if pattern.name else so_far.numbers
        return Match(so_far.operands, numbers, so_far.ops)

    def _op(self, pattern: Of, operand: str, so_far: Match) -> Match | None:
        found = self.producer(operand, *pattern.names)
        if found is None or len(found.operands) != len(pattern.args):
            return None
        orders = [found.operands]
        if found.name in COMMUTATIVE:
            orders.append(found.operands[::-1])
        for operands in orders:
            m: Match | None = so_far
            for sub, o in zip(pattern.args, operands, strict=True):
                m = self.match(sub, o, m) if m is not None else None
            if m is not None:
                return Match(m.operands, m.numbers, {**m.ops, pattern.bind: found} if pattern.bind else m.ops)
        return None


# ------------------------------------------------------------------ what rewriting passes share
def where(found: Op) -> str:
    """The model source line of an op, for messages."""
    return found.loc.text if found.loc else "unknown source line"


def last_axis(t: TensorType, axes: object) -> bool:
    """Whether a reduction's axes are exactly the last one."""
    return isinstance(axes, tuple) and axes == (t.rank - 1,)
