"""Passes on text: each file under `cases` has a run line, IR in, `# becomes`, IR out. The driver verifies and
checks each.

`# explain: TEXT` asks that a note contains TEXT; `# error: TEXT` (then there is no second half) that the
message does. TW_UPDATE=1 writes what came out into the file: read the diff before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tilewright.ir.errors import TilewrightError
from tilewright.ir.text.plan_parser import parse_ir
from tilewright.passes.driver import Options, explain, run_passes
from tilewright.passes.pipelines import DECODER
from tilewright.passes.record import Record, print_ir

CASES = sorted((Path(__file__).parent / "cases").glob("*.ir"))


def directives(text: str, key: str) -> list[str]:
    return [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith(f"# {key}:")]


def run(before: str, name: str) -> Record:
    head, _, text = before.partition("\n")
    ir = parse_ir(text, name)
    assert not isinstance(ir, tuple)
    return run_passes(ir, head.removeprefix("# run:").strip(), Options(verify_each=True, check_each=True))


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_case(path: Path) -> None:
    before, _, after = path.read_text().partition("# becomes\n")
    errors = directives(before, "error")
    if errors:
        with pytest.raises(TilewrightError) as caught:
            run(before, path.name)
        assert [e for e in errors if e not in str(caught.value)] == [], str(caught.value)
        return
    result = run(before, path.name)
    notes = explain(result.notes)
    assert [e for e in directives(before, "explain") if e not in notes] == [], notes
    printed = print_ir(result.ir).strip()
    if os.environ.get("TW_UPDATE"):
        path.write_text(f"{before}# becomes\n{printed}\n")
    else:
        assert printed == after.strip()


@pytest.mark.parametrize("name", sorted({*DECODER, "specialize"}))
def test_every_pass_has_cases(name: str) -> None:
    """At least three files for each pass, named after it."""
    assert sum(p.stem.startswith(f"{name}-") for p in CASES) >= 3
