"""Every promised family has kernels under every recipe, at sizes that fill no tile evenly."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import families

from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.render import render_kernel
from tilewright.capture import capture_directory
from tilewright.pipeline import run_pipeline
from tilewright.recipe import PRESETS

QUICK = ("opt",)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in families.FAMILIES])
def test_every_recipe(tmp_path: Path, name: str) -> None:
    module = capture_directory(families.write_model(tmp_path / name, name))
    for recipe in PRESETS.values():
        program, _, _ = run_pipeline(module, recipe)
        for kernel in program.kernels:
            assert f"k_{kernel.name}(" in render_kernel(kernel, TARGETS["baseline"]), (recipe.name, kernel.name)
