"""From tokens to a light syntax tree: what the LALR parser's reductions build.

In: lark's tokens. Out: nodes that still hold tokens (for positions), affine sums already folded. Refuses
numbers beyond 64 bits, expressions nested too deep and unknown dtypes. Independent of types, scopes or
kernels.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from lark import Token, Transformer

from tilewright.ir.affine import Affine, whole
from tilewright.ir.layout import RecordSpec, StreamSpec
from tilewright.ir.text.tile_nodes import (
    AxisNode,
    BufferNode,
    Entry,
    Expr,
    ItemNode,
    KernelNode,
    LetNode,
    LoopNode,
    Problem,
    StoreNode,
)
from tilewright.ir.tile.core import Condition, Schedule, Size, TileType
from tilewright.ir.types import BITS

MAX_DEPTH = 64
MAX_LOOPS = 32
MAX_INT = 2**63


def integer(t: Token) -> int:
    value = int(t) if len(t) <= 19 else MAX_INT + 1
    if value > MAX_INT:
        raise Problem("integer beyond 64 bits", t)
    return value


def dtype(t: Token) -> str:
    if str(t) not in BITS:
        raise Problem(f"unknown element type {str(t)!r}; known: {', '.join(BITS)}", t)
    return str(t)


def _bounded(x: int | Fraction, at: Token) -> int | Fraction:
    f = Fraction(x)
    if abs(f.numerator) > MAX_INT or f.denominator > MAX_INT:
        raise Problem("index arithmetic beyond 64 bits", at)
    return x


def _make(op: str, at: Token, args: tuple[Expr, ...] = (), **attrs: object) -> Expr:
    depth = 1 + max((a.depth for a in args), default=0)
    if depth > MAX_DEPTH:
        raise Problem(f"expression nested more than {MAX_DEPTH} deep: name the inner values", at)
    return Expr(op, at, args, tuple(sorted(attrs.items())), depth)


def _given(items: list[Any]) -> list[Any]:
    return [i for i in items if i is not None]


def _infix(op: str) -> Any:
    return lambda self, c: _make(op, c[0].at, (c[0], c[1]))


_COMPARE = {
    "<": ("lt", False),
    "<=": ("le", False),
    ">": ("lt", True),
    ">=": ("le", True),
    "==": ("eq", False),
    "!=": ("ne", False),
}


class Build(Transformer[Token, Any]):
    """One method per rule of grammar.lark; `c` holds the rule's children."""

    start = staticmethod(tuple)
    dims = sizes = index = names = staticmethod(lambda c: tuple(_given(c)))
    grid = carry = yields = when = staticmethod(lambda c: tuple(_given(c)))
    or_, xor_, and__ = _infix("or"), _infix("xor"), _infix("and")
    shl, shr, add, sub, mul, div = (_infix(n) for n in ("shl", "shr", "add", "sub", "mul", "div"))

    # -------------------------------------------------------- declarations
    def kernel(self, c: list[Any]) -> KernelNode:
        rest = _given(c[1:])
        params = tuple(x for tag, x in (r for r in rest if isinstance(r, tuple) and r and r[0] == "param"))
        locals_ = tuple(x for tag, x in (r for r in rest if isinstance(r, tuple) and r and r[0] == "local"))
        at = next(k for k, r in enumerate(rest) if isinstance(r, list))
        axes = tuple(
            a for r in rest[:at] if isinstance(r, tuple) and r and isinstance(r[0], AxisNode) for a in r
        )
        return KernelNode(c[0], params, axes, locals_, tuple(rest[at]), tuple(rest[at + 1 :]))

    def body(self, c: list[Any]) -> list[Any]:
        return c

    def param(self, c: list[Any]) -> tuple[str, BufferNode]:
        return "param", self._named(c)

    def local(self, c: list[Any]) -> tuple[str, BufferNode]:
        return "local", self._named(c)

    def _named(self, c: list[Any]) -> BufferNode:
        kind, dims, storage, values = c[1]
        record = storage if isinstance(storage, RecordSpec) else None
        return BufferNode(
            c[0], kind, dims or (), record, storage if isinstance(storage, Token) else None, values
        )

    def buffer(self, c: list[Any]) -> tuple[str, Any, Any, Any]:
        return dtype(c[0]), c[1], c[2], c[3]

    def packed(self, c: list[Any]) -> RecordSpec:
        return RecordSpec(str(c[0])[1:-1], tuple(c[1:]))

    def encoded(self, c: list[Any]) -> Token:
        token: Token = c[0]
        return token

    def stream(self, c: list[Any]) -> StreamSpec:
        lo, hi = c[3] or (None, None)
        return StreamSpec(str(c[0]), dtype(c[1]), str(c[2])[1:-1], lo, hi)

    def range(self, c: list[Any]) -> tuple[int, int]:
        return c[0], c[1]

    def axis(self, c: list[Any]) -> AxisNode:
        return AxisNode(str(c[1]), c[2], c[3], c[0] is not None)

    # -------------------------------------------------------- statements
    def let(self, c: list[Any]) -> LetNode:
        return LetNode(*c)

    def store(self, c: list[Any]) -> StoreNode:
        return StoreNode(c[0], c[1], c[2], c[3] is not None)

    def loop(self, c: list[Any]) -> LoopNode:
        var, lo, hi, step, items = c[1]
        depth = 1 + max((s.depth for s in c[2] if isinstance(s, LoopNode)), default=0)
        if depth > MAX_LOOPS:
            raise Problem(f"loops nested more than {MAX_LOOPS} deep", var)
        return LoopNode(c[0] or (), var, lo, hi, step, items or (), tuple(c[2]), c[3] or (), depth)

    def for_head(self, c: list[Any]) -> tuple[Any, ...]:
        return tuple(c)

    def named_item(self, c: list[Any]) -> ItemNode:
        return ItemNode(*c)

    def bare_item(self, c: list[Any]) -> ItemNode:
        return ItemNode(None, *c)

    def type(self, c: list[Any]) -> TileType:
        return TileType(dtype(c[0]), c[1] or ())

    def entry(self, c: list[Any]) -> Entry:
        return Entry(c[0], c[1])

    # -------------------------------------------------------- values
    def ref(self, c: list[Any]) -> Expr:
        return Expr("ref", c[0])

    def literal(self, c: list[Any]) -> Expr:
        return _make("literal", c[0][1], value=c[0][0])

    def const(self, c: list[Any]) -> Expr:
        return _make("const", c[0], value=c[1][0], dtype=c[2].dtype, shape=c[2].shape)

    def iota(self, c: list[Any]) -> Expr:
        return _make("iota", c[0], size=c[1])

    def index_value(self, c: list[Any]) -> Expr:
        return _make("index", c[0], value=c[1])

    def paren(self, c: list[Any]) -> Expr:
        return _make("paren", c[0].at, (c[0],))

    def load(self, c: list[Any]) -> Expr:
        c = [x for k, x in enumerate(c) if k or x is not None]
        return _make("load", c[0], index=c[1], other=float(c[2][0]) if c[2] else 0.0)

    def neg(self, c: list[Any]) -> Expr:
        inner = c[0]
        if inner.op == "literal":
            return _make("literal", inner.at, value=-inner.attrs[0][1])
        return _make("neg", inner.at, (inner,))

    def call(self, c: list[Any]) -> Expr:
        return _make(str(c[0]), c[0], tuple(c[1:]))

    def comparison(self, c: list[Any]) -> Expr:
        op, swapped = _COMPARE[str(c[1])]
        return _make(op, c[1], (c[2], c[0]) if swapped else (c[0], c[2]))

    def cast(self, c: list[Any]) -> Expr:
        return _make(str(c[0]), c[0], (c[2],), dtype=dtype(c[1]))

    def reduce(self, c: list[Any]) -> Expr:
        return _make(str(c[0]), c[0], (c[2],), fn=str(c[1]), axis=None if c[3] is None else integer(c[3]))

    def expand(self, c: list[Any]) -> Expr:
        return _make("expand", c[0], (c[1],), axis=integer(c[-1]))

    def reshape(self, c: list[Any]) -> Expr:
        return _make("reshape", c[0], (c[2],), shape=c[1])

    def within(self, c: list[Any]) -> Expr:
        return _make("within", c[0], (c[1],), loop=str(c[2]), axis=integer(c[3]), other=float(c[4][0]))

    # -------------------------------------------------------- integers
    def affine(self, c: list[Any]) -> Affine:
        if c[0] is None and len(c) == 2:
            return c[1][0]  # type: ignore[no-any-return]
        sums: dict[str, int | Fraction] = {}
        const: int | Fraction = 0
        for sign, (a, at) in zip(c[::2], c[1::2], strict=True):
            s = -1 if str(sign) == "-" else 1
            const = _bounded(const + s * a.const, at)
            for name, k in a.terms:
                sums[name] = _bounded(sums.get(name, 0) + s * k, at)
        return Affine(tuple(sorted((n, whole(k)) for n, k in sums.items() if k)), whole(const))

    def term(self, c: list[Any]) -> tuple[Affine, Token]:
        out, at = c[0]
        for op, (x, where) in zip(c[1::2], c[2::2], strict=True):
            if str(op) == "/":
                if not x.is_const or x.const == 0:
                    raise Problem(f"an index can be divided only by integers other than 0, not by {x}", where)
                out = out * Fraction(1, x.const) if isinstance(x.const, int) else out * (1 / x.const)
            elif x.is_const or out.is_const:
                out = out * x.const if x.is_const else x * out.const
            else:
                raise Problem(f"an index is a sum of names times numbers; {out} * {x} is not", where)
            for _, k in (*out.terms, ("", out.const)):
                _bounded(k, where)
        return out, at

    def factor(self, c: list[Any]) -> tuple[Affine, Token]:
        x = c[0]
        if isinstance(x, Affine):
            return x, Token("NAME", str(x))
        return (Affine((), integer(x)) if x.type == "INT" else Affine(((str(x), 1),))), x

    def size(self, c: list[Any]) -> Size:
        return integer(c[0]) if c[0].type == "INT" else str(c[0])

    def sint(self, c: list[Any]) -> int:
        return integer(c[1]) * (1 if c[0] is None else -1)

    def number(self, c: list[Any]) -> tuple[int | float, Token]:
        value, at = c[1]
        return (value if c[0] is None else -value), at

    def plain(self, c: list[Any]) -> tuple[int | float, Token]:
        t = c[0]
        if t.type == "INT":
            return integer(t), t
        value = math.nan if str(t) == "nan" else float(t)
        if t.type == "FLOAT" and math.isinf(value):
            raise Problem(f"number {t} is beyond float64; write inf", t)
        return value, t

    # -------------------------------------------------------- schedules
    def schedule(self, c: list[Any]) -> Schedule:
        target, when, *choices = c
        got: dict[str, Any] = {}
        for key, value in choices:
            if key in ("stages", "prefetch"):
                got[key] = (*got.get(key, ()), *value)
            elif key in got:
                raise Problem(f"schedule {target} has `{key}` twice", target)
            else:
                got[key] = value
        return Schedule(str(target), got.pop("sizes", ()), when or (), **got)

    def condition(self, c: list[Any]) -> Condition:
        if str(c[1]) == "!=":
            raise Problem("a schedule's condition must use one of <= < >= > ==", c[1])
        return Condition(str(c[0]), str(c[1]), c[2])

    def sizes_choice(self, c: list[Any]) -> tuple[str, Any]:
        return "sizes", tuple(c)

    def order(self, c: list[Any]) -> tuple[str, Any]:
        return "order", tuple(map(str, c))

    def threads(self, c: list[Any]) -> tuple[str, Any]:
        return "threads", " ".join(str(x) for x in c)

    def stage(self, c: list[Any]) -> tuple[str, Any]:
        return "stages", ((str(c[0])[1:], str(c[1])),)

    def prefetch(self, c: list[Any]) -> tuple[str, Any]:
        return "prefetch", ((str(c[0]), integer(c[1])),)

    def options(self, c: list[Any]) -> tuple[str, Any]:
        return "options", tuple(c)

    def assign(self, c: list[Any]) -> tuple[str, int]:
        return str(c[0]), c[1]
