"""Values of a graph over packed rows: what each op becomes whose results have one place for each token.

In: the old graph, the builder of the new one, the index maps between tokens and rows. Out: operands of the
new graph for values of the old one, packed or whole. A packed value has one axis, its rows, where the value
has `lead` axes: batch and tokens, or the two as one. Axis roles decide what is computed over rows; no op is
known by name except reshapes and transpositions, whose attributes name every axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Op
from tilewright.ir.ops.base import OPS, AxisRole, OpTypeError
from tilewright.ir.ops.common import product, same_dim, same_shape
from tilewright.ir.types import TensorType, symbol
from tilewright.passes.axis_roles import roles_of
from tilewright.passes.patterns import View

#: attributes that are lists of one kind: of which only the entries behind the tokens are kept
SHAPES = ("shape",)
#: how many ops before the first attention are computed over rows, one behind the other
DEEPEST = 64


class NotByRows(Exception):
    """An op that cannot be computed over packed rows."""


@dataclass
class Rows:
    """`lead`: batch and tokens; `size`: the symbol that counts packed rows. Index maps, all i32: `rows` and
    `seq` [size], the token of each row among all, and its sequence; `places` [size]: its place in that
    sequence; `starts` [B + 1]: the first row of each sequence; `slots` [B, S]: the row of each token, -1 for
    padding. `held`: packed operands by value of the old graph, with the number of axes that rows stand
    for."""

    view: View
    b: GraphBuilder
    lead: tuple[Any, Any]
    size: str
    rows: str
    seq: str
    places: str
    starts: str
    slots: str
    held: dict[str, tuple[str, int]] = field(default_factory=dict)
    depth: int = 0

    def define(self, op: Op, results: Sequence[str], lead: int) -> None:
        """The op's results are there as packed rows."""
        for r, new in zip(op.results, results, strict=True):
            self.held[f"%{r.name}"] = new, lead

    def leads(self, t: TensorType, lead: int) -> bool:
        """Whether the first axes of a type are as long as batch and tokens, or as both together."""
        want = self.lead if lead == 2 else (product(self.lead),)
        return t.rank >= lead and same_shape(t.shape[:lead], want)

    def is_whole(self, operand: str) -> bool:
        """Whether a value of the old graph is there over [B, S]."""
        name = self.b.mapped(operand)
        try:
            self.b.type(name)
        except OpTypeError:
            return False
        return True

    # -------------------------------------------------------------- packed and whole values
    def whole(self, operand: str) -> None:
        """Make a value of the old graph available over [B, S], with zeros for padding."""
        if operand in self.held and not self.is_whole(operand):
            new, lead = self.held[operand]
            x = self.b.op("place_rows", new, self.slots)
            shape = self.view.type(operand).shape
            self.b.replace(operand, self.b.op("reshape", x, shape=shape) if lead == 1 else x)

    def packed(self, operand: str, lead: int) -> str:
        """A value with one place for each token as packed rows: made from packed rows, or picked."""
        if operand not in self.held:
            op = self.view.producer(operand)
            if op is None or not self._made(op, lead):
                self.held[operand] = self._picked(operand, lead), lead
        new, own = self.held[operand]
        return (
            new
            if own == lead
            else self.b.op("reshape", new, shape=self.of_rows(self.view.type(operand), lead))
        )

    def of_rows(self, t: TensorType, lead: int) -> tuple[Any, ...]:
        """The shape of a value of a type as packed rows."""
        return (symbol(self.size), *t.shape[lead:])

    def _made(self, op: Op, lead: int) -> bool:
        """Compute an op once more, over rows: it stands before the first attention."""
        if not op.operands and "value" in dict(op.attrs):
            attrs: dict[str, Any] = {**dict(op.attrs), "shape": self.of_rows(op.result.type, lead)}
            new = self.b.op(op.name, loc=op.loc, **attrs)
            self.define(op, [new], lead)
            return True
        if self.depth >= DEEPEST or not op.operands:
            return False
        self.depth += 1
        try:
            self.define(op, by_rows(self, op, lead), lead)
        except (NotByRows, OpTypeError):
            return False
        finally:
            self.depth -= 1
        return True

    def _picked(self, operand: str, lead: int) -> str:
        self.whole(operand)
        rest = self.view.type(operand).shape[lead:]
        return self.pick(self.b.mapped(operand), (product(self.lead), *rest), self.rows)

    def pick(self, x: str, shape: Sequence[Any], ids: str) -> str:
        """Rows of a value of the new graph, seen under a shape."""
        if self.b.type(x).shape != tuple(shape):
            x = self.b.op("reshape", x, shape=tuple(shape))
        return self.b.op("select_rows", x, ids)

    # -------------------------------------------------------------- operands beside packed ones
    def beside(self, operand: str, rank: int, lead: int) -> str:
        """An operand of an op that works element by element, for results of a rank, of which `lead` axes are
        tokens."""
        t = self.view.type(operand)
        shape = (*[1] * (rank - t.rank), *t.shape)
        if t.rank <= rank - lead:
            return self._uniform(operand)
        if t.rank == rank and self.leads(t, lead):
            return self.packed(operand, lead)
        first, rest = shape[:lead], shape[lead:]
        if all(d == 1 for d in first):
            return self.b.op("reshape", self._uniform(operand), shape=(1, *rest))
        if lead == 2 and first[0] == 1 and same_dim(first[1], self.lead[1]):
            return self.pick(self._uniform(operand), (self.lead[1], *rest), self.places)
        if lead == 2 and first[1] == 1 and same_dim(first[0], self.lead[0]):
            return self.pick(self._uniform(operand), (self.lead[0], *rest), self.seq)
        raise NotByRows

    def _uniform(self, operand: str) -> str:
        self.whole(operand)
        return self.b.mapped(operand)

    def plain(self, operand: str) -> str:
        """An operand that has no tokens."""
        if operand in self.held:
            raise NotByRows
        return self.b.mapped(operand)


