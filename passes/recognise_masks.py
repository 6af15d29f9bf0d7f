"""What an attention mask or score bias means: found by evaluating it, not by its spelling.

In: operands that are added to scores, or that choose where scores hold. Out: causal, window and ALiBi slopes,
or `Declined`. The expression may read positions and constants only. It is evaluated once with positions 0, 1,
… over more of them than any constant in it, so that a window shows, and compared with the closed form at
every element.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.errors import TilewrightError
from tilewright.ir.graph.core import Graph, Op
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.numbers import HELD
from tilewright.ir.types import evaluate_dim
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.patterns import View
from tilewright.passes.rewrite import Declined

F64 = NDArray[np.float64]
#: positions evaluated at least, and at most
FEWEST, MOST = 24, 4200
#: a score this low stands for a key that may not be seen
LOW = -1e30


@dataclass(frozen=True)
class Term:
    """A tensor met on the way from scores to softmax: added to them (`keep` None), or scores hold where it
    equals `keep`."""

    operand: str
    keep: bool | None = None


@dataclass(frozen=True)
class Meaning:
    """Which keys are seen, and the slope of each head's linear bias (None: no bias)."""

    causal: bool
    window: int
    slopes: tuple[float, ...] | None


def meaning(v: View, terms: Sequence[Term]) -> Meaning:
    """The closed form of all terms together. Declined if they read more than positions, or have none."""
    if not terms:
        return Meaning(False, 0, None)
    ops = _behind(v, [t.operand for t in terms])
    n = positions(ops)
    values, n = _values(v, ops, [t.operand for t in terms], n)
    bias, seen = np.zeros((1, 1, n, n)), np.ones((1, 1, n, n), bool)
    for t, x in zip(terms, values, strict=True):
        if t.keep is not None:
            seen = seen & (x.astype(bool) == t.keep)
        elif x.dtype == np.bool_:
            raise Declined(f"{t.operand} is a boolean that is added to scores")
        else:
            seen = seen & (x > LOW)
            bias = bias + np.where(x > LOW, x, 0.0)
    return Meaning(*_visible(seen, n), _slopes(bias, seen, n))


def _behind(v: View, operands: Iterable[str]) -> list[Op]:
    """The ops that make the operands, in order; Declined if they read anything but positions and
    constants."""
    wanted, needed = list(operands), set[int]()
    while wanted:
        o = wanted.pop()
        op = v.producer(o)
        if op is not None and id(op) not in needed:
            needed.add(id(op))
            wanted += op.operands
        elif op is None and o[0] == "%" and o != "%pos":
            raise Declined(f"the mask depends on {o}, which is known only at run time")
    return [op for op in v.graph.ops if id(op) in needed]


def positions(ops: Sequence[Op]) -> int:
    """More positions than any integer the expression mentions."""
    numbers = [x for op in ops for _, value in op.attrs for x in _whole(value)]
    n = max([FEWEST, *(x + 8 for x in numbers if x <= MOST - 8)])
    if any(MOST - 8 < x < 1 << 20 for x in numbers):
        raise Declined(f"a constant in the mask exceeds {MOST - 8} positions")
    return n


def _whole(value: object) -> list[int]:
    if isinstance(value, tuple):
        return [x for part in value for x in _whole(part)]
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        return []
    return [int(abs(value))] if float(value).is_integer() and abs(value) < 1 << 30 else []


def _values(v: View, ops: Sequence[Op], operands: Sequence[str], n: int) -> tuple[list[NDArray[Any]], int]:
    """The operands' values over n positions, or over the most there can be if they only exist for those."""
    most = next((r.hi for name, r in v.module.symbols if name == "S" and r.hi is not None), n)
    try:
        return _evaluate(v, ops, operands, n), n
    except Declined:
        if most >= n:
            raise
        return _evaluate(v, ops, operands, most), most


def _evaluate(v: View, ops: Sequence[Op], operands: Sequence[str], n: int) -> list[NDArray[Any]]:
    """The operands' values for one sequence of n tokens, at [1, H|1, n, n]."""
    graph = Graph(
        "probe", v.graph.inputs, tuple(ops), tuple(operands), tuple(f"r{i}" for i in range(len(operands)))
    )
    sizes = {name: 1 if name == "B" else n for name, _ in v.module.symbols}
    inputs = {}
    for i in graph.inputs:
        shape = tuple(evaluate_dim(d, sizes) for d in i.type.shape)
        whole = np.arange(shape[-1]) if i.name == "pos" and shape else 0
        inputs[i.name] = np.broadcast_to(whole, shape).astype(HELD[i.type.dtype])
    symbols = tuple((name, replace(r, hi=None)) for name, r in v.module.symbols)
    module = replace(v.module, graphs=(graph,), symbols=symbols)
    try:
        found = Interpreter(module, WeightStore()).run("probe", inputs, symbols=sizes)
    except (TilewrightError, OSError, ValueError) as why:
        raise Declined(f"the mask cannot be evaluated: {why}") from why
    return [_four(found[f"r{i}"], n) for i in range(len(operands))]


def _four(x: NDArray[Any], n: int) -> NDArray[Any]:
    """As [1, H|1, n|1, n]; a merged batch-and-head axis is heads, as the batch is 1."""
    if x.ndim < 4:
        x = x.reshape((1,) * (4 - x.ndim) + x.shape)
    if x.shape[-1] not in (1, n) or x.shape[-2] not in (1, n) or x.shape[0] != 1:
        raise Declined(f"a mask of shape {list(x.shape)} over {n} positions")
    return x


def _visible(seen: NDArray[np.bool_], n: int) -> tuple[bool, int]:
    """(causal, window) of a boolean [1, H|1, n, n]."""
    if (seen != seen[:, :1]).any():
        raise Declined("heads see different keys")
    grid = np.broadcast_to(seen[0, 0], (n, n))
    gap = np.arange(n)[:, None] - np.arange(n)[None, :]
    if grid.all():
        return False, 0
    window = int(grid[n - 1].sum())
    if (grid == (gap >= 0)).all():
        return True, 0
    if window < n and (grid == ((gap >= 0) & (gap < window))).all():
        return True, window
    raise Declined("the keys visible to a token are neither all earlier ones nor a window of them")


def _slopes(bias: F64, seen: NDArray[np.bool_], n: int) -> tuple[float, ...] | None:
    """Slope per head of a bias slope * (key - query) up to a constant per row; None for no bias."""
    full = np.broadcast_to(bias, (1, bias.shape[1], n, n))[0]
    full = full - full[:, np.arange(n), np.arange(n)][:, :, None]
    visible = np.broadcast_to(seen[0], full.shape)
    if not np.abs(np.where(visible, full, 0.0)).max() > 0:
        return None
    slopes = full[:, n - 1, n - 1] - full[:, n - 1, n - 2]
    gap = np.arange(n)[None, :] - np.arange(n)[:, None]
    error = np.abs(np.where(visible, full - slopes[:, None, None] * gap, 0.0)).max()
    if error > 1e-4 * max(float(np.abs(slopes).max()) * n, 1e-6):
        raise Declined("the bias is not linear in the distance")
    return tuple(cast("list[float]", np.asarray(slopes, np.float32).tolist()))
