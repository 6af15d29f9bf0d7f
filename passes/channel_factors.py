"""Where a factor per channel can go: what would make a value x into x / t, by changing weights alone.

In: a graph, a value that contractions read. Out: the channels that must share a factor, and the weights that
absorb its inverse: a norm's, or the rows of the linear before. Ops are asked what they are linear in and
where their channels come from (`OpDef`). Knows no solver and no particular op.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.graph.core import Op
from tilewright.ir.ops.base import OPS, Gain
from tilewright.ir.ops.common import product
from tilewright.ir.types import FLOATS
from tilewright.passes.lower.record import is_alias
from tilewright.passes.patterns import View
from tilewright.passes.rewrite import Declined
from tilewright.passes.weight_roles import product_of

F32 = NDArray[np.float32]
#: by channel, the number of its factor
Classes = NDArray[np.intp]


@dataclass(frozen=True)
class Change:
    """A weight's values are multiplied by every array of `muls`, then `add` is added."""

    muls: tuple[F32, ...]
    add: F32 | None = None

    def on(self, values: F32) -> F32:
        for mul in self.muls:
            values = values * mul
        return np.asarray(values if self.add is None else values + self.add, np.float32)

    def after(self, first: Change | None) -> Change:
        """Both, the other one first. A norm, which alone has something to add, changes once."""
        return self if first is None else Change((*first.muls, *self.muls), self.add)


@dataclass(frozen=True)
class Fold:
    """`classes[c]`: which factor channel c takes, of `size`. The weight takes the inverse: a norm's weight
    and bias (`offset` stands in the norm beside its weight), or rows `lo`… of a linear and its bias."""

    classes: Classes
    weight: str
    bias: str = ""
    lo: int = 0
    norm: bool = False
    offset: float = 0.0

    @property
    def size(self) -> int:
        return int(self.classes.max()) + 1

    def changes(self, t: F32, rows: int) -> dict[str, Change]:
        """Changes of the weights that make the value x / t[classes]; `rows` of the weight."""
        inverse = (1 / t).astype(np.float32)
        if self.norm:
            add = self.offset * (inverse - 1) if self.offset else None
            return {self.weight: Change((inverse,), add)} | (
                {self.bias: Change((inverse,))} if self.bias else {}
            )
        mul = np.ones(rows, np.float32)
        mul[self.lo : self.lo + len(t)] = inverse
        return {self.weight: Change((mul[:, None],))} | ({self.bias: Change((mul,))} if self.bias else {})


def fold_of(view: View, x: str, readers: set[str]) -> Fold:
    """Where the inverse of a factor on x goes. `readers`: the weights that take the factor. Declined says why
    it cannot."""
    for op in view.users[x]:
        found = product_of(op)
        if found is None or found[0] != x or found[1][1:] not in readers or op.operands.count(x) > 1:
            raise Declined(f"{op.name} reads it too")
    shared = [w for w in readers if len(view.users[f"@{w}"]) > 1]
    if shared or x in view.graph.outputs:
        raise Declined(f"@{shared[0]} has other readers" if shared else "it is a result of the graph")
    k = cast(int, view.type(x).shape[-1])
    return _absorb(view, x, np.arange(k))


def _absorb(view: View, x: str, classes: Classes) -> Fold:
    """The rules: a norm's weight takes it, the rows of a linear take it, and everything that is linear or
    homogeneous in an operand passes it on."""
    op = view.producer(x)
    if op is None:
        raise Declined("it is an input of the graph")
    record = OPS[op.name]
    if record.gain is not None:
        return _norm(view, op, record.gain, classes)
    if product_of(op) is not None:
        return _rows(view, op, 0, classes)
    if record.taken is not None:
        return _taken(view, op, x, classes)
    if record.expr is not None or is_alias(op):
        return _factor(view, op, classes)
    raise Declined(f"there is no weight to fold into before {op.name}")


def _alone(view: View, operand: str) -> str:
    if operand[0] == "@" or not view.single_use(operand):
        raise Declined(f"{operand} has other readers")
    return operand


def _weight(view: View, operand: str) -> str:
    if operand[0] != "@" or len(view.users[operand]) > 1:
        raise Declined(f"{operand} is computed, or has other readers")
    return operand[1:]


