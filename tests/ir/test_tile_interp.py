"""Hand-written tile programs: the interpreter against NumPy, under every schedule and seed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.ir.tile_cases import CASES, check, zeros
from tilewright.ir.tile_interp import run_kernel


@pytest.mark.parametrize("name", CASES)
def test_matches_numpy(name: str) -> None:
    case = CASES[name]
    kernel = case.kernel()
    for seed, schedule in enumerate(kernel.schedules):
        inputs, outputs = case.make_inputs(np.random.default_rng(seed)), zeros(kernel, case.symbols)
        run_kernel(kernel, {**inputs, **outputs}, case.symbols, dict(schedule.sizes))
        check(case, inputs, outputs)
