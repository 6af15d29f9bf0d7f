"""Two thousand seeded mutations of an artifact: an error or a correct result, never a crash or a hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime import mutate, stub

BATCH = 250


def expected() -> str:
    ids = list(mutate.PROMPT)
    for _ in range(mutate.NEW):
        ids.append(stub.expected_next(ids))
    return " ".join(map(str, ids[len(mutate.PROMPT) :]))


def run_batch(artifact: Path, work: Path, first: int, count: int) -> list[tuple[str, str, str, str]]:
    """(seed, what, outcome, state) of each mutant. A crash or hang names its seed."""
    command = [sys.executable, str(Path(mutate.__file__)), str(artifact), str(work), str(first), str(count)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    except subprocess.TimeoutExpired as e:
        pytest.fail(f"hangs: {bytes(e.stdout or b'')[-200:]!r}")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (
        f"exit {done.returncode} after: {lines[-1] if lines else ''}\n{done.stderr[-3000:]}"
    )
    return [tuple(part.strip() for part in line.split("|")) for line in lines]  # type: ignore[misc]


def check(results: list[tuple[str, str, str, str]], count: int) -> None:
    assert len(results) == count
    for seed, what, outcome, state in results:
        sealed = what.endswith("(sealed)")
        # sealed again, a changed file is another artifact, not a damaged one: any answer but a crash is right
        correct = outcome.startswith("error") or outcome == expected() or sealed or state == "damaged"
        assert correct, f"seed {seed}: {what}: {outcome}"
        if not sealed and not outcome.startswith("error") and state == "damaged":
            assert "weights.bin" in what, f"seed {seed}: {what} was not noticed at open"
    assert sum(r[2].startswith("error") for r in results) > count / 2


#: seeds of every day
QUICK = (0,)


@pytest.mark.parametrize(
    "batch", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in range(8)]
)
def test_mutations(stub_path: Path, tmp_path: Path, batch: int) -> None:
    check(run_batch(stub_path, tmp_path, batch * BATCH, BATCH), BATCH)
