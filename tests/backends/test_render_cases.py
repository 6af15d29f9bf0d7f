"""The hand-written tile programs through the C++ renderer, against NumPy, at every level of this machine."""

from __future__ import annotations

import numpy as np
import pytest

from tests.backends.render_help import compiled, runnable
from tests.ir.tile_cases import CASES, check, poisoned

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

#: cases that are cheap to build run at every level each time, the others at the best one
CHEAP = ("transpose", "cumsum", "softmax", "gather", "scatter", "rms_norm", "segment_sum", "paged_copy")
QUICK = [(name, level) for name in CASES for level in runnable() if name in CHEAP or level == runnable()[-1]]
REST = [(name, level) for name in CASES for level in runnable() if (name, level) not in QUICK]
PAIRS = [*QUICK, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REST)]


@pytest.mark.parametrize(("name", "level"), PAIRS)
@pytest.mark.parametrize("threads", [1, 3])
def test_matches_numpy(name: str, level: str, threads: int) -> None:
    case = CASES[name]
    kernel = case.kernel()
    inputs, outputs = case.make_inputs(np.random.default_rng(threads)), poisoned(kernel, case.symbols)
    arrays = {n: np.ascontiguousarray(a) for n, a in {**inputs, **outputs}.items()}
    compiled(kernel, level)(arrays, case.symbols, threads)
    check(case, inputs, {n: arrays[n] for n in kernel.written()})
