"""Every lowering template, compiled for each CPU level of this machine, against the tile interpreter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.passes.test_four_values import (
    CASES,
    FORMS,
    OPS,
    QUICK,
    Held,
    attention_case,
    linear_case,
    norm_case,
    op_case,
)
from tests.passes.test_four_values import GRAPH_ONLY as NO_KERNEL
from tilewright.backends.cpp.target import Target
from tilewright.ir.interp.plan import PlanRunner
from tilewright.passes.driver import EXACT, difference
from tilewright.tools.ir_text import compiled

Array = NDArray[np.generic]
TEMPLATES: dict[str, Callable[[], Held]] = {
    **{
        str(p.values[0]): lambda s=p.values[0]: op_case(s)
        for p in OPS
        if str(p.values[0]) in QUICK - NO_KERNEL
    },  # type: ignore[misc]
    **{f"linear {a} {w}": lambda a=a, w=w: linear_case(a, w, 7) for a, w in FORMS},  # type: ignore[misc]
    **{f"attention {n}": lambda n=n: attention_case(n) for n in CASES},  # type: ignore[misc]
    **{f"norm {e}": lambda e=e: norm_case(e) for e in ("bf16", "int8(token)")},  # type: ignore[misc]
}
QUICK_HERE = {"layer_norm", "linear int8(token) int4(group=32)"}


@pytest.mark.parametrize(
    "name", [n if n in QUICK_HERE else pytest.param(n, marks=pytest.mark.slow) for n in TEMPLATES]
)
def test_template(name: str, levels: tuple[Target, ...]) -> None:
    case = TEMPLATES[name]()
    want = PlanRunner(case.program, case.weights).run(case.graph, case.inputs)
    for target in levels:
        got = PlanRunner(case.program, case.weights, compiled(target.name, 2)).run(case.graph, case.inputs)
        for result, array in want.items():
            gap = difference(array, got[result])
            assert gap <= max(EXACT, case.tolerance), f"{name} at {target.name}: {result} is off by {gap:.3g}"
