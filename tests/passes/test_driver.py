"""The pass driver: options, order, verification, checking, dumps, explanations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.ir.graph_cases import mlp
from tilewright.ir.errors import ParseError, VerifyError
from tilewright.ir.graph.core import Module, Op
from tilewright.ir.ops.base import Array
from tilewright.ir.text.graph_parser import parse_module
from tilewright.ir.text.graph_printer import print_module
from tilewright.passes import base
from tilewright.passes.base import (
    CheckCase,
    Pass,
    PassContext,
    PassError,
    find_pass,
    parse_pipeline,
    register_pass,
)
from tilewright.passes.driver import CheckError, Options, explain, run_passes


def _edit(module: Module, old: str, new: str) -> Module:
    return parse_module(print_module(module).replace(old, new))


@dataclass(frozen=True)
class Swap(Pass):
    """Replaces text; what tests need to break things."""

    name = "test-swap"
    gives = frozenset({"swapped"})
    old: str = "silu"
    new: str = "gelu"
    times: int = 1
    factor: float = 1.0
    pairs: tuple[tuple[str, str], ...] = ()
    limit: int | None = None

    def run(self, module: Module, ctx: PassContext) -> Module:
        op = module.graphs[0].ops[0]
        if self.old not in print_module(module):
            ctx.declined("swap", op, f"there is no {self.old}")
            return module
        ctx.applied("swap", op)
        return _edit(module, self.old, self.new)


@dataclass(frozen=True)
class Needy(Pass):
    """Needs what test-swap gives."""

    name = "test-needy"
    needs = frozenset({"swapped"})

    def run(self, module: Module, ctx: PassContext) -> Module:
        return module


@dataclass(frozen=True)
class Widen(Pass):
    """Changes the signature: every graph takes its input by another name, and returns the negative."""

    name = "test-widen"

    def run(self, module: Module, ctx: PassContext) -> Module:
        g = module.graphs[0]
        last = g.ops[-1].result
        op = Op("neg", (g.outputs[0],), (replace(last, name="minus"),))
        return module.replace_graph(replace(g, ops=(*g.ops, op), outputs=("%minus",)))

    def adapt(self, before: Module, after: Module, graph: str, inputs: Mapping[str, Array]) -> CheckCase:
        return CheckCase(graph, inputs, lambda results: {"y": np.negative(results["y"])})


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for cls in (Swap, Needy, Widen):
        register_pass(cls)
    yield
    for cls in (Swap, Needy, Widen):
        base.PASSES.pop(cls.name)
        base._LOADED.pop(cls.name)


def test_options_parse_and_print() -> None:
    text = 'test-swap{old="a", times=2, factor=0.5, pairs=[["x", "y"]], limit=3}'
    (p,) = parse_pipeline(text)
    assert p == Swap("a", "gelu", 2, 0.5, (("x", "y"),), 3)
    assert str(p) == text
    assert parse_pipeline(f"{p}, test-needy") == (p, Needy())
    assert parse_pipeline("") == ()
    assert parse_pipeline("test-swap{factor=2}") == (Swap(factor=2.0),)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("test-swop", PassError, ("pass error: unknown pass 'test-swop'\n  help: did you mean test-swap, "
                                 "test-widen?")),
        ("test-swap{olt=1}", PassError, ("test-swap: pass error: unknown option 'olt'\n"
         "  help: its options: old, new, times, factor, pairs, limit")),
        ("test-swap{times=1.5}", PassError, "test-swap: pass error: option times must be int, got 1.5"),
        ("test-swap{times=true}", PassError, "test-swap: pass error: option times must be int, got true"),
        ("test-swap{limit=\"x\"}", PassError, ('test-swap: pass error: option limit must be int | None, got '
                                              '"x"')),
        ("test-swap{pairs=[\"x\"]}", PassError,
         'test-swap: pass error: option pairs must be tuple[tuple[str, str], ...], got ["x"]'),
        ("test-swap,, fuse", ParseError, ("<pipeline>:1:11: parse error: unexpected ','\n"
         "    test-swap,, fuse\n              ^\n  help: expected a pass name")),
    ],
)  # fmt: skip
def test_bad_pipelines(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as e:
        parse_pipeline(text)
    assert str(e.value) == message


def test_order_is_checked_when_a_pipeline_is_built() -> None:
    run_passes(mlp(), "test-swap, test-needy")
    with pytest.raises(PassError) as e:
        run_passes(mlp(), "test-needy, test-swap")
    assert str(e.value) == (
        "test-needy: pass error: needs 'swapped', which no earlier pass provides\n  help: put test-swap "
        "before it"
    )


def test_names_are_those_of_the_classes() -> None:
    for name in ("canonicalize", "expand-encodings", "test-swap"):
        assert find_pass(name).name == name


def test_verify_each_names_the_pass() -> None:
    with pytest.raises(VerifyError) as e:
        run_passes(mlp(), 'test-swap{new="exponent"}', Options(verify_each=True))
    assert str(e.value).startswith(
        'after test-swap{new="exponent"}: graph @forward, model.py:7 (layers.0): verify error: [6] unknown op'
    )


def test_check_each_finds_a_change_of_values() -> None:
    with pytest.raises(
        CheckError,
        match=r"test-swap: graph @forward, result y: check error: differs by 0\.\d+ of its largest",
    ):
        run_passes(mlp(), "canonicalize, test-swap", Options(check_each=True))
    run_passes(mlp(), 'canonicalize, test-swap{old="nothing"}', Options(check_each=True))


def test_check_each_adapts_to_a_new_signature() -> None:
    run_passes(mlp(), "test-widen", Options(check_each=True))


def test_dumps_are_numbered_and_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TW_DUMP", str(tmp_path))
    result = run_passes(mlp(), "canonicalize, test-swap")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "000_input.ir",
        "001_canonicalize.ir",
        "002_test-swap.ir",
    ]
    again = parse_module((tmp_path / "001_canonicalize.ir").read_text())
    assert run_passes(again, "test-swap").ir == result.ir
    assert [s.name for s in result.stages] == ["input", "canonicalize", "test-swap"]


def test_print_after() -> None:
    lines: list[str] = []
    run_passes(mlp(), "canonicalize, test-swap", Options(print_after=("test-swap",), log=lines.append))
    assert len(lines) == 1
    assert lines[0].startswith("# after test-swap\nmeta family")
    assert "gelu" in lines[0]


def test_declined_rewrites_give_their_reason() -> None:
    result = run_passes(mlp(), 'test-swap{old="nothing"}, test-swap')
    assert explain(result.notes, "test-swap") == (
        "test-swap: swap declined at %0 = linear (model.py:7): there is no nothing\n"
        "test-swap: swap applied at %0 = linear (model.py:7)\n"
    )


def test_a_level_too_low_is_an_error() -> None:
    with pytest.raises(PassError) as e:
        run_passes(mlp(), "expand-encodings")
    assert str(e.value) == (
        "expand-encodings: pass error: needs 'program' (tile programs and plans), which no earlier pass "
        "provides\n"
        "  help: put lower before it"
    )
