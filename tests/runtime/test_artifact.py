"""Artifacts: written atomically, opened only when sound, and every kind of damage named."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.runtime import stub
from tilewright.artifact.writer import write_artifact
from tilewright.backends.storage import PlacedWeight
from tilewright.ir.plan import step
from tilewright.runtime.artifact import choose_level, read_artifact, verify_artifact
from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.manifest import FORMAT, StageEntry, StepEntry, parse_manifest, seal
from tilewright.runtime.model import load


@pytest.fixture
def copy(stub_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stub_path, tmp_path / "m.tw"))


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    """Change the manifest and seal it again."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    change(body)
    body["seal"] = seal(body)
    path.write_text(json.dumps(body))


def test_the_manifest_reads_back_as_written(stub_path: Path) -> None:
    m = verify_artifact(stub_path).manifest
    assert parse_manifest(m.to_json().encode()) == m
    assert m.limits == {"vocab": 260, "context": 100, "max_tokens": 16} and m.stages == (
        StageEntry("000_plan", "plan", ""),
    )
    assert [w.read for w in m.weights] == ["whole"] and m.bits_per_weight == 32 and m.parameters == 260
    assert set(m.files) >= {
        "weights.bin",
        "lib/baseline.so",
        "src/baseline.cpp",
        "src/tilewright.h",
        "tokenizer.json",
        "ir/000_plan.ir",
    }


