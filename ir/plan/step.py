"""The step protocol: how the runtime calls the graph that serves tokens of many sequences.

Defined here and nowhere else: the step's name, its inputs, its symbols, the query-block table, the slice of
positions by which attention reads a cache, and the limits of each. Passes build a step from it, plans are
checked against it, generated libraries contain it as constants, and the manifest states it for the runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.types import SymbolRange

#: the graph and the plan that serve tokens of many sequences
STEP = "step"
#: sizes of one call: tokens, rows whose logits are requested, query blocks, most rows in one block, sequences
#: of the session, runs of observed queries, groups of rows with a common beginning
STEP_SYMBOLS = ("T", "R", "NB", "Q", "slots", "NR", "NG")
#: of these, the sizes that exist only in graphs with caches
CACHE_SYMBOLS = ("Q", "slots")
#: the columns of the query-block table `blocks`: the first of a block's rows among the step's tokens, the
#: number of rows, the sequence whose cache they read, and the position of the first row
BLOCK_COLUMNS = ("row", "rows", "sequence", "position")
#: the columns of the table `groups`: the first of consecutive rows, each of another sequence, how many, a
#: sequence that holds the slices that all have in common, and how many slices these are
GROUP_COLUMNS = ("row", "rows", "sequence", "slices")
#: the columns of the table `choices`, one row for each token: how many blocks of cached rows its attention
#: reads (0: it reads all rows), and how many of these are the first and the last ones of its sequence
CHOICE_COLUMNS = ("budget", "first", "last")
#: the step's inputs by name, with their shapes; all are i32. `rows`: tokens whose logits are requested;
#: `length`: the length of each token's sequence at the end of the step; `runs`: as `blocks`, of any height:
#: the queries whose attention is added to the rows that it goes to, each sequence at most once; `choices`:
#: tokens with a budget are the only ones of their sequence
STEP_INPUTS: dict[str, tuple[str | int, ...]] = {
    "ids": ("T",),
    "pos": ("T",),
    "seq": ("T",),
    "blocks": ("NB", len(BLOCK_COLUMNS)),
    "rows": ("R",),
    "length": ("T",),
    "runs": ("NR", len(BLOCK_COLUMNS)),
    "groups": ("NG", len(GROUP_COLUMNS)),
    "choices": ("T", len(CHOICE_COLUMNS)),
}
#: most rows in one query block, unless a pass is told otherwise: consecutive tokens of one sequence
BLOCK = 8
#: attention reads a cache in slices that begin at multiples of this many positions; the order of its sums
#: depends on it, so it is part of the semantics, and caches hold whole slices
SLICE = 256
#: of the last rows that a cache also keeps in bf16: their number is a multiple of the first, the rows that
#: attention reads at once, and at most the second, so that one slice has room for them
RECENT_STEP, RECENT_MOST = 16, 192
#: most tokens, rows and query blocks of one step, unless a pass is told otherwise; most sequences of a
#: session
MOST_TOKENS, MOST_SEQUENCES = 512, 1 << 20

Ints = NDArray[np.int32]


def first_recent(pos: Ints, recent: int) -> Ints:
    """The first row that the queries at these positions read in bf16, of a cache that keeps `recent` rows so:
    `recent` to `recent + 15` rows, their own included. The rows before are read as they are encoded."""
    return np.maximum((np.asarray(pos, np.int32) + 1) // RECENT_STEP * RECENT_STEP - recent, 0)


def block_rows(symbols: Iterable[tuple[str, SymbolRange]]) -> int:
    """Most rows in one query block of a module or program with these symbols: the range of `Q`."""
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
