"""expand-tokens against the meaning of the ops that it spells out, on random sizes, ties and NaN included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.ir.op_samples import Sample
from tests.passes.test_four_values import op_module
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.interp.kv_cache import InterpStates
from tilewright.ir.ops.token_choice import merge_sources
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.driver import run_passes

Array = NDArray[Any]
SEEDS = range(24)


def agree(op: str, args: tuple[Array, ...], attrs: dict[str, object]) -> None:
    """The op and what it is spelled out to give the same."""
    module = op_module(Sample(op, args, attrs))
    spelled = run_passes(module, "expand-tokens").module
    assert all(o.name != op for o in spelled.graphs[0].ops)
    inputs = {f"a{n}": a for n, a in enumerate(args)}
    before, after = (
        Interpreter(m, WeightStore()).run("forward", inputs, InterpStates(())) for m in (module, spelled)
    )
    for name, x in before.items():
        if x.dtype == np.int32:
            np.testing.assert_array_equal(after[name], x, err_msg=f"{op} {attrs}")
        else:
            np.testing.assert_allclose(after[name], x, rtol=1e-5, atol=1e-6, err_msg=f"{op} {attrs}")


def sizes(rng: np.random.Generator) -> tuple[int, int, int]:
    """Rows, tokens, protected tokens."""
    return int(rng.integers(1, 4)), int(rng.integers(4, 40)), int(rng.integers(0, 3))


@pytest.mark.parametrize("seed", SEEDS)
def test_gather(seed: int) -> None:
    """Scores of few different values, so that most are tied, and some that are not numbers."""
    rng = np.random.default_rng(seed)
    batch, n, protect = sizes(rng)
    fuse = bool(seed % 2)
    score = rng.integers(0, 4, (batch, n)).astype(np.float32)
    score[rng.random((batch, n)) < 0.1] = np.nan
    count = int(rng.integers(protect + fuse + 1, n + 1))
    agree("assign_tokens", (score,), {"mode": "gather", "count": count, "protect": protect, "fuse": fuse})


@pytest.mark.parametrize("seed", SEEDS)
def test_merge(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch, n, protect = sizes(rng)
    keys = rng.standard_normal((batch, n, 8)).astype(np.float32)
    count = int(rng.integers(n - merge_sources(n, protect), n + 1))
    agree("assign_tokens", (keys,), {"mode": "merge", "count": count, "protect": protect})


@pytest.mark.parametrize("seed", SEEDS)
def test_cluster(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch, n, protect = sizes(rng)
    keys = rng.standard_normal((batch, n, 8)).astype(np.float32)
    segments = int(rng.integers(1, n - protect + 1))
    count = int(rng.integers(protect + segments, n + 1))
    attrs = {"mode": "cluster", "count": count, "protect": protect, "segments": segments, "rounds": seed % 4}
    agree("assign_tokens", (keys,), attrs)


@pytest.mark.parametrize("seed", SEEDS)
def test_applied(seed: int) -> None:
    """Slots that drop tokens, places that hold none, and weights of 0."""
    rng = np.random.default_rng(seed)
    batch, n, _ = sizes(rng)
    count = int(rng.integers(1, n + 1))
    slots = rng.integers(0, count + 1, (batch, n)).astype(np.int32)
    x, y = (rng.standard_normal((batch, k, 2, 3)).astype(np.float32) for k in (n, count))
    weights = (rng.random((batch, n)) * rng.integers(0, 2, (batch, n))).astype(np.float32)
    mean = {"count": count, "mean": bool(seed % 3)}
    agree("merge_tokens", (x, slots, weights)[: 2 + seed % 2], mean)
    agree("merge_tokens", (weights, slots), mean)
    agree("restore_tokens", (y, slots, x), {})
