"""The step protocol: how the runtime calls the graph that serves tokens of many sequences.

What is stated here and nowhere else: the step's name, its inputs, its symbols, the table of query blocks, the
slice that attention walks a cache in, and how many of each there may be. Passes build a step by it, the plan
is checked against it, generated libraries carry it as constants, and the manifest states it for the runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.types import SymbolRange

#: the graph and the plan that serve tokens of many sequences
STEP = "step"
#: sizes of one call: tokens, rows whose logits are wanted, query blocks, most rows in one block, sequences of
#: the session
STEP_SYMBOLS = ("T", "R", "NB", "Q", "slots")
#: of these, the sizes that only graphs with caches have
CACHE_SYMBOLS = ("Q", "slots")
#: what a query block is, as columns of the table `blocks`: where its rows begin among the step's tokens, how
#: many there are, whose cache they read, and the position of the first
BLOCK_COLUMNS = ("row", "rows", "sequence", "position")
#: the step's inputs by name, with their shapes; all are i32. `rows`: tokens whose logits are wanted;
#: `length`: how long each token's sequence is at the end of the step
STEP_INPUTS: dict[str, tuple[str | int, ...]] = {
    "ids": ("T",),
    "pos": ("T",),
    "seq": ("T",),
    "blocks": ("NB", len(BLOCK_COLUMNS)),
    "rows": ("R",),
    "length": ("T",),
}
#: most rows in one query block, unless a pass is told otherwise: consecutive tokens of one sequence
BLOCK = 8
#: attention walks a cache in slices that begin at multiples of so many positions; the order of its sums
#: depends on it, so it is part of the meaning, and caches have room for whole slices
SLICE = 256
#: most tokens, rows and query blocks of one step, unless a pass is told otherwise; most sequences of a
#: session
MOST_TOKENS, MOST_SEQUENCES = 512, 1 << 20

Ints = NDArray[np.int32]


def block_rows(symbols: Iterable[tuple[str, SymbolRange]]) -> int:
    """Most rows in one query block of a module or program with these symbols: what it says of `Q`."""
    return dict(symbols).get("Q", SymbolRange(1, BLOCK)).hi or BLOCK


def block_table(seq: Sequence[int] | Ints, pos: Sequence[int] | Ints, most: int = BLOCK) -> Ints:
    """The query blocks of a step's tokens, i32[NB, 4]: runs of at most `most` consecutive tokens of one
    sequence. The runtime's `tw_block_table` computes the same."""
    out: list[tuple[int, int, int, int]] = []
    start = 0
    for t in range(1, len(seq) + 1):
        follows = t < len(seq) and seq[t] == seq[t - 1] and pos[t] == pos[t - 1] + 1 and t - start < most
        if not follows:
            out.append((start, t - start, int(seq[start]), int(pos[start])))
            start = t
    return np.array(out, np.int32).reshape(-1, len(BLOCK_COLUMNS))
