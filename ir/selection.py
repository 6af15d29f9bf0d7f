"""Which blocks of a cache attention reads: the measure of a block, and the choice under a budget.

In: text such as `bound(block=64, pool=max)`. Out: a `Selection`, and its meaning in NumPy. A block is `block`
consecutive rows of one KV head, beginning at a multiple of `block`. Independent of graphs and kernels.

Each whole block has a summary, one vector or two of the width of a key; a block's score is the dot product of
its summary with what the measure makes of a query. The bound is the largest score that a key between the
block's extremes can have: with both extremes beside each other it is a dot product too, since every channel
of the query takes one of them by its sign."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.numbers import hold
from tilewright.ir.plan.step import SLICE

F64 = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Measure:
    """What a block's score is: the sum of products of the vectors of its summary, each a reduction of its
    keys channel by channel (`add`: their mean), with what an elementwise op and a number make of the query.
    """

    summary: tuple[str, ...]
    query: tuple[tuple[str, float], ...]


#: `mean`: the product with the mean key. `bound`: the largest product with any key between the extremes.
#: `mix`: the product with a mixture of the extremes
MEASURES = {
    "mean": Measure(("add",), (("mul", 1.0),)),
    "bound": Measure(("max", "min"), (("max", 0.0), ("min", 0.0))),
    "mix": Measure(("max", "min"), (("mul", 0.6), ("mul", 0.4))),
}
#: how the scores of the query heads that share a KV head become one: the names in texts, and the ops
POOLS = {"max": "max", "sum": "add"}
#: rows of a block that may be asked for: whole chunks of attention, and a part of a slice
BLOCKS = (16, 32, 64, 128, 256)
#: what summaries and queries are rounded to: a score need not be more exact than that
HELD_AS = "bf16"
_FORM = re.compile(r"\s*(\w+)\s*\(\s*block\s*=\s*(\d{1,6})\s*,\s*pool\s*=\s*(\w+)\s*\)\s*")


class SelectionError(ValueError):
    """A text that names no selection; the message says what was expected."""


@dataclass(frozen=True)
class Selection:
    """`measure` and `pool`: names of `MEASURES` and `POOLS`; `block`: rows of a block."""

    measure: str
    block: int = 64
    pool: str = "max"

    def __post_init__(self) -> None:
        for what, got, known in (
            ("a measure", self.measure, tuple(MEASURES)),
            ("a pool", self.pool, tuple(POOLS)),
            ("a block", self.block, BLOCKS),
        ):
            if got not in known:
                raise SelectionError(f"{what} of {got!r}; expected {', '.join(map(str, known))}")

    def __str__(self) -> str:
        return f"{self.measure}(block={self.block}, pool={self.pool})"

    @property
    def formula(self) -> Measure:
        return MEASURES[self.measure]

    def blocks(self, context: int) -> int:
        """How many blocks a cache of whole slices has."""
        return -(-context // SLICE) * SLICE // self.block

    # ------------------------------------------------------------ meaning
    def scores(self, q: F64, keys: F64) -> F64:
        """[n / block] scores of the whole blocks of keys [n, D], for the queries [G, D] of one token."""
        whole = len(keys) // self.block
        blocks = keys[: whole * self.block].reshape(whole, self.block, keys.shape[1])
        vectors = zip(self.formula.summary, self.formula.query, strict=True)
        each = sum(_held(_UFUNCS[op](q, x)) @ _held(_summary(fn, blocks)).T for fn, (op, x) in vectors)
        found: F64 = _UFUNCS[POOLS[self.pool]].reduce(each, axis=0)
        return found


_UFUNCS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _held(x: F64) -> F64:
    return np.asarray(hold(x, HELD_AS), np.float64)


def _summary(fn: str, blocks: F64) -> F64:
    """[blocks, D] of keys [blocks, rows, D]."""
    found: F64 = _UFUNCS[fn].reduce(blocks, axis=1)
    return found / blocks.shape[1] if fn == "add" else found


def parse_selection(text: str) -> Selection:
    """The inverse of `str`. SelectionError if the text does not have this form."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise SelectionError(f"{text!r}: expected MEASURE(block=ROWS, pool=POOL)")
    return Selection(match[1], int(match[2]), match[3])


def chosen_blocks(scores: F64, blocks: int, budget: int, first: int, last: int) -> Mask:
    """Which of `blocks` blocks attention reads: all if the budget covers them, else the `first` ones, the
    `last` ones, and those in between with the best scores; of equal ones the earlier. The last block, which
    may not be whole and have no score, must be among the `last`."""
    at = np.arange(blocks)
    out: Mask = (at < first) | (at >= blocks - last)
    if blocks <= budget:
        return np.ones(blocks, bool)
    between = np.flatnonzero(~out)
    order = np.argsort(-scores[between], kind="stable")
    out[between[order[: max(budget - first - last, 0)]]] = True
    return out
