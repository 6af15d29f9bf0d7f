"""Unusual files: pipes and devices in place of regular files, and files modified under a running model."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtime import stub
from tilewright.runtime import private
from tilewright.runtime.artifact import open_artifact, read_artifact, verify_artifact
from tilewright.runtime.errors import ArtifactError, SessionError
from tilewright.runtime.files import Unreadable, check_folder, open_regular, read_text
from tilewright.runtime.model import Model, load

LIBRARY = "lib/baseline.so"


@pytest.fixture
def copy(stub_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stub_path, tmp_path / "m.tw"))


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


# ------------------------------------------------------------------ what is not a regular file
def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    pipe(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "socket"))
        for name, what in {
            "pipe": "a pipe",
            "socket": "a socket",
            ".": "a folder",
            "/dev/zero": "a device",
        }.items():
            with pytest.raises(Unreadable) as e:
                open_regular(tmp_path / name)
            assert str(e.value) == f"it is {what}, not a regular file" and e.value.filename == str(
                tmp_path / name
            )
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    (tmp_path / "text").write_bytes(b"a\r\nb\xc3\xa9")
    (tmp_path / "link").symlink_to("text")
    assert read_text(tmp_path / "link") == "a\nbé"
    (tmp_path / "text").write_bytes(b"ab\xff")
    with pytest.raises(Unreadable, match=r"^it is not UTF-8 text \(invalid start byte at byte 2\)$"):
        read_text(tmp_path / "text")


def test_a_folder_of_plain_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "text").write_text("x")
    (tmp_path / "gone").symlink_to("nothing")
    check_folder(tmp_path)
    pipe(tmp_path / "config.json")
    with pytest.raises(Unreadable, match=r"^it is a pipe, not a regular file$"):
        check_folder(tmp_path)


def test_pipes_in_place_of_an_artifacts_files_are_named(copy: Path) -> None:
    names = sorted(read_artifact(copy).manifest.files)
    assert {"weights.bin", LIBRARY, "tokenizer.json", "ir/000_plan.ir"} <= set(names)
    for name in names:
        (copy / name).rename(copy / "kept")
        pipe(copy / name)
        for way in (load, verify_artifact):
            with pytest.raises(ArtifactError) as e:
                way(copy)
            assert str(e.value).startswith(f"{copy / name}: expected a regular file\n")
        (copy / "kept").replace(copy / name)
    pipe(copy / "manifest.json")
    with pytest.raises(ArtifactError) as e:
        load(copy)
    assert str(e.value).startswith(
        f"{copy / 'manifest.json'}: cannot be read (it is a pipe, not a regular file)\n"
    )


def test_files_that_become_pipes_after_the_check(copy: Path) -> None:
    artifact = open_artifact(copy)
    for name in (LIBRARY, "tokenizer.json"):
        pipe(copy / name)
    with pytest.raises(
        ArtifactError, match=r"tokenizer.json: cannot be read as text \(it is a pipe, not a regular file\)"
    ):
        artifact.text("tokenizer.json")
    with pytest.raises(
        ArtifactError, match=r"baseline.so: cannot be read \(it is a pipe, not a regular file\)"
    ):
        Model(artifact, copy / LIBRARY)


def test_weights_that_are_a_pipe(copy: Path, stub_path: Path) -> None:
    artifact = open_artifact(copy)
    pipe(copy / "weights.bin")
    with pytest.raises(ArtifactError, match=r"weights.bin: expected a regular file"):
        Model(artifact, stub_path / LIBRARY)


# ------------------------------------------------------------------ writes under a running model
RUN = """
import sys, shutil
from tilewright.runtime import load
m = load(sys.argv[1])
with open(sys.argv[1] + "/lib/baseline.so", "r+b") as f:  # as `cp` writes over a file
    f.truncate(0)
    f.write(b"x" * 100)
print(m.generate([65, 66], max_new_tokens=3).ids)
"""


def test_writing_over_the_library_of_a_running_model(copy: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RUN, str(copy)], capture_output=True, text=True)
    ids = [65, 66]
    for _ in range(3):
        ids.append(stub.expected_next(ids))
    assert done.returncode == 0 and done.stdout.strip() == str(ids[2:]), done


def test_the_hash_is_of_what_is_loaded(copy: Path) -> None:
    artifact = open_artifact(copy)
    data = bytearray((copy / LIBRARY).read_bytes())
    data[-1] ^= 1
    (copy / LIBRARY).write_bytes(data)
    with pytest.raises(
        ArtifactError, match=r"baseline.so: expected SHA-256 [0-9a-f]{12}…, got [0-9a-f]{12}…"
    ):
        Model(artifact, copy / LIBRARY, sha256=artifact.manifest.files[LIBRARY].sha256)


def test_without_memory_files_a_folder_serves(
    stub_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(1, "no memory files here")

    monkeypatch.setattr(os, "memfd_create", refuse)
    monkeypatch.setattr(private, "_LOADED", {})
    assert load(stub_path).generate([65, 66], max_new_tokens=1).ids == [stub.expected_next([65, 66])]
    monkeypatch.setattr(private, "_LOADED", {})
    monkeypatch.setattr(
        private, "_WAYS", (private._from_memory, private._from_folder(lambda: str(tmp_path / "none")))
    )
    with pytest.raises(ArtifactError, match=r"cannot be loaded \(\[Errno 1\] no memory files here\)"):
        load(stub_path)
    assert not list(tmp_path.iterdir())


def test_two_libraries_are_not_taken_for_one(stub_path: Path) -> None:
    """The loader knows libraries by name: memory that is given back must not lend its name to the next."""
    names = {private.load_private(stub_path / LIBRARY)._name for _ in range(3)}
    assert len(names) == 1 and os.path.exists(names.pop())
    other = private.load_private(_libm())
    assert not hasattr(other, "tw_about") and hasattr(private.load_private(stub_path / LIBRARY), "tw_about")


def _libm() -> Path:
    return next(
        Path(x.split()[-1])
        for x in Path("/proc/self/maps").read_text().splitlines()
        if "/libm." in x or "/libm-" in x
    )


@pytest.mark.parametrize(
    ("change", "now"),
    [
        (lambda p: os.truncate(p, 100), 100),
        (lambda p: os.truncate(p, 0), 0),
        (lambda p: os.utime(p, ns=(1, 1)), 1216),
        (lambda p: p.open("ab").write(b"more"), 1220),
    ],
)
def test_weights_that_changed_are_refused_before_they_are_read(
    copy: Path, change: Callable[[Path], object], now: int
) -> None:
    model = load(copy)
    session = model.session()
    seq = session.add()
    change(copy / "weights.bin")
    said = (
        f"{copy / 'weights.bin'}: was modified after it was opened (1216 bytes, now {now}); load the "
        "model again"
    )
    for use in (model.session, lambda: session.step([(seq, [1], "last")])):
        with pytest.raises(SessionError) as e:
            use()
        assert str(e.value) == said


def test_weights_replaced_by_another_file_stay_as_they_were(copy: Path) -> None:
    model = load(copy)
    (copy / "new").write_bytes(b"other")
    (copy / "new").replace(copy / "weights.bin")
    assert model.generate([65, 66], max_new_tokens=1).ids == [stub.expected_next([65, 66])]
