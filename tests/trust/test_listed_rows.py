"""Programs whose lists of rows are damaged: attention reads nothing outside the cache, or is refused."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import bases
import sanitized
from forge import forge, program_file

from tilewright.artifact.rebuild import program_of
from tilewright.ir.errors import VerifyError
from tilewright.ir.plan.core import Program
from tilewright.runtime.artifact import open_artifact

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    bases.write_selecting(folder)
    return folder


def changed(work: Path, change: Callable[[str], str]) -> tuple[Program, Path]:
    """The program as another says it, read and proved as `rebuild` does."""
    folder = Path(shutil.copytree(work / "selecting.tw", work / "changed.tw", dirs_exist_ok=True))
    text = program_file(work / "selecting.tw").read_text()
    forge(folder, change(text))
    return program_of(open_artifact(folder)), folder


def listing(first: str, end: str) -> Callable[[str], str]:
    """What is listed instead of the rows of block n."""

    def change(text: str) -> str:
        new = re.sub(r"index 16\*n \+ 16 :", f"index {end} :", text)
        new = re.sub(r"index 16\*n :", f"index {first} :", new)
        assert new.count(f"index {first} :") and new.count(f"index {end} :")
        return new

    return change


DAMAGED = {
    "before the first row": ("-100000*n - 33", "100000*n + 70000"),
    "behind the last row": ("100000*n + 70000", "100000*n + 170000"),
    "as far as numbers go": ("-100000*n - 2147483000", "100000*n + 2147483000"),
    "an end before the beginning": ("16*n + 7", "16*n - 90000"),
}


def test_an_honest_list_runs_clean(work: Path) -> None:
    program, folder = changed(work, lambda text: text + "\n")
    ran = sanitized.run(program, folder, work / "objects")
    assert (ran.code, ran.sets) == (0, 3), ran.said


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_list_reads_nothing_outside(work: Path, what: str) -> None:
    program, folder = changed(work, listing(*DAMAGED[what]))
    ran = sanitized.run(program, folder, work / "objects")
    assert ran.code == 0 and ran.sets == 3, ran.said


def test_rows_that_are_not_kept_inside_are_refused(work: Path) -> None:
    """Without the limit of the slice, nothing says that its rows are in the cache."""

    def change(text: str) -> str:
        found = re.search(r"for c in %(\w+)\.\.%\1 \+ 1", text)
        assert found
        limit = rf"%{found[1]} = min (%\w+), (%\w+) :"
        at = [m for m in re.finditer(limit, text) if m.start() < found.start()][-1]
        return text[: at.start()] + at[0].replace(" min ", " max ") + text[at.end() :]

    with pytest.raises(VerifyError, match="leaves the padding"):
        changed(work, change)