# ------------------------------------------------------------------ ops
def over_rows(rows: Rows, op: Op) -> bool:
    """Compute an op over rows if one of its operands is there only so, and it works token by token."""
    leads = {rows.held[o][1] for o in op.operands if o in rows.held and not rows.is_whole(o)}
    for lead in (2, 1) if leads else ():
        try:
            rows.define(op, by_rows(rows, op, lead), lead)
        except (NotByRows, OpTypeError):
            continue
        return True
    return False


def by_rows(rows: Rows, op: Op, lead: int) -> tuple[str, ...]:
    """The op's results as packed rows. NotByRows or OpTypeError if it does not work token by token."""
    if not op.results or not all(rows.leads(r.type, lead) for r in op.results):
        raise NotByRows
    if OPS[op.name].state:
        raise NotByRows
    rule = _RULES.get(op.name, _pointwise if OPS[op.name].expr is not None else _by_roles)
    operands, attrs = rule(rows, op, lead)
    given: dict[str, Any] = {**dict(op.attrs), **attrs}
    new = rows.b.multi(op.name, *operands, loc=op.loc, **given)
    for r, n in zip(op.results, new, strict=True):
        if not same_shape(rows.b.type(n).shape, rows.of_rows(r.type, lead)):
            raise NotByRows
    return new


New = tuple[list[str], dict[str, Any]]


def _pointwise(rows: Rows, op: Op, lead: int) -> New:
    return [rows.beside(o, op.result.type.rank, lead) for o in op.operands], {}


def _reshape(rows: Rows, op: Op, lead: int) -> New:
    """Elements keep their order, so that the rest of a token's axes is the rest on both sides."""
    t = rows.view.type(op.operands[0])
    own = next((n for n in (2, 1) if rows.leads(t, n)), None)
    if own is None:
        raise NotByRows
    return [rows.packed(op.operands[0], own)], {"shape": rows.of_rows(op.result.type, lead)}


def _transpose(rows: Rows, op: Op, lead: int) -> New:
    perm = cast("tuple[int, ...]", op.attr("perm"))
    if perm[:lead] != tuple(range(lead)):
        raise NotByRows
    return [rows.packed(op.operands[0], lead)], {"perm": (0, *(p - lead + 1 for p in perm[lead:]))}


def _gather(rows: Rows, op: Op, lead: int) -> New:
    """Rows of a table, by indices that have tokens."""
    if op.attr("axis") != 0:
        raise NotByRows
    table, ids = op.operands
    return [rows.plain(table), rows.packed(ids, lead)], {}


_RULES = {"reshape": _reshape, "transpose": _transpose, "gather": _gather}


def _by_roles(rows: Rows, op: Op, lead: int) -> New:
    """Operands that have the result's tokens are packed, all others have none."""
    operands, tokens = list[str](), list[bool]()
    for o, roles in zip(op.operands, roles_of(op, rows.view.type), strict=True):
        tokens.append(_has_tokens(roles, lead))
        operands.append(rows.packed(o, lead) if tokens[-1] else rows.plain(o))
    if not any(tokens):
        raise NotByRows
    attrs = {key: _moved(rows, op, key, value, lead, tokens[0]) for key, value in op.attrs}
    return operands, attrs


def _has_tokens(roles: Sequence[AxisRole], lead: int) -> bool:
    """Whether the first axes of an operand are those of the result, which has `lead` axes of tokens.
    NotByRows if any other axis has to do with them."""
    first = [tuple(r) for r in roles[:lead]] == [("keep", n) for n in range(lead)]
    for role in roles[lead if first else 0 :]:
        if len(role) == 2 and role[1] < lead:
            raise NotByRows
    return first


def _moved(rows: Rows, op: Op, key: str, value: Any, lead: int, tokens: bool) -> Any:
    """An attribute of an op over rows. `tokens`: whether the first operand, whose axes attributes name, has
    them."""
    kind = OPS[op.name].attrs[key].kind
    if kind in ("axis", "axes"):
        axes = (value,) if kind == "axis" else value
        if tokens and any(a < lead for a in axes):
            raise NotByRows
        moved = tuple(a - (lead - 1) if tokens else a for a in axes)
        return moved[0] if kind == "axis" else moved
    if key in SHAPES:
        return (symbol(rows.size), *value[lead:])
    if kind == "dims" and key != "sizes" or kind == "ints":
        raise NotByRows
    return value


def taken_rows(rows: Rows, op: Op) -> bool:
    """Some tokens of a packed value, such as the first of each sequence: those alone are put in their
    places."""
    record = OPS[op.name]
    if not record.moves or record.taken is None or len(op.operands) != 1 or len(op.results) != 1:
        return False
    new, lead = rows.held.get(op.operands[0], ("", 0))
    taken = record.taken([rows.view.type(op.operands[0])], dict(op.attrs), 0) if lead == 2 else None
    if taken is None or taken[0] >= lead or rows.is_whole(op.operands[0]):
        return False
    slots = rows.b.op(op.name, rows.slots, loc=op.loc, **dict(op.attrs))  # type: ignore[arg-type]
    rows.b.replace(f"%{op.result.name}", rows.b.op("place_rows", new, slots, loc=op.loc))
    return True
