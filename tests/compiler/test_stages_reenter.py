"""Any stage, parsed again and run through the remaining passes, gives byte-identical stages and source."""

from __future__ import annotations

from pathlib import Path

import pytest

import tilewright as tw
from tests.compiler import families
from tilewright.api import Compiled
from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.plan import render_step
from tilewright.backends.cpp.render import render_kernel
from tilewright.ir.graph.core import Module
from tilewright.ir.plan.core import Program
from tilewright.ir.text.graph_parser import parse_module
from tilewright.ir.text.plan_parser import parse_program
from tilewright.passes.base import parse_pipeline
from tilewright.passes.driver import run_passes
from tilewright.passes.record import print_ir
from tilewright.pipeline import kind_of

CASES = [("llama", "w8a8"), ("gemma2", "bf16"), ("gpt_oss", "f32"), ("bloom", "f32")]


def parse(text: str) -> Module | Program:
    return parse_program(text) if "\nplan @" in text or text.startswith("plan @") else parse_module(text)


def source(program: Program) -> str:
    target = TARGETS["avx2"]
    return "\n".join(render_kernel(k, target) for k in program.kernels[:4]) + render_step(program, target)


@pytest.mark.parametrize(
    ("name", "recipe"), [c if c[0] == "llama" else pytest.param(*c, marks=pytest.mark.slow) for c in CASES]
)
def test_every_stage(tmp_path: Path, name: str, recipe: str) -> None:
    directory = families.write_model(tmp_path / name, name)
    compiled: Compiled = tw.compile(directory, recipe=recipe)
    captured = parse(compiled.stages[0].text)
    assert isinstance(captured, Module)
    pipeline = parse_pipeline(compiled.recipe.pipeline(kind_of(captured), lowering=True))
    assert len(pipeline) == len(compiled.stages) - 1
    for n, stage in enumerate(compiled.stages):
        ir = parse(stage.text)
        assert print_ir(ir) == stage.text, stage.name
        later = run_passes(ir, pipeline[n:])
        for want, got in zip(compiled.stages[n:], later.stages, strict=True):
            assert got.text == want.text, f"{want.name} differs when {stage.name} is read again"
    final = parse(compiled.stages[-1].text)
    assert isinstance(final, Program)
    assert source(final) == source(compiled.program)
