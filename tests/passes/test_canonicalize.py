"""canonicalize on text: each file `cases/canonicalize-*.ir` has a run line, IR in, `# becomes`, IR out.

The driver verifies and checks each.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from tests.ir.graph_cases import graphs
from tilewright.ir.graph.core import Module
from tilewright.ir.text.graph_parser import parse_module
from tilewright.ir.text.graph_printer import print_module
from tilewright.ir.text.plan_parser import parse_ir
from tilewright.passes.driver import Options, run_passes
from tilewright.passes.record import print_ir

CASES = sorted((Path(__file__).parent / "cases").glob("canonicalize-*.ir"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_case(path: Path) -> None:
    before, _, after = path.read_text().partition("# becomes\n")
    head, _, text = before.partition("\n")
    pipeline = head.removeprefix("# run:").strip()
    ir = parse_ir(text, path.name)
    assert not isinstance(ir, tuple)
    result = run_passes(ir, pipeline, Options(verify_each=True, check_each=True))
    assert print_ir(result.ir).strip() == after.strip()


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_any_graph_keeps_its_meaning_and_settles(module: Module) -> None:
    once = run_passes(module, "canonicalize", Options(verify_each=True, check_each=True)).module
    assert run_passes(once, "canonicalize").module == once
    assert parse_module(print_module(once)) == once
