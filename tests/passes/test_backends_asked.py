"""Lowering asks those backends for schedules that the compile is for, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilewright.backends.registry import backend
from tilewright.backends.triton.backend import TritonBackend
from tilewright.capture import capture_directory
from tilewright.cli.app import run
from tilewright.ir.plan.core import Program
from tilewright.passes.driver import run_passes
from tilewright.passes.record import Record
from tilewright.pipeline import run_pipeline
from tilewright.recipe import resolve_recipe

TINY_LLAMA = Path(__file__).parents[2] / "examples" / "models" / "tiny-llama"


def record(target: str) -> Record:
    return run_pipeline(capture_directory(TINY_LLAMA), resolve_recipe("w4a8"), target=target)


def targets(program: Program) -> set[str]:
    return {s.target for k in program.kernels for s in k.schedules}


def test_a_compile_for_cpus_asks_triton_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("Triton was asked for schedules")

    monkeypatch.setattr(TritonBackend, "schedules", asked)
    assert targets(record("native").program) <= {*backend("cpp").targets, "*"}


def test_a_stage_names_the_backends_that_it_asked() -> None:
    """So a compile for another target re-enters at every stage."""
    found = record("triton")
    lowered = next(s for s in found.stages if s.name == "lower")
    fused = found.stages[found.stages.index(lowered) - 1]
    assert lowered.made_by == 'lower{backends=["triton"]}'
    assert run_passes(fused.ir, lowered.made_by).program == lowered.ir
    both = run_passes(fused.ir, 'lower{backends=["cpp", "triton"]}').program
    assert {"avx512", "triton"} <= targets(both)


def test_dump_shows_the_schedules_of_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dump", str(TINY_LLAMA), "--form", "tile", "--target", "triton"], False) == 0
    assert "schedule triton { BK=64, BM=16, BN=64 }" in capsys.readouterr().out
    assert run(["dump", str(TINY_LLAMA), "--form", "tile"], False) == 0
    assert "schedule triton" not in capsys.readouterr().out
