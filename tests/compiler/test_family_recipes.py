"""Every promised family has kernels under the narrow recipes, at sizes that fill no tile evenly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compiler import families
from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.render import render_kernel
from tilewright.capture import capture_directory
from tilewright.ir.errors import RefusedError
from tilewright.pipeline import run_pipeline
from tilewright.recipe import PRESETS

QUICK = ("opt", "bf16")
PAIRS = [(name, recipe) for name in families.FAMILIES for recipe in ("bf16", "int8", "w4a8")]
#: widths of 48, 24 and 16 are not multiples of a group
REFUSED = [("opt", "w4a8"), ("qwen3_moe", "w4a8"), ("deepseek_v3", "w4a8")]


@pytest.mark.parametrize(
    ("name", "recipe"), [p if p == QUICK else pytest.param(*p, marks=pytest.mark.slow) for p in PAIRS]
)
def test_every_recipe(tmp_path: Path, name: str, recipe: str) -> None:
    module = capture_directory(families.write_model(tmp_path / name, name))
    if (name, recipe) in REFUSED:
        with pytest.raises(RefusedError, match=r"group 32 does not divide K = (48|24|16) of shape"):
            run_pipeline(module, PRESETS[recipe])
        return
    program = run_pipeline(module, PRESETS[recipe]).program
    for kernel in program.kernels:
        assert f"k_{kernel.name}(" in render_kernel(kernel, TARGETS["baseline"]), kernel.name
