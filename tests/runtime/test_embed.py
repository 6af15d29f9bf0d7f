"""The C example builds without warnings and prints the ids that Python gets; the headers are C and C++."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runtime.stub import expected_next


@pytest.fixture(scope="module")
def embed(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("embed")
    shutil.copytree(repo / "examples" / "embed", root / "examples" / "embed")
    (root / "runtime").mkdir()
    (root / "runtime" / "native").symlink_to(repo / "runtime" / "native")
    subprocess.run(
        ["make", "-C", str(root / "examples/embed"), "CFLAGS=-O1 -Wall -Wextra -Wpedantic -Werror"],
        check=True,
        capture_output=True,
    )
    return root / "examples/embed/embed"


def test_it_prints_the_same_ids(embed: Path, stub_path: Path) -> None:
    ids = [5, 6, 7]
    for _ in range(6):
        ids.append(expected_next(ids))
    done = subprocess.run([embed, stub_path, "6", "5", "6", "7"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(i) for i in ids[3:]]


def test_it_is_short(repo: Path) -> None:
    assert len((repo / "examples/embed/main.c").read_text().splitlines()) < 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.tw", "1", "5"], "no.tw: no library that this CPU runs"),
        (["MODEL", "1", "999"], "tw_step: ids[0] is 999, expected 0 to 259"),
        (["MODEL", "200", "1"], "tw_step: pos[0] is 100, expected 0 to 99"),
    ],
)
def test_its_errors(embed: Path, stub_path: Path, arguments: list[str], message: str) -> None:
    given = [str(stub_path) if a == "MODEL" else a for a in arguments]
    done = subprocess.run([embed, *given], capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [("lib/baseline.so", "is it a plain file?"), ("weights.bin", "expected a regular file")],
)
def test_pipes_are_not_waited_for(
    embed: Path, stub_path: Path, tmp_path: Path, name: str, message: str
) -> None:
    path = Path(shutil.copytree(stub_path, tmp_path / "m.tw"))
    (path / name).unlink()
    os.mkfifo(path / name)
    done = subprocess.run([embed, path, "1", "5"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and f"{path / name}: " in done.stderr and message in done.stderr


def test_a_swapped_weights_file(embed: Path, stub_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(stub_path, tmp_path / "m.tw"))
    data = bytearray((path / "weights.bin").read_bytes())
    (path / "weights.bin").write_bytes(data[:-64])
    done = subprocess.run([embed, path, "1", "5"], capture_output=True, text=True)
    assert done.returncode == 1 and "weights.bin: expected 1216 bytes, got 1152" in done.stderr
    data[20] ^= 1
    (path / "weights.bin").write_bytes(data)
    done = subprocess.run([embed, path, "1", "5"], capture_output=True, text=True)
    assert done.returncode == 1 and "belongs to another compilation" in done.stderr
