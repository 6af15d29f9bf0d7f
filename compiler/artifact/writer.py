"""Writes `model.tw` atomically: built in a temporary folder beside it, and renamed when complete.

In: a program, texts, built libraries, and a callback that streams one weight at a time. Out: the folder and
its manifest. Never holds more than what the callback yields. Safe against errors and kills; nothing is forced
to the disk, which would cost more than compiling: after a power cut, `verify` tells. Independent of how
weights are made or kernels are built.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

from tilewright import runtime
from tilewright.artifact.contents import Contents, make_manifest
from tilewright.artifact.model_files import TOKENIZER_FILES
from tilewright.artifact.stages import NOTES, notes_text, stage_entries
from tilewright.backends.base import PendingBinaries, Progress
from tilewright.backends.image import WeightBytes, image
from tilewright.backends.storage import place_weights
from tilewright.ir.plan.core import Program
from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.manifest import MANIFEST, WEIGHTS, FileEntry, Manifest


def write_artifact(
    path: Path, contents: Contents, weights: WeightBytes, progress: Progress | None = None
) -> Manifest:
    """Write the artifact and put it at `path`, replacing an artifact that is there. Raises ArtifactError
    (disk full, a folder that is not an artifact, a weight of the wrong size) and then leaves `path` as it
    was.
    """
    path = Path(os.path.abspath(path))
    check_target(path)
    _sweep(path)
    partial = path.parent / f".{path.name}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        manifest = _fill(partial, contents, weights, progress)
        _replace(partial, path)
        return manifest
    except OSError as e:
        raise _storage_error(e, path, contents.program) from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(contents.levels, PendingBinaries):
            contents.levels.cancel()  # after an error nobody waits for the rest, and the process can end


def check_target(path: Path) -> None:
    """Raises ArtifactError if an artifact could not be put at `path`: something else is there, or the folder
    is not writable."""
    path = Path(os.path.abspath(path))
    folder = path.is_dir() and not path.is_symlink()
    if (path.exists() or path.is_symlink()) and not (
        folder and ((path / MANIFEST).exists() or not any(path.iterdir()))
    ):
        raise ArtifactError(
            "exists and is not an artifact, so it is not replaced",
            str(path),
            "choose a different -o, or remove it",
        )
    parent = next(p for p in path.parents if p.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError("the folder is not writable", str(parent), "choose a different -o")


def _sweep(path: Path) -> None:
    """Remove what killed compiles of this artifact left beside it."""
    for old in path.parent.glob(f".{path.name}.partial-*"):
        pid = old.name.rsplit("-", 2)[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(old, ignore_errors=True)


def _storage_error(e: OSError, path: Path, program: Program) -> ArtifactError:
    need = place_weights(program.weights)[1]
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        hint = (
            f"the weights take {need:,} bytes and {free:,} are free; free some space or choose a different -o"
        )
        return ArtifactError("the disk is full; nothing was written", str(path), hint)
    return ArtifactError(
        f"cannot be written: {e.strerror or e}",
        str(path),
        "check that the folder exists and is writable",
    )


# ------------------------------------------------------------------ filling the folder
def _fill(root: Path, c: Contents, weights: WeightBytes, progress: Progress | None) -> Manifest:
    files = {
        WEIGHTS: _write_weights(root / WEIGHTS, c, weights, progress)
    }  # while the libraries are being built
    files |= _texts(root, c)
    manifest = make_manifest(c, files)
    _put(root / MANIFEST, manifest.to_json().encode())
    return manifest


def _texts(root: Path, c: Contents) -> Iterator[tuple[str, FileEntry]]:
    for entry, stage in zip(stage_entries(c.record), c.record.stages, strict=True):
        yield _store(root, entry.file, stage.text.encode())
    yield _store(root, NOTES, notes_text(c.record).encode())
    for level in c.levels:
        yield _store(root, f"src/{level.name}.cpp", level.source.encode())
        yield _store(root, f"lib/{level.name}.so", level.library.read_bytes())
    native = Path(str(runtime.__file__)).parent / "native"
    for header in sorted(native.glob("*.h")):
        yield _store(root, f"src/{header.name}", header.read_bytes())
    for name in TOKENIZER_FILES if c.model_dir else ():
        source = Path(str(c.model_dir)) / name
        if source.is_file():
            yield _store(root, name, source.read_bytes())


def _store(root: Path, name: str, data: bytes) -> tuple[str, FileEntry]:
    _put(root / name, data)
    return name, FileEntry(len(data), hashlib.sha256(data).hexdigest())


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


def _write_weights(path: Path, c: Contents, weights: WeightBytes, progress: Progress | None) -> FileEntry:
    total, digest = place_weights(c.program.weights)[1], hashlib.sha256()

    def told(name: str, done: int, total: int) -> None:
        if isinstance(c.levels, PendingBinaries):
            c.levels.check()
        if progress:
            progress(name, done, total)

    with path.open("wb", buffering=0) as f:
        os.posix_fallocate(f.fileno(), 0, total)  # a full disk shows now, not after minutes
        sink = _Sink(f, digest.update)
        for piece in image(c.program, weights, told):
            sink.write(piece)
        sink.flush()
    return FileEntry(total, digest.hexdigest())


class _Sink:
    """A file that is hashed while it is written, in aligned blocks of 8 MiB: the page cache then holds it in
    huge pages, which the runtime maps as such (5% of the decode speed)."""

    def __init__(self, file: FileIO, update: Callable[[bytes | memoryview], None]) -> None:
        self.file, self.update = file, update
        self.block, self.used = memoryview(bytearray(8 << 20)), 0

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        self.update(view)
        while len(view):
            n = min(len(view), len(self.block) - self.used)
            self.block[self.used : self.used + n] = view[:n]
            self.used, view = self.used + n, view[n:]
            if self.used == len(self.block):
                self.flush()

    def flush(self) -> None:
        """Write out what is held; a raw file may take less than asked at once."""
        left = self.block[: self.used]
        while len(left):
            left = left[self.file.write(left) or 0 :]
        self.used = 0


# ------------------------------------------------------------------ putting it in place
def _replace(new: Path, path: Path) -> None:
    """Rename `new` to `path`; with an artifact there, exchange the two in one step, then delete the old."""
    try:
        os.rename(new, path)
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchange(new, path):
            _swap(new, path)


def _swap(new: Path, path: Path) -> None:
    """Where folders cannot be exchanged in one step: between the two renames there is no artifact at
    `path`."""
    aside = new.with_name(new.name + ".old")
    os.rename(path, aside)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """renameat2(RENAME_EXCHANGE); False where the system or file system has none."""
    with contextlib.suppress(AttributeError, OSError):
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        return bool(rename(-100, os.fsencode(a), -100, os.fsencode(b), 2) == 0)
    return False