def test_it_generates_without_pytorch(stub_path: Path) -> None:
    code = (
        f"import sys; from tilewright.runtime import load; m = load({str(stub_path)!r}); "
        "print(m.generate([65, 66], max_new_tokens=3).ids); "
        "assert not {'torch', 'tilewright.ir'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ids = [65, 66]
    for _ in range(3):
        ids.append(stub.expected_next(ids))
    assert done.stdout.strip() == str(ids[2:])


def test_the_manifest_states_the_step_protocol(stub_path: Path) -> None:
    m = read_artifact(stub_path).manifest
    assert m.step == StepEntry(step.BLOCK, step.BLOCK_COLUMNS, step.SLICE, step.MOST_SEQUENCES)
    inputs = {t.name: tuple(t.shape) for g in m.graphs if g.name == step.STEP for t in g.inputs}
    assert inputs == {n: tuple(map(str, step.STEP_INPUTS[n])) for n in inputs} and inputs


COLUMNS = "row, rows, sequence, position"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": 4}, "the manifest says query blocks of 4 rows, the library has blocks of 8"),
        (
            {"columns": ["row", "position"]},
            f"the manifest says query blocks of the columns row, position, the library fills {COLUMNS}",
        ),
        ({"slice": 96}, "cache kv.0 holds 256 positions, which are not whole slices of 96"),
    ],
)
def test_a_library_of_another_step_protocol_is_refused(
    copy: Path, change: dict[str, object], message: str
) -> None:
    load(copy)
    edit(copy, lambda body: body["step"].update(change))
    with pytest.raises(ArtifactError) as caught:
        load(copy)
    library = copy / "lib" / "baseline.so"
    assert str(caught.value) == f"{library}: {message}\n  help: compile the model again"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), r"manifest.json: cannot be read"),
        (lambda f: (f / "manifest.json").write_text("{"), "not readable as JSON"),
        (lambda f: (f / "manifest.json").write_text("[" * 100000), "not readable as JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "expected an object, got a list of 0"),
        (lambda f: (f / "weights.bin").unlink(), "weights.bin: cannot be read"),
        (lambda f: (f / "weights.bin").write_bytes(b""), r"weights.bin: expected \d+ bytes, got 0"),
        (lambda f: os.truncate(f / "weights.bin", 200), r"weights.bin: expected \d+ bytes, got 200"),
        (lambda f: (f / "src/baseline.cpp").write_text("x"), "baseline.cpp: expected"),
        (lambda f: flip(f / "lib/baseline.so", 5000), "baseline.so: expected SHA-256"),
        (lambda f: flip(f / "tokenizer.json", 50), "tokenizer.json: expected SHA-256"),
        (lambda f: flip(f / "weights.bin", 20), "the header does not match the manifest"),
        (lambda f: link_out(f / "tokenizer.json"), "expected a regular file"),
        (lambda f: edit(f, lambda b: b.update(format=99)),
         "format 99, this version reads format 6.*update tilewright"),
        (lambda f: edit(f, lambda b: b["weights"][0].update(offset=-64)),
         "offset: expected an integer from 64"),
        (lambda f: edit(f, lambda b: b["weights"][0].update(bytes=1 << 61)),
         "bytes: expected an integer from 0 to"),
        (lambda f: edit(f, lambda b: b["weights"][0].update(offset=65)), "are not aligned to 64"),
        (lambda f: edit(f, lambda b: b["files"].update({"../../x": {"bytes": 1, "sha256": "0" * 64}})),
         "is not a file name inside"),
        (lambda f: edit(f, lambda b: b.pop("weights")), "field 'weights' is missing"),
        (lambda f: edit(f, lambda b: b.update(weights_bytes=True)), "weights_bytes: expected an integer"),
        (lambda f: edit(f, lambda b: b["levels"][0].update(library="lib/other.so")),
        "lib/other.so is missing"),
    ],
)  # fmt: skip
def test_damage_is_named(copy: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(copy)
    with pytest.raises(ArtifactError, match=f"(?s){message}"):
        load(copy)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 4
    path.write_bytes(data)


def link_out(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


def test_an_unsealed_edit_is_refused(copy: Path) -> None:
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"name": "stub"', '"name": "stud"'))
    with pytest.raises(ArtifactError, match="the seal does not match"):
        load(copy)


def test_damaged_weights_are_found_by_verify(copy: Path) -> None:
    flip(copy / "weights.bin", 300)
    load(copy)
    with pytest.raises(ArtifactError, match=r"weights\.bin: expected SHA-256"):
        load(copy, verify=True)


@pytest.mark.parametrize("field", ["vocab", "context", "max_tokens"])
def test_other_limits_than_the_library_has(copy: Path, field: str) -> None:
    edit(copy, lambda b: b["limits"].update({field: 7}))
    with pytest.raises(ArtifactError, match="compiled for other limits"):
        load(copy)


def test_another_compilation(copy: Path) -> None:
    edit(copy, lambda b: b.update(id="0" * 32))
    with pytest.raises(ArtifactError, match="the header does not match"):
        load(copy)


def test_missing_features_are_named(copy: Path) -> None:
    edit(copy, lambda b: b["levels"][0].update(features=["avx9", "sse2"]))
    with pytest.raises(ArtifactError, match=r"(?s)made for baseline; this CPU lacks avx9.*--target baseline"):
        choose_level(read_artifact(copy), {"sse2"})
    with pytest.raises(ArtifactError, match="has no level 'avx512'; it has baseline"):
        load(copy, level="avx512")
    edit(copy, lambda b: b["levels"][0].update(name="avx512_bf16", features=[]))
    with pytest.raises(ArtifactError, match=r"this CPU lacks abm, avx2, .*avx512_bf16"):
        choose_level(read_artifact(copy), {"sse2"})


@pytest.mark.parametrize(
    ("make", "message"), [(None, "does not exist"), ("file", "is a file"), ("empty", "cannot be read")]
)
def test_no_artifact(tmp_path: Path, make: str | None, message: str) -> None:
    path = tmp_path / "m.tw"
    if make == "file":
        path.write_text("x")
    elif make:
        path.mkdir()
    with pytest.raises(ArtifactError, match=message):
        load(path)


# ------------------------------------------------------------------ writing
def contents(stub_cache: Path) -> object:
    return stub.stub_contents(stub_cache)


def failing(error: BaseException) -> Callable[[PlacedWeight], Iterable[bytes]]:
    def stream(place: PlacedWeight) -> Iterable[bytes]:
        yield b"x"
        raise error

    return stream


def test_a_full_disk_leaves_the_old_artifact(stub_cache: Path, copy: Path) -> None:
    before = sorted(p.name for p in copy.parent.iterdir())
    with pytest.raises(
        ArtifactError, match=r"(?s)the disk is full; nothing was written.*weights take 1,\d+ bytes"
    ):
        write_artifact(copy, contents(stub_cache), failing(OSError(errno.ENOSPC, "No space left on device")))
    assert sorted(p.name for p in copy.parent.iterdir()) == before
    verify_artifact(copy)


def test_an_interrupt_leaves_nothing(stub_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_artifact(tmp_path / "m.tw", contents(stub_cache), failing(KeyboardInterrupt()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pieces", [[b"x" * 100], [b"x" * 5000]])
def test_a_weight_of_the_wrong_size(stub_cache: Path, tmp_path: Path, pieces: list[bytes]) -> None:
    with pytest.raises(ArtifactError, match=f"weight @table: expected 1040 bytes, got {len(pieces[0])}"):
        write_artifact(tmp_path / "m.tw", contents(stub_cache), lambda place: pieces)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_artifact_is_not_replaced(stub_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "m.tw").mkdir()
    (tmp_path / "m.tw" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="exists and is not an artifact"):
        stub.write_stub(tmp_path / "m.tw", stub_cache)


def test_a_killed_compile_leaves_nothing_that_stays(stub_cache: Path, copy: Path) -> None:
    """Killed while it streams weights: the old artifact is whole, and the next compile sweeps the remains."""
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(stub.__file__).parent)!r}); import stub; from "
        "pathlib import Path\n"
        "from tilewright.artifact.writer import write_artifact\n"
        "def slow(place):\n    yield b'x'\n    print('here', flush=True)\n    time.sleep(60)\n"
        f"write_artifact(Path({str(copy)!r}), stub.stub_contents(Path({str(stub_cache)!r})), slow)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "here\n"
    child.kill()
    child.wait()
    verify_artifact(copy)
    left = [p for p in copy.parent.iterdir() if p != copy]
    assert len(left) == 1 and ".partial-" in left[0].name
    stub.write_stub(copy, stub_cache)
    assert list(copy.parent.iterdir()) == [copy]


def test_two_compiles_of_one_artifact_at_once(stub_cache: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(stub.__file__).parent)!r}); import stub; from pathlib "
        "import Path\n"
        f"for _ in range(20): stub.write_stub(Path({str(tmp_path / 'm.tw')!r}), Path({str(stub_cache)!r}))"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    seen = 0
    while any(c.poll() is None for c in children):
        if (tmp_path / "m.tw").exists():
            seen += 1
            assert read_artifact(tmp_path / "m.tw").manifest.format == FORMAT
        time.sleep(0.01)
    assert [(c.wait(), c.stderr.read() if c.stderr else "") for c in children] == [(0, "")] * 2 and seen
    verify_artifact(tmp_path / "m.tw")
