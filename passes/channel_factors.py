"""Where a factor per channel can go: what would make a value x into x / t, by changing weights alone.

In: a graph, a value that contractions read. Out: the channels that must share a factor, and the weights that
absorb its inverse: a norm's, or the rows of the linear before. Knows no solver.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.graph.core import Op
from tilewright.passes.patterns import View
from tilewright.passes.rewrite import Declined

F32 = NDArray[np.float32]


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

    classes: NDArray[np.intp]
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
        if (
            op.name != "linear"
            or op.operands[0] != x
            or op.operands[1][1:] not in readers
            or x in op.operands[1:]
        ):
            raise Declined(f"{op.name} reads it too")
    shared = [w for w in readers if len(view.users[f"@{w}"]) > 1]
    if shared or x in view.graph.outputs:
        raise Declined(f"@{shared[0]} has other readers" if shared else "it is a result of the graph")
    k = cast(int, view.type(x).shape[-1])
    return _absorb(view, x, np.arange(k))


def _absorb(view: View, x: str, classes: NDArray[np.intp]) -> Fold:
    op = view.producer(x)
    if op is None:
        raise Declined("it is an input of the graph")
    if op.name in ("rms_norm", "layer_norm"):
        return _norm(view, op, classes)
    if op.name == "linear":
        return _rows(view, op, 0, classes)
    if op.name == "split":
        return _split(view, op, x, classes)
    if op.name == "slice":
        return _slice(view, op, classes)
    if op.name in ("relu", "reshape", "cast") and _keeps_channels(view, op):
        return _absorb(view, _alone(view, op.operands[0]), classes)
    if op.name == "mul":
        return _factor(view, op, classes)
    if op.name == "attend":
        return _values(view, op, classes)
    raise Declined(f"there is no weight to fold into before {op.name}")


def _alone(view: View, operand: str) -> str:
    if operand[0] == "@" or not view.single_use(operand):
        raise Declined(f"{operand} has other readers")
    return operand


def _keeps_channels(view: View, op: Op) -> bool:
    """A reshape that only joins or cuts the last axes; the others keep the order of everything."""
    if op.name != "reshape":
        return True
    old, new = view.type(op.operands[0]).shape, op.result.type.shape
    return old[:2] == new[:2] or old[-1] == new[-1]


def _weight(view: View, operand: str) -> str:
    if operand[0] != "@" or len(view.users[operand]) > 1:
        raise Declined(f"{operand} is computed, or has other readers")
    return operand[1:]


def _norm(view: View, op: Op, classes: NDArray[np.intp]) -> Fold:
    if len(op.operands) < 2 or op.attr("axis") != op.result.type.rank - 1:
        raise Declined(f"{op.name} has no weight along its channels")
    bias = _weight(view, op.operands[2]) if len(op.operands) > 2 else ""
    offset = float(cast(float, dict(op.attrs).get("offset", 0.0)))
    return Fold(classes, _weight(view, op.operands[1]), bias, norm=True, offset=offset)


def _rows(view: View, op: Op, lo: int, classes: NDArray[np.intp]) -> Fold:
    bias = _weight(view, op.operands[2]) if len(op.operands) > 2 else ""
    return Fold(classes, _weight(view, op.operands[1]), bias, lo)


def _split(view: View, op: Op, x: str, classes: NDArray[np.intp]) -> Fold:
    inner = view.producer(op.operands[0], "linear")
    if inner is None or op.attr("axis") != inner.result.type.rank - 1:
        raise Declined("the split does not follow a linear")
    _alone(view, op.operands[0])
    at = next(n for n, r in enumerate(op.results) if f"%{r.name}" == x)
    return _rows(view, inner, sum(cast(Any, op.attr("sizes"))[:at]), classes)


def _slice(view: View, op: Op, classes: NDArray[np.intp]) -> Fold:
    """Rows that no other slice of the same linear reads."""
    inner, axis = view.producer(op.operands[0], "linear"), op.result.type.rank - 1
    users = view.users[op.operands[0]]
    if inner is None or op.operands[0] in view.graph.outputs:
        raise Declined("the slice does not follow a linear")
    if any(u.name != "slice" or u.attr("axis") != axis or u.attr("step") != 1 for u in users):
        raise Declined(f"{op.operands[0]} has other readers")
    lo, hi = (int(cast(int, op.attr(a))) for a in ("start", "stop"))
    if any(u is not op and cast(int, u.attr("start")) < hi and lo < cast(int, u.attr("stop")) for u in users):
        raise Declined(f"slices of {op.operands[0]} overlap")
    return _rows(view, inner, lo, classes)


def _factor(view: View, op: Op, classes: NDArray[np.intp]) -> Fold:
    """A product is divided by dividing one of its factors."""
    reasons = []
    for operand in reversed(op.operands):
        try:
            if view.type(operand).shape != op.result.type.shape:
                raise Declined(f"{operand} is broadcast")
            return _absorb(view, _alone(view, operand), classes)
        except Declined as why:
            reasons.append(str(why))
    raise Declined("; ".join(reasons))


def _values(view: View, op: Op, classes: NDArray[np.intp]) -> Fold:
    """The result of attention is linear in its values; heads that share a value head share factors."""
    v = op.operands[2]
    heads, kv, width = (
        int(cast(int, n)) for n in (op.attr("heads"), op.attr("kv_heads"), view.type(v).shape[-1])
    )
    if len(classes) != heads * width:
        raise Declined("the channels are not divided into heads")
    shared = np.arange(kv * width).reshape(kv, width).repeat(heads // kv, 0).reshape(-1)
    return replace(_absorb(view, _alone(view, v), shared), classes=shared)
