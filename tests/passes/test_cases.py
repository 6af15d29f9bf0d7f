"""Passes on text files in `cases`: a run line, IR in, `# becomes`, IR out; the driver verifies and checks.

`# explain: TEXT` asks that a note contains TEXT; `# error: TEXT` (then there is no second half) that the
message does. `# change: @NAME * NUMBERS` is what calibration found for a weight, whose values are random.
TW_UPDATE=1 writes what came out into the file: read the diff before committing it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tilewright.ir.errors import TilewrightError
from tilewright.ir.graph.core import Module, Stored
from tilewright.ir.text.plan_parser import parse_ir
from tilewright.ir.weights.solved import Solution
from tilewright.ir.weights.sources import WeightStore
from tilewright.passes.base import IR, PASSES, PassContext, parse_pipeline
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
    changes = [c.removeprefix("@").split(" * ") for c in directives(before, "change")]
    store = changed_store(ir, {n: json.loads(numbers) for n, numbers in changes}) if changes else None
    options = Options(verify_each=True, check_each=True, weights=store)
    found = {n: Solution((Stored("memory", f"factors:{n}"),)) for n, _ in changes}
    ctx = PassContext(weights=store, calibrator=(lambda module, ctx: found) if found else None)
    return run_passes(ir, head.removeprefix("# run:").strip(), options, ctx)


def changed_store(ir: IR, changes: Mapping[str, object]) -> WeightStore:
    """Random weights, and the factors of some."""
    assert isinstance(ir, Module)
    rng = np.random.default_rng(0)
    store = WeightStore(
        memory={
            w.name: rng.standard_normal([int(str(d)) for d in w.type.shape]).astype(np.float32)
            for w in ir.weights
        }
    )
    store.memory |= {f"factors:{n}": np.array(numbers, np.float32) for n, numbers in changes.items()}
    return store


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


#: the rest of the registered passes may have a single file
THREE = {*DECODER, "specialize", "decompose-attend", "lower", "rotate"}


@pytest.mark.parametrize("name", sorted(PASSES))
def test_every_pass_has_cases(name: str) -> None:
    """Files named after every registered pass, which they run."""
    of_this = [p for p in CASES if p.stem.startswith(f"{name}-")]
    assert len(of_this) >= (3 if name in THREE else 1)
    for p in of_this:
        head = p.read_text().partition("\n")[0].removeprefix("# run:")
        assert name in [q.name for q in parse_pipeline(head.strip())], p.name
