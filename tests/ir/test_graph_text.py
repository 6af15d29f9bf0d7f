"""Graph text: printing and parsing are inverses, mistakes are shown where they are, bad text does no harm."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings

from tests.ir.graph_cases import graphs, mlp, step
from tilewright.ir.errors import ParseError, TilewrightError
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Graph, Location, Module, Op, Stored, Value
from tilewright.ir.graph.verify import verify_module
from tilewright.ir.text.attributes import Problem, parse_attrs, parse_type
from tilewright.ir.text.graph_parser import parse_module
from tilewright.ir.text.graph_printer import op_text, print_module
from tilewright.ir.types import tensor, type_text

GOLDEN = """\
meta family = "test"
meta eos = [1, 2]
meta ratio = 0.5
symbol B in 1..64
weight @gate_up : f32[32, 32] = concat{axis=0}(\
file("model.safetensors", "gate"), file("model.safetensors", "up"))
weight @down : f32[32, 16] as bf16 = file("model.safetensors", "down")

graph @forward(%x: f32[B, 32]) -> (y: f32[B, 32]) {
  %0 = linear %x, @gate_up : f32[B, 32]  # model.py:7 layers.0
  %1, %2 = split %0 {axis=1, sizes=[16, 16]} : f32[B, 16], f32[B, 16]  # model.py:7 layers.0
  %3 = silu %1 : f32[B, 16]  # model.py:7 layers.0 [merge-linears]
  %h = mul %3, %2 : f32[B, 16]  # model.py:7 layers.0 [merge-linears]
  %4 = linear %h, @down : f32[B, 32]  # model.py:7 layers.0 [merge-linears]
  %5 = add %4, %x : f32[B, 32]  # model.py:7 layers.0 [merge-linears]
  return %5
}
"""


def test_text_of_a_module() -> None:
    assert print_module(mlp()) == GOLDEN
    assert parse_module(GOLDEN) == mlp()


def test_states_print_and_parse() -> None:
    for state in (step().states[0], replace(step().states[0], recent=32, shares=4)):
        module = replace(step(), states=(state,))
        assert parse_module(print_module(module)) == module


@settings(deadline=None, max_examples=100)
@given(graphs())
def test_parse_is_the_inverse_of_print(module: Module) -> None:
    assert parse_module(print_module(module)) == module


def test_odd_names_and_values_round_trip() -> None:
    op = Op(
        "const", (), (Value('a "b" \n', tensor("f32")),),
        (("dtype", "f32"), ("shape", ()), ("value", float("-inf"))), Location("", 0, "x y"), ("p",), 3,
    )  # fmt: skip
    m = Module(
        (Graph('g"', (Value("%", tensor("bool", 2)),), (op,), ("%%", '%a "b" \n'), ("r s", "1")),),
        meta=(("k v", "\u2028\ud800"),),
    )
    assert parse_module(print_module(m)) == m


def test_ops_that_break_rules_still_print_and_parse() -> None:
    m = Module((Graph("f", (), (Op("nonsense", ("%gone",), ()),), ("%gone",)),))
    assert parse_module(print_module(m)) == m


def test_other_comments_are_ignored() -> None:
    text = GOLDEN.replace("  %0 =", "  # model.py:1 not an origin\n  %0 =").replace(
        "  # model.py:7 layers.0\n", "  # just words\n", 1
    )
    m = parse_module(text)
    assert m.graphs[0].ops[0].loc is None
    assert m.graphs[0].ops[1].loc == Location("model.py", 7, "layers.0")


def test_dimensions_are_arithmetic_on_names() -> None:
    t = parse_type("f32[2*S + 1, floor(T/2), T*S, 3]")
    assert type_text(t) == "f32[2*S + 1, floor(T/2), S*T, 3]"
    assert parse_type(type_text(t)) == t


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a=open(T)}", "unknown function open in a dimension; known: floor, ceiling, Max, Min, Mod"),
        ("{a=T**999}", "power 999 in a dimension; at most 8"),
        ("{a=(A+B)**8*(C+D)**8}", "dimension has no finite value or more than 16 terms"),
        ("{a=1/0}", "division by zero in a dimension"),
        ("{a=99999999999999999999}", "integer 99999999999999999999… is too large"),
        ("{a=1.5*T}", "expected a dimension, got 1.5"),
        ("{a=[1}", "unexpected '}'"),
    ],
)
def test_bad_attributes(text: str, message: str) -> None:
    with pytest.raises(Problem) as e:
        parse_attrs(text)
    assert e.value.message == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "f32[B, 32]) ->", "f99[B, 32]) ->",
            ("m.ir:8:20: parse error: unknown element type f99; known: bool, i8, u8, i16, u16, i32, u32, "
             "i64, f16, bf16, "
            "f32, f64, u1, u2, u3, u4, u5, u6, u7\n"
                "    graph @forward(%x: f99[B, 32]) -> (y: f32[B, 32]) {\n                       ^"),
        ),
        (
            "(y: f32[B, 32])", "(y: f32[B, 31])",
            "m.ir:8:39: parse error: graph @forward declares the result f32[B, 31], but %5 is f32[B, 32]\n"
            "    graph @forward(%x: f32[B, 32]) -> (y: f32[B, 31]) {\n" + " " * 42 + "^",
        ),
        (
            "return %5", "return",
            ("m.ir:8:7: parse error: graph @forward declares 1 results (1 named) and returns 0\n"
            "    graph @forward(%x: f32[B, 32]) -> (y: f32[B, 32]) {\n          ^"),
        ),
        ("as bf16", "as bf17", None),
    ],
)  # fmt: skip
def test_messages(old: str, new: str, message: str | None) -> None:
    with pytest.raises(ParseError) as e:
        parse_module(GOLDEN.replace(old, new), "m.ir")
    assert message is None or str(e.value) == message


def test_deep_nesting_is_an_error() -> None:
    deep = "weight @w : f32[1] = " + "add(" * 5000 + 'file("a", "b")' + ")" * 5000
    with pytest.raises(ParseError, match="nested more than 64 deep"):
        parse_module(deep)


def test_inline_data_must_fit_its_type() -> None:
    with pytest.raises(ParseError, match=r"inline f32\[2\] of 4 bytes; expected 8"):
        parse_module('weight @w : f32[2] = inline(f32[2], "AAAAAA==")')


def test_mutated_text_is_an_error_or_a_module() -> None:
    texts = [GOLDEN, print_module(step())]
    for seed in range(300):
        rng = random.Random(seed)
        text = rng.choice(texts)
        for _ in range(rng.randint(1, 4)):
            a, b = sorted(rng.sample(range(len(text)), 2))
            b = min(b, a + rng.choice([1, 3, 30]))
            text = (
                text[:a]
                + rng.choice(["", "{", "]", "%x", "-1", "9" * 30, '"', "#", text[a:b] * 2, "T**3"])
                + text[b:]
            )
        try:
            verify_module(parse_module(text))
        except TilewrightError as e:
            assert str(e)


def test_a_large_module_parses_in_time() -> None:
    b = GraphBuilder("big")
    b.symbol("T", 1, 512)
    x = b.add_input("x", tensor("f32", "T", 64))
    for n in range(1250):
        w = b.weight(f"layers.{n}.w", tensor("bf16", 64, 64), Stored("model.safetensors", f"layers.{n}.w"))
        b.loc = Location("modeling_llama.py", n % 300, f"model.layers.{n}")
        x = b.op("add", x, b.op("rms_norm", b.op("silu", b.op("linear", x, w)), eps=1e-5))
    b.output(x, "y")
    text = print_module(b.module())
    start = time.process_time()
    module = parse_module(text)
    took = time.process_time() - start
    assert len(module.graphs[0].ops) == 5000
    assert took <= 3.0
    assert module == b.module()


def test_an_op_alone_as_text() -> None:
    op = mlp().graphs[0].ops[3]
    assert op_text(op) == "%h = mul %3, %2 : f32[B, 16]  # model.py:7 layers.0 [merge-linears]"
