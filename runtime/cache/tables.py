"""Numbers that are supplied to a policy in a file, and totals divided over layers.

In: a path in an option: `.npy`, or text with one line per layer. Out: a checked array.
"""

from __future__ import annotations

import os
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.cache.options import refuse
from tilewright.runtime.cache.policy import CachePolicy
from tilewright.runtime.errors import SessionError

F64 = NDArray[np.float64]


@lru_cache(maxsize=8)
def read_table(path: str, changed: int) -> F64:
    """The numbers of a file that was last `changed` then. OSError or ValueError if it cannot be read."""
    raw = np.load(path, allow_pickle=False) if path.endswith(".npy") else np.loadtxt(path, ndmin=1)
    return np.asarray(raw, np.float64)


def layer_table(policy: CachePolicy, option: str, path: str, shape: tuple[int, ...]) -> F64:
    """The numbers of an option's file, whose first axes must be `shape` and which must be finite."""
    where = f"cache policy {policy.name}, {option}={path}"
    try:
        table = read_table(path, os.stat(path).st_mtime_ns)
    except (OSError, ValueError) as e:
        hint = "expected an .npy file, or text with one line of numbers per layer"
        raise SessionError(f"cannot be read ({str(e)[:120]})", where, hint) from None
    if table.shape[: len(shape)] != shape or not np.isfinite(table).all():
        raise SessionError(
            f"expected finite numbers of shape {list(shape)}, got shape {list(table.shape)}",
            where,
            "give one entry per layer (and KV head) of this model",
        )
    return table


def positive(table: F64, policy: CachePolicy, option: str) -> F64:
    """The table, if all of its numbers are above zero."""
    return table if (table > 0).all() else refuse(policy, option, "positive numbers", float(table.min()))


def shared_out(total: int, shares: F64, least: int) -> NDArray[np.int32]:
    """Whole numbers in proportion to `shares`, none below `least`, that sum to at most `total` where that is
    possible."""
    rest = max(total - least * len(shares), 0)
    return np.asarray(least + np.floor(rest * shares / shares.sum() + 1e-6), np.int32)
