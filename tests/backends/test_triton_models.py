"""Kernels of a compiled model under Triton give what the tile interpreter gives, where they have a form."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tilewright.backends.registry import backend
from tilewright.backends.triton import interpret
from tilewright.backends.triton.schedules import TARGET
from tilewright.ir.interp.tile import run_kernel
from tilewright.ir.plan.core import Program
from tilewright.ir.tile.core import Kernel
from tilewright.tools.kernel_arrays import kernel_arrays

TINY_LLAMA = Path(__file__).parents[2] / "examples" / "models" / "tiny-llama"
#: kernels that Triton does not support, by recipe: all read and write locals by parts
WITHOUT = {
    "f32": ["attend", "attend_2"],
    "w4a8": ["attend", "attend_2", "gather_rms_norm_encode", "rms_norm_encode"],
}
COUNT = {"f32": 12, "w4a8": 14}
ROWS = 3
#: f32 sums are taken in another order: share of the largest value
CLOSE = 1e-5


@cache
def program(recipe: str) -> Program:
    import tilewright as tw

    return tw.compile(TINY_LLAMA, recipe=recipe, target=TARGET).program


def has_a_form(k: Kernel) -> bool:
    return bool(backend(TARGET).supports(k, TARGET))


@pytest.mark.parametrize("recipe", COUNT)
def test_which_kernels_have_a_form(recipe: str) -> None:
    kernels = program(recipe).kernels
    assert all([s.target for s in k.schedules][-1] == TARGET for k in kernels)
    without = [k for k in kernels if not has_a_form(k)]
    assert (len(kernels), sorted(k.name for k in without)) == (COUNT[recipe], WITHOUT[recipe])
    for k in without:
        why = backend(TARGET).supports(k, TARGET)
        assert "locals (" in why.reason and "are not supported in Triton" in why.reason


@pytest.mark.parametrize("recipe", COUNT)
def test_kernels_agree_with_the_tile_interpreter(recipe: str) -> None:
    """Each tile program once; of those that differ in their number of columns only, the narrowest."""
    for k in distinct(program(recipe)):
        symbols = dict.fromkeys(k.symbols, ROWS)
        given = kernel_arrays(k, symbols, {}, 0)
        want, got = ({n: a.copy() for n, a in given.items()} for _ in range(2))
        run_kernel(k, want, symbols)
        interpret.run_kernel(k, got, symbols)
        for name in k.written():
            close(want[name], got[name], f"{k.name} %{name}")


def distinct(p: Program) -> list[Kernel]:
    found: dict[object, Kernel] = {}
    for k in filter(has_a_form, p.kernels):
        key = tuple((s.op if hasattr(s, "op") else type(s)) for s in k.body), len(k.params)
        if key not in found or size(k) < size(found[key]):
            found[key] = k
    return list(found.values())


def size(k: Kernel) -> int:
    return sum(int(d.const) for b in k.params for d in b.dims)


def close(want: np.ndarray, got: np.ndarray, where: str) -> None:
    if want.dtype != np.float32:
        assert np.array_equal(want, got), where
        return
    scale = np.nanmax(np.abs(want), initial=0.0)
    np.testing.assert_allclose(got, want, rtol=0, atol=CLOSE * float(scale), equal_nan=True, err_msg=where)
