"""Each numbered rule of the graph verifier, broken once."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings

from tests.ir.graph_cases import graphs, mlp, step
from tests.ir.test_counted import TEXT
from tilewright.ir.errors import VerifyError
from tilewright.ir.graph import verify as graph_verify
from tilewright.ir.graph.core import Apply, Inline, Location, Module, Op
from tilewright.ir.graph.verify import verify_module
from tilewright.ir.text.graph_parser import parse_module
from tilewright.ir.text.graph_printer import print_module
from tilewright.ir.types import SymbolRange, tensor


def test_good_modules_pass() -> None:
    verify_module(mlp())
    verify_module(step())


@settings(deadline=None, max_examples=50)
@given(graphs())
def test_built_graphs_pass(module: Module) -> None:
    verify_module(module)


#: rule, text replaced, replacement, message
TEXTS = [
    (2, "symbol B in 1..64", "symbol B in 5..4", "symbol B ranges over 5..4, expected 0 <= lo <= hi"),
    (3, "%3 = silu %1", "%0 = silu %1", "%0 is defined twice"),
    (4, "%3 = silu %1", "%3 = silu %h", "%h is defined only later"),
    (4, "%3 = silu %1", "%3 = silu %no", "%no is not defined"),
    (5, "linear %x, @gate_up", "linear %x, @no", "@no is not declared"),
    (6, "%3 = silu %1", "%3 = silly %1", "unknown op 'silly'; did you mean silu?"),
    (6, "%3 = silu %1", "%3 = silu %1, %1", "silu: takes 1 operands (x), got 2"),
    (7, "{axis=1, sizes", "{axis=-1, sizes",
     "attributes are not in canonical form; expected {'axis': 1, 'sizes': (16, 16)}"),
    (7, "{axis=1, sizes=[16, 16]}", "{axis=1}", "split: attribute 'sizes' (dims) is missing"),
    (8, "%3 = silu %1 : f32[B, 16]", "%3 = silu %1 : f32[B, 15]",
     "silu gives f32[B, 16], but the text declares f32[B, 15]"),
    (8, "mul %3, %2", "mul %3, %0", "mul: shapes [B, 16], [B, 32] do not broadcast on axis 1"),
    (9, "%x: f32[B, 32]", "%x: f32[Z, 32]", "dimension Z uses Z, which is not declared"),
    (10, "as bf16", "as int4(group=32)", "int4(group=32): group 32 does not divide K = 16 of shape (32, 16)"),
    (14, "concat{axis=0}", "conc{axis=0}", "no weight function 'conc'; known: "),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "old", "new", "message"), TEXTS)
def test_broken_text(rule: int, old: str, new: str, message: str) -> None:
    text = re.sub(r"\(y: f32\[B, 32\]\)", "(y: ?)", print_module(mlp()))
    assert old in text
    with pytest.raises(VerifyError) as e:
        verify_module(parse_module(text.replace(old, new, 1)))
    assert e.value.invariant == rule
    assert f"[{rule}] {message}" in str(e.value)


def _op(n: int, **changes: object) -> Module:
    m = mlp()
    g = m.graphs[0]
    ops = tuple(replace(op, **changes) if k == n else op for k, op in enumerate(g.ops))  # type: ignore[arg-type]
    return m.replace_graph(replace(g, ops=ops))


def _weight(**changes: object) -> Module:
    m = mlp()
    return replace(m, weights=(replace(m.weights[0], **changes), *m.weights[1:]))  # type: ignore[arg-type]


def _step(order: tuple[int, ...]) -> Module:
    m = step()
    g = m.graphs[0]
    return m.replace_graph(replace(g, ops=tuple(g.ops[n] for n in order)))


def _region(numbers: dict[int, int]) -> Module:
    m = mlp()
    g = m.graphs[0]
    return m.replace_graph(
        replace(g, ops=tuple(replace(op, region=numbers.get(n)) for n, op in enumerate(g.ops)))
    )


def _append_last() -> Module:
    m = step()
    names = [op.name for op in m.graphs[0].ops]
    at = names.index("cache_append")
    order = [n for n in range(len(names)) if n != at]
    return _step((*order, at))


OBJECTS = [
    (1, replace(mlp(), graphs=mlp().graphs * 2), "graph @forward is declared twice"),
    (1, replace(mlp(), weights=mlp().weights * 2), "weight or state @gate_up is declared twice"),
    (2, replace(mlp(), symbols=(("f32", SymbolRange()),)), "'f32' is not a valid symbol name"),
    (5, step().replace_graph(replace(step().graphs[0], outputs=("@kv.0",))), None),
    (9, _weight(type=tensor("f32", "B", 32)), "dimension B of a weight is not an integer"),
    (9, _weight(type=tensor("f32", -1, 32)), "dimension -1 is negative"),
    (10, _weight(type=tensor("u4", 32, 32)), "u4 is not an element type of values"),
    (11, mlp().replace_graph(replace(mlp().graphs[0], outputs=("%no",))), "output %no is not defined"),
    (11, mlp().replace_graph(replace(mlp().graphs[0], results=("a", "b"))), "1 outputs have 2 names"),
    (12, _append_last(), "@kv.0 is appended to after the step has attended to it"),
    (12, replace(step(), states=(replace(step().states[0], k_dim=4),)),
     "k and v do not have 2 heads of sizes 4 and 8 as @kv.0 has"),
    (12, replace(step(), states=(replace(step().states[0], recent=24),)),
     "recent is 24, expected a multiple of 16 up to 192, without evicts or select"),
    (13, _region({0: 0, 5: 0}), "region r0 is not convex: it reads values that depend on its own results"),
    (14, _weight(source=Inline("f32", (1,), b"0000")), "inline data is f32[1], expected f32[32, 32]"),
    (14, _weight(source=Apply("no", ())), "no weight function 'no'"),
    (15, _op(0, loc=Location("a.py", -1)), "location 'a.py':-1 is not a valid source location"),
    (15, _op(0, passes=("Not A Pass",)), "'Not A Pass' is not a valid pass name"),
    (16, parse_module(TEXT.replace("return %5", "return %4").replace("(y: i32[6])", "(y: ?)")),
     "output %4 has a size that only a run counts, N"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "module", "message"), OBJECTS)
def test_broken_modules(rule: int, module: Module, message: str | None) -> None:
    with pytest.raises(VerifyError) as e:
        verify_module(module)
    assert e.value.invariant == (rule if message else 11)
    assert message is None or f"[{rule}] {message}" in str(e.value)


def test_every_rule_is_broken_somewhere() -> None:
    listed = {int(n) for n in re.findall(r"^ ?(\d+)\. ", graph_verify.__doc__ or "", re.MULTILINE)}
    assert listed == {r for r, *_ in TEXTS} | {r for r, *_ in OBJECTS}


def test_the_message_shows_the_line_and_the_model_source() -> None:
    with pytest.raises(VerifyError) as e:
        verify_module(_op(2, operands=("%no",)))
    line = "%3 = silu %no : f32[B, 16]  # model.py:7 layers.0 [merge-linears]"
    assert str(e.value) == (
        f"graph @forward, model.py:7 (layers.0): verify error: [4] %no is not defined\n    {line}\n    "
        f"{'^' * len(line)}"
    )


def test_a_state_is_no_tensor() -> None:
    m = step()
    bad = Op("silu", ("@kv.0",), (replace(m.graphs[0].inputs[0], name="bad"),))
    with pytest.raises(VerifyError, match=r"\[5\] @kv.0 is a state, expected a weight"):
        verify_module(m.replace_graph(replace(m.graphs[0], ops=(bad,))))
