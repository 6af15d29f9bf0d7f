"""`opt` and `exec` as functions, and the four values of one computation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.four_values import assert_agree, four_values
from tests.ir.graph_cases import mlp, step, values
from tilewright.ir.errors import ParseError, RefusedError, VerifyError
from tilewright.ir.graph.core import Module
from tilewright.ir.graph.random_values import RandomWeights, random_inputs
from tilewright.ir.interp.plan import Runner
from tilewright.ir.interp.tile import run_kernel
from tilewright.ir.ops.base import Array
from tilewright.ir.text.graph_printer import print_module
from tilewright.ir.text.plan_parser import parse_program
from tilewright.ir.text.plan_printer import print_program
from tilewright.ir.tile.core import Kernel
from tilewright.passes.driver import Options, run_passes
from tilewright.tools.ir_text import execute, optimize

COPY = """\
kernel @copy(%x: f32[M, 8], %n: i32[M] in 0..3, %y: f32[M, 8]) {
  grid i in M by 4
  %0 = load %x[i:4, 0:8] : f32[4, 8]
  store %y[i:4, 0:8], %0
  schedule * { }
}
"""
LOWER = 'encode-weights{weights="f32"}, fuse, lower, expand-encodings, plan-memory'


def wrong(target: str, threads: int) -> Runner:
    """A backend that computes something else."""

    def run(kernel: Kernel, arrays: Mapping[str, Array], symbols: Mapping[str, int]) -> None:
        run_kernel(kernel, arrays, symbols)
        for name in kernel.written():
            arrays[name].reshape(-1)[0] += 1

    return run


def test_opt_prints_the_canonical_form_of_any_stage() -> None:
    text = print_module(mlp(64, 64))
    assert optimize("# a comment\n" + text) == text
    lowered = optimize(text, f"canonicalize, {LOWER}")
    assert "call @" in lowered
    assert optimize(lowered) == lowered
    assert optimize(COPY).startswith("kernel @copy(%x: f32[M, 8]")


def test_text_reentered_gives_the_same_later_stages() -> None:
    stages = [
        "canonicalize",
        'encode-weights{weights="f32"}',
        "fuse",
        "lower",
        "expand-encodings",
        "plan-memory",
    ]
    text = print_module(mlp(64, 64))
    for n, p in enumerate(stages):
        text = optimize(text, p)
        assert text == optimize(print_module(mlp(64, 64)), ", ".join(stages[: n + 1]))


def test_opt_explains() -> None:
    lines: list[str] = []
    text = print_module(mlp(64, 64)).replace("silu %1", "reshape %1 {shape=[B, 64]}")
    optimize(text, "canonicalize", explain=True, log=lines.append)
    assert lines == ["canonicalize: drop a move that changes nothing applied at %3 = reshape (model.py:7)\n"]


@pytest.mark.parametrize(
    ("text", "passes", "error"),
    [
        ("grph", "", ParseError),
        (print_module(mlp(64, 64)).replace("silu", "silly"), "", VerifyError),
        (COPY, "canonicalize", RefusedError),
    ],
)  # fmt: skip
def test_opt_refuses(text: str, passes: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        optimize(text, passes)


def test_exec_of_a_graph(tmp_path: Path) -> None:
    x = values((5, 64))
    np.save(tmp_path / "x.npy", x)
    report = execute(
        print_module(mlp(64, 64)),
        inputs={"x": tmp_path / "x.npy"},
        targets=["baseline"],
        output=tmp_path / "out",
    )
    assert report.agree
    (run,) = report.runs
    assert not run.notes
    assert [c.how for c in run.compared["y"]] == ["tile interpreter", "baseline"]
    assert np.load(tmp_path / "out" / "y.npy").shape == (5, 64)
    assert json.loads(json.dumps(report.to_json()))["runs"][0]["results"][0]["shape"] == [5, 64]
    assert report.render().endswith("all agree")


def test_exec_of_a_step_with_a_cache() -> None:
    report = execute(print_module(step()), targets=["avx2"])
    assert report.agree
    assert not report.runs[0].notes


def test_exec_of_a_program() -> None:
    report = execute(
        optimize(print_module(mlp(64, 64)), f"canonicalize, {LOWER}"), targets=["baseline"], symbols={"B": 4}
    )
    assert report.agree
    assert report.runs[0].results["y"].shape == (4, 64)


def test_exec_of_a_kernel() -> None:
    report = execute(COPY, symbols={"M": 6}, targets=["baseline"])
    assert report.agree
    assert report.runs[0].results["y"].shape == (6, 8)
    assert not execute(COPY, symbols={"M": 6}, targets=["x"], compiled_runner=wrong).agree
    assert execute(COPY, symbols={"M": 6}, targets=["none"]).runs[0].compared == {}


def test_exec_refuses_inputs_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no parameter 'z'"):
        execute(COPY, inputs={"z": values((6, 8))}, targets=["none"])
    with pytest.raises(RefusedError, match=r"%x was given shape \[5, 8\]"):
        execute(COPY, inputs={"x": values((5, 8))}, symbols={"M": 6}, targets=["none"])
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(RefusedError, match=r"is not an \.npy file\n  help: pass an \.npy file of numbers"):
        execute(COPY, inputs={"x": tmp_path / "x.npy"}, targets=["none"])


@pytest.mark.parametrize(
    ("module", "graph"), [(mlp(64, 64), "forward"), (step("f32"), "step")], ids=["mlp", "step"]
)
def test_four_values(module: Module, graph: str) -> None:
    lowered_from = run_passes(module, 'canonicalize, encode-weights{weights="f32"}, fuse').module
    program = run_passes(lowered_from, "lower, plan-memory").program
    assert parse_program(print_program(program)) == program
    inputs = random_inputs(lowered_from, graph)
    got = four_values(lowered_from, program, graph, inputs, RandomWeights().learn(lowered_from))
    assert_agree(got)
    name = next(iter(got["tile"]))
    got["compiled"][name].reshape(-1)[3] += 1
    with pytest.raises(
        AssertionError,
        match=rf"{name}: compiled does not follow tile; at \[0, 3\]:\n  graph .*\n  tile .*\n  compiled ",
    ):
        assert_agree(got)


@pytest.mark.parametrize("module", [mlp(64, 64), step(), step("f32")], ids=["mlp", "step-bf16", "step-f32"])
def test_check_each_reaches_through_lowering(module: Module) -> None:
    run_passes(module, f"canonicalize, {LOWER}", Options(check_each=True))


def test_what_a_kernel_leaves_unwritten_is_told() -> None:
    """Results start as poison, also for the reference; what is updated in place starts as numbers."""
    body = "grid i in 1 by 1 store %y[0:8], %x[0:8] store %n[0:8], const 1 : i32[8]"
    text = f"kernel @half(%x: f32[8], %y: f32[16], %n: i32[16]) {{ {body} }}"
    report = execute(text, targets=["none"])
    (run,) = report.runs
    assert run.notes == [f"%{name}: 8 of 16 elements are not written" for name in ("n", "y")]
    assert np.isnan(run.results["y"][8:]).all() and not np.isnan(run.results["y"][:8]).any()
    assert "  note: %y: 8 of 16 elements are not written" in report.render()
    (run,) = execute(
        "kernel @twice(%y: f32[8]) { grid i in 1 by 1 store %y[0:8], %y[0:8] * 2.0 }", targets=["none"]
    ).runs
    assert run.notes == [] and np.isfinite(run.results["y"]).all()
