"""Symbols that a run counts: text, the rules of graphs and programs about them, and what interpreters do."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.ir.errors import RefusedError, VerifyError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Module
from tilewright.ir.graph.verify import verify_module
from tilewright.ir.interp.graph import Interpreter
from tilewright.ir.interp.plan import PlanRunner
from tilewright.ir.plan.core import counted_after, plan_symbols
from tilewright.ir.text.graph_parser import parse_module
from tilewright.ir.text.graph_printer import print_module
from tilewright.ir.text.plan_parser import parse_program
from tilewright.ir.text.plan_printer import print_program
from tilewright.ir.types import symbol, tensor
from tilewright.passes.driver import run_passes, verify_ir
from tilewright.passes.pipelines import LOWERING


def counting() -> Module:
    """The squares of the leading entries of x, as many as `count` says, and zeros."""
    b = GraphBuilder("forward")
    b.symbol("N", 0, 6)
    x, count = b.add_input("x", tensor("i32", 6)), b.add_input("count", tensor("i32", 1))
    more = b.op("add", count, b.const(0, "i32"))
    some = b.op("leading_rows", x, more, size=symbol("N"))
    slots = b.op("iota", size=6, dtype="i32")
    b.output(b.op("place_rows", b.op("mul", some, some), slots), "y")
    return b.module()


TEXT = print_module(counting())
PLAN = print_program(run_passes(run_passes(counting(), "fuse").module, ", ".join(LOWERING)).program)
LEADING = "%2 = leading_rows %x, %1 {size=N} : i32[N]"
BROKEN_GRAPHS = [
    (LEADING, f"%9 = full {{dtype=i32, shape=[N], value=0}} : i32[N]\n  {LEADING}",
     "N is used before an op counts it"),
    (LEADING, f"{LEADING}\n  {LEADING.replace('%2', '%9')}", "N is counted twice"),
    ("return %5", "return %4", "output %4 has a size that only a run counts, N"),
    ("%count: i32[1]", "%count: i32[1], %z: f32[N]", "N is used before an op counts it"),
]  # fmt: skip


def test_the_texts_parse_back_and_verify() -> None:
    assert parse_module(TEXT) == counting()
    verify_module(counting())
    program = parse_program(PLAN)
    assert print_program(program) == PLAN and "  symbol N = %1\n" in PLAN
    verify_ir(program)
    assert counted_after(program, program.plans[0]) == (0,)


@pytest.mark.parametrize(("old", "new", "message"), BROKEN_GRAPHS)
def test_broken_graphs(old: str, new: str, message: str) -> None:
    assert old in TEXT
    text = TEXT.replace(old, new, 1).replace("(y: i32[6])", "(y: ?)")
    with pytest.raises(VerifyError) as e:
        verify_module(parse_module(text))
    assert (e.value.invariant, e.value.message) == (16, f"[16] {message}")


def calls() -> list[str]:
    return [line.strip() for line in PLAN.splitlines() if line.strip().startswith("call ")]


BROKEN_PLANS = [
    ("symbol N = %1", "symbol M = %0", "M = %0: expected a declared symbol and a buffer that a call writes"),
    ("symbol N = %1", "symbol N = %x", "N = %x: expected a declared symbol and a buffer that a call writes"),
    ("symbol N = %1", "symbol N = %5", "%5 is i32[6], expected i32[1], the value of N"),
    ("symbol N = %1", "symbol N = %1\n  symbol N = %1", "counted symbol N is declared twice"),
    ("%x: i32[6]", "%x: i32[6], %z: i32[N]", "an input or result has a size that only a run counts, N"),
    (calls()[0], f"{calls()[1]}\n  {calls()[0]}", "depends on N, which is not counted yet"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), BROKEN_PLANS)
def test_broken_plans(old: str, new: str, message: str) -> None:
    assert old in PLAN
    with pytest.raises(VerifyError) as e:
        verify_ir(parse_program(PLAN.replace(old, new, 1)))
    assert (e.value.invariant, e.value.message) == (14, f"[14] {message}")


def test_another_plan_does_not_know_the_symbol() -> None:
    second = (
        PLAN[PLAN.index("plan @forward") :].replace("@forward", "@other").replace("  symbol N = %1\n", "")
    )
    with pytest.raises(VerifyError, match="uses N, which another plan counts"):
        verify_ir(parse_program(f"{PLAN}\n{second}"))


def test_callers_give_the_other_symbols_first() -> None:
    program = parse_program(PLAN.replace("symbol N in 0..6", "symbol N in 0..6\nsymbol A in 1..2"))
    assert [name for name, _ in plan_symbols(program)] == ["A", "N"]


@pytest.mark.parametrize("count", [0, 3, 6])
def test_the_number_is_read_when_it_is_known(count: int) -> None:
    given = {"x": np.arange(1, 7, dtype=np.int32), "count": np.int32([count])}
    want = np.where(np.arange(6) < count, given["x"] ** 2, 0)
    for found in (
        Interpreter(counting()).run("forward", given), PlanRunner(parse_program(PLAN)).run("forward", given),
    ):  # fmt: skip
        np.testing.assert_array_equal(found["y"], want)


def test_a_number_outside_its_range_is_refused() -> None:
    given = {"x": np.arange(6, dtype=np.int32), "count": np.int32([7])}
    for run in (Interpreter(counting()).run, PlanRunner(parse_program(PLAN)).run):
        with pytest.raises(RefusedError, match=r"N is 7, outside 0\.\.6"):
            run("forward", given)
