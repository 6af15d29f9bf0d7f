"""canonicalize on text: each file `cases/canonicalize-*.ir` has a run line, IR in, `# becomes`, IR out.

The driver verifies and checks each."""

from __future__ import annotations

from pathlib import Path

import pytest

from tilewright.ir.plan_parse import parse_ir
from tilewright.passes.driver import Options, print_ir, run_passes

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
