"""The fuzzer detects planted faults, and a seeded sample of mutants has no finding."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fuzz_rebuild
import sanitized
from forge import forge, program_file

from tilewright.ir.text.plan_parser import parse_program

#: mutants of every run, and of the slow test
SAMPLE, ALL, BATCH = 27, 2000, 250


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    fuzz_rebuild.bases(folder)
    return folder


def unproved(work: Path, name: str, change: Callable[[str], str], shrink: int = 0) -> sanitized.Ran:
    """Build and run what the proofs would refuse."""
    folder = Path(shutil.copytree(work / f"{name}.tw", work / "planted.tw", dirs_exist_ok=True))
    text = program_file(folder).read_text()
    assert shrink or change(text) != text
    forge(folder, change(text))
    return sanitized.run(parse_program(change(text)), folder, work / "objects", shrink)


def without_call(text: str) -> str:
    lines = text.split("\n")
    del lines[next(n for n, line in enumerate(lines) if line.startswith("  call "))]
    return "\n".join(lines)


@pytest.mark.parametrize("name", fuzz_rebuild.BASES)
def test_honest_programs_run_clean(work: Path, name: str) -> None:
    ran = unproved(work, name, lambda text: text + "\n")
    assert (ran.code, ran.sets) == (0, 3 if name == "llama" else 6), ran.said


PLANTED: dict[str, tuple[Callable[[str], str], int, str]] = {
    "a parameter larger than its argument": (
        lambda t: t.replace("{M=batch}", "{M=30*batch}", 1),
        99,
        "heap-buffer-overflow",
    ),
    "sizes beyond everything": (
        lambda t: t.replace("{M=batch}", "{M=1000000*batch}"),
        99,
        "AddressSanitizer",
    ),
    "a weight that is too small": (lambda t: t.replace("f32[48]", "f32[47]", 1), 99, "AddressSanitizer"),
    "a buffer smaller than its type": (
        lambda t: t.replace("bytes 12288", "bytes 12284"),
        99,
        "AddressSanitizer",
    ),
    "a call left out": (without_call, 3, "MISMATCH never written"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_planted_faults_are_found(work: Path, what: str) -> None:
    change, code, said = PLANTED[what]
    ran = unproved(work, "plain", change)
    assert ran.code == code and said in ran.said, (ran.code, ran.said)


def test_a_shared_place_is_found(work: Path) -> None:
    """Two temporaries of the language model that a call needs at once, in the same bytes."""

    def change(text: str) -> str:
        places = sorted({int(n) for n in re.findall(r" at (\d+)\n", text)})
        return re.sub(rf" at {places[1]}\n", f" at {places[0]}\n", text)

    ran = unproved(work, "llama", change)
    assert ran.code == 3 and "MISMATCH shared bytes" in ran.said, ran.said


@pytest.mark.parametrize("bytes_", [1, 4])
def test_one_byte_too_few_is_noticed(work: Path, bytes_: int) -> None:
    ran = unproved(work, "plain", lambda text: text, shrink=bytes_)
    assert ran.code == 99 and "heap-buffer-overflow" in ran.said, ran.said


def check(found: dict[str, int], count: int) -> None:
    refused = sum(n for kind, n in found.items() if kind.startswith("refused"))
    assert sum(found.values()) == count and not found.get("finding"), found
    assert found["accepted and ran"] >= count // 10 and refused >= count // 4, found


def test_some_mutants(work: Path) -> None:
    check(fuzz_rebuild.main(work, 0, SAMPLE), SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, ALL, BATCH))
def test_mutants(work: Path, first: int) -> None:
    check(fuzz_rebuild.main(work, first, BATCH), BATCH)
