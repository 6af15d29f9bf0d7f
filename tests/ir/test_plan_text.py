"""Text of programs: parsing inverts printing, errors show their location, and the interpreter runs plans."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.ir.graph_cases import values
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import ParseError, RefusedError, TilewrightError
from tilewright.ir.graph.core import Module, State, Stored, Value, Weight
from tilewright.ir.interp.plan import PlanRunner
from tilewright.ir.plan.core import Call, Plan, PlanBuffer, Program
from tilewright.ir.text.plan_parser import parse_ir, parse_program, split_kernels
from tilewright.ir.text.plan_printer import print_program
from tilewright.ir.text.tile_parser import parse_kernel
from tilewright.ir.tile.core import Condition
from tilewright.ir.tile.verify import verify_kernel
from tilewright.ir.types import SymbolRange, symbol, tensor

SCALE = """
kernel @scale(%x: f32[M, 8], %w: f32[8], %y: f32[M, 8]) {
  grid i in M by 4
  store %y[i:4, 0:8], (load %x[i:4, 0:8]) * (load %w[0:8])
}
"""

GOLDEN = """\
meta note = "plan @x { kernel"
symbol T in 1..4
state @kv : cache(heads=1, k_dim=8, v_dim=8, k=bf16, v=bf16, context=4, window=2)
weight @w : f32[8] = file("memory", "w")

kernel @scale(%x: f32[M, 8], %w: f32[8], %y: f32[M, 8]) {
  grid i in M by 4
  %0 = load %x[i:4, 0:8] : f32[4, 8]
  %1 = load %w[0:8] : f32[8]
  %2 = mul %0, %1 : f32[4, 8]
  store %y[i:4, 0:8], %2
}

plan @step(%x: f32[T, 8]) arena 128 {
  buffer %a : f32[T, 8] bytes 128 at 0
  buffer %b : f32[T, 8] bytes 128
  call @scale(%x, @w, %a) {M=T}
  call @scale(%a, @w, %b) {M=T} when M <= 4 and M > -1 from "we\\"ird.py:3"
  call @scale(%a, @w, %b) {M=T} when M > 4
  return y = %b, "a b" = %x
}
"""


def program() -> Program:
    bf16 = parse_encoding("bf16")
    m = (("M", symbol("T")),)
    calls = (
        Call("scale", ("%x", "@w", "%a"), m),
        Call(
            "scale", ("%a", "@w", "%b"), m, (Condition("M", "<=", 4), Condition("M", ">", -1)), 'we"ird.py:3'
        ),
        Call("scale", ("%a", "@w", "%b"), m, (Condition("M", ">", 4),)),
    )
    t = tensor("f32", "T", 8)
    buffers = (PlanBuffer("a", t, 128, 0), PlanBuffer("b", t, 128))
    plan = Plan("step", (Value("x", t),), (("y", "%b"), ("a b", "%x")), buffers, calls, 128)
    weight = Weight("w", tensor("f32", 8), Stored("memory", "w"))
    return Program(
        (parse_kernel(SCALE),), (plan,), (weight,), (State("kv", 1, 8, 8, bf16, bf16, 4, 2),),
        (("T", SymbolRange(1, 4)),), (("note", "plan @x { kernel"),),
    )  # fmt: skip


def test_text_of_a_program() -> None:
    assert print_program(program()) == GOLDEN
    assert parse_program(GOLDEN) == program()


def test_the_level_of_a_text_is_told_by_its_words() -> None:
    assert parse_ir(GOLDEN) == program()
    assert parse_ir(SCALE) == program().kernels
    assert isinstance(parse_ir('meta kernel = "plan"\n'), Module)
    with pytest.raises(ParseError, match="a file contains only one of the two"):
        parse_ir(GOLDEN + "graph @f() -> () {\n return }")


def test_kernels_are_cut_out_in_place() -> None:
    outer, inner = split_kernels(GOLDEN)
    assert outer.count("\n") == inner.count("\n") == GOLDEN.count("\n")
    assert all(g in (o, i) or not g.strip() for g, o, i in zip(GOLDEN, outer, inner, strict=True))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bytes 128 at", "byte 128 at", ("p.ir:15:25: parse error: unexpected 'byte'\n"
         "      buffer %a : f32[T, 8] byte 128 at 0\n                            ^\n  help: expected "
         "`bytes`")),
        ("mul %0", "mull %0", None),
        ("{M=T}", "{M=1.5}", None),
    ],
)  # fmt: skip
def test_messages(old: str, new: str, message: str | None) -> None:
    with pytest.raises(ParseError) as e:
        parse_program(GOLDEN.replace(old, new), "p.ir")
    assert message is None or str(e.value) == message


def test_mutated_text_is_an_error_or_a_program() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        text = GOLDEN
        for _ in range(rng.randint(1, 4)):
            a = rng.randrange(len(text))
            b = min(len(text), a + rng.choice([1, 3, 30]))
            text = (
                text[:a]
                + rng.choice(["", "{", "]", "%x", "-1", "9" * 30, '"', "#", "plan", "kernel", text[a:b] * 2])
                + text[b:]
            )
        try:
            for k in parse_program(text).kernels:
                verify_kernel(k)
        except TilewrightError as e:
            assert str(e)


def test_plans_run_on_the_tile_interpreter() -> None:
    x, w = values((3, 8)), values((8,), 1)
    got = PlanRunner(program(), lambda weight: w).run("step", {"x": x})
    np.testing.assert_array_equal(got["y"], x * w * w)
    np.testing.assert_array_equal(got["a b"], x)


def test_plans_refuse_what_does_not_fit() -> None:
    with pytest.raises(RefusedError, match="no plan @stop"):
        PlanRunner(program()).run("stop", {})
    with pytest.raises(RefusedError, match=r"T is 5, outside 1\.\.4"):
        PlanRunner(program()).run("step", {"x": values((5, 8))})
    with pytest.raises(RefusedError, match="neither a buffer, a cache nor a weight that is given"):
        PlanRunner(program()).run("step", {"x": values((3, 8))})