# ------------------------------------------------------------------ where it ends
def _norm(view: View, op: Op, gain: Gain, classes: Classes) -> Fold:
    at = dict(op.attrs)
    if len(op.operands) <= gain.weight or at.get("axis") != op.result.type.rank - 1:
        raise Declined(f"{op.name} has no weight along its channels")
    bias = _weight(view, op.operands[gain.bias]) if len(op.operands) > gain.bias else ""
    offset = float(cast(float, at.get(gain.offset, 0.0)))
    return Fold(classes, _weight(view, op.operands[gain.weight]), bias, norm=True, offset=offset)


def _rows(view: View, op: Op, lo: int, classes: Classes) -> Fold:
    """The rows of a weight, and what is linear together with them: its bias."""
    found, record = product_of(op), OPS[op.name]
    assert found is not None
    at = op.operands.index(found[1])
    [group] = [g for g in record.linear if at in g]
    biases = [_weight(view, op.operands[n]) for n in group if n != at and n < len(op.operands)]
    return Fold(classes, _weight(view, found[1]), "".join(biases), lo)


# ------------------------------------------------------------------ what passes it on
def _factor(view: View, op: Op, classes: Classes) -> Fold:
    """A product is divided by dividing one of its factors; a cast or a reshape by dividing what it reads."""
    record, reasons = OPS[op.name], list[str]()
    for group in reversed((*record.linear, *record.homogeneous)):
        operand = op.operands[group[0]]
        try:
            if len(group) > 1:
                raise Declined(f"there is no weight to fold into before {op.name}")
            if not _keeps_channels(view, op, operand):
                raise Declined(f"{operand} is broadcast, reshaped or of integers")
            return _absorb(view, _alone(view, operand), classes)
        except Declined as why:
            reasons.append(str(why))
    raise Declined("; ".join(reasons) or f"there is no weight to fold into before {op.name}")


def _keeps_channels(view: View, op: Op, operand: str) -> bool:
    """Whether an op leaves the order of everything, and joins or cuts at most the last axes."""
    old, new = view.type(operand), op.result.type
    if old.dtype not in FLOATS or new.dtype not in FLOATS:
        return False
    if is_alias(op):
        return old.shape[:2] == new.shape[:2] or old.shape[-1] == new.shape[-1]
    return old.shape == new.shape


def _taken(view: View, op: Op, x: str, classes: Classes) -> Fold:
    """Channels from other places: all channels of the operand, of which several may share one, or a part of
    a linear's, while others read the other parts."""
    operand = op.operands[OPS[op.name].linear[0][0]]
    mine, total = _places(view, op, x, int(classes.max()) + 1)
    if len(np.unique(mine)) == total:
        if (classes != np.arange(len(classes))).any():
            raise Declined("its channels share factors twice")
        return _absorb(view, _alone(view, operand), mine)
    inner = view.producer(operand)
    if inner is None or product_of(inner) is None or operand in view.graph.outputs:
        raise Declined(f"{op.name} takes a part of what no linear makes")
    if (np.diff(mine) != 1).any():
        raise Declined(f"{op.name} does not take channels that lie side by side")
    for user in view.users[operand]:
        for r in user.results:
            if f"%{r.name}" != x and set(_part(view, user, operand, f"%{r.name}")) & set(mine):
                raise Declined(f"parts of {operand} overlap")
    return _rows(view, inner, int(mine[0]), classes)


def _part(view: View, op: Op, operand: str, x: str) -> Classes:
    """The channels of an operand that go into a result x. Declined if the op does more than take them."""
    if OPS[op.name].taken is None or not OPS[op.name].moves or op.operands != (operand,):
        raise Declined(f"{operand} has other readers")
    return _places(view, op, x, cast(int, view.type(x).shape[-1]))[0]


def _places(view: View, op: Op, x: str, count: int) -> tuple[Classes, int]:
    """For each of x's `count` channels, its last axes as one, the channel of the operand that it is taken
    from; and how many of those there are."""
    taken = OPS[op.name].taken
    assert taken is not None
    number = next(n for n, r in enumerate(op.results) if f"%{r.name}" == x)
    found = taken([view.type(o) for o in op.operands], dict(op.attrs), number)
    old, new = view.type(op.operands[OPS[op.name].linear[0][0]]).shape, view.type(x).shape
    first = next((n for n in range(len(new)) if product(new[n:]) == count), None)
    if found is None or first is None or not all(isinstance(d, int) for d in old[first:]):
        raise Declined(f"the channels that {op.name} takes are not known")
    axis, places = found
    shape = cast("tuple[int, ...]", old[first:])
    channels = np.arange(int(np.prod(shape))).reshape(shape)
    if axis >= first:
        channels = channels.take(places, axis - first)
    return channels.reshape(-1), int(np.prod(shape))
