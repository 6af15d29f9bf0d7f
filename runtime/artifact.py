"""Opens `model.tw`: checks manifest, sizes and hashes, and chooses a level; executes nothing.

In: a path. Out: an `Artifact` whose every file but the weights has the stated bytes (`verify` reads those
too). Independent of what the library does.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tilewright.runtime.cpu import LEVEL_FEATURES
from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.files import open_regular, read_bytes, read_text
from tilewright.runtime.json_fields import DAMAGED
from tilewright.runtime.manifest import (
    LARGEST,
    MAGIC,
    MANIFEST,
    WEIGHTS,
    LevelEntry,
    Manifest,
    parse_manifest,
)

#: files that are read whole (tokenizer, texts, libraries) may not be larger than this
LARGEST_FILE = 2 << 30


@dataclass(frozen=True)
class Artifact:
    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        return self.path / name

    def text(self, name: str) -> str | None:
        """A text file of the artifact, or None if it has none of that name."""
        if name not in self.manifest.files:
            return None
        try:
            return read_text(self.file(name))
        except OSError as e:
            raise ArtifactError(
                f"cannot be read as text ({e.strerror})", str(self.file(name)), DAMAGED
            ) from None


def read_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Read and check the manifest only."""
    root = Path(os.path.abspath(path))  # files are read later too, wherever the process has gone by then
    where = str(root / MANIFEST)
    if not root.is_dir():
        what = "is a file, not an artifact folder" if root.exists() else "does not exist"
        raise ArtifactError(
            what, str(root), "pass the folder that `tilewright compile DIR -o model.tw` wrote"
        )
    try:
        if (root / MANIFEST).stat().st_size > LARGEST:
            raise ArtifactError(f"larger than {LARGEST} bytes", where, DAMAGED)
        text = read_bytes(root / MANIFEST)
    except OSError as e:
        hint = f"{root} is not an artifact; create one with `tilewright compile DIR -o model.tw`"
        raise ArtifactError(f"cannot be read ({e.strerror})", where, hint) from None
    manifest = parse_manifest(text, where)
    _check_references(manifest, where)
    return Artifact(root, manifest)


def open_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Read the manifest, then check every file's size, and the hash of every file but the weights."""
    artifact = read_artifact(path)
    for name in artifact.manifest.files:
        _check_file(artifact, name, hashed=name != WEIGHTS)
    _check_header(artifact)
    return artifact


def verify_artifact(path: str | os.PathLike[str]) -> Artifact:
    """`open_artifact`, and the hash of the weights too: reads every byte."""
    artifact = open_artifact(path)
    _check_file(artifact, WEIGHTS, hashed=True)
    return artifact


def _check_references(m: Manifest, where: str) -> None:
    """Files that other fields speak of are listed, and their sizes agree."""
    for name in (WEIGHTS, *(n for v in m.levels for n in (v.library, v.source))):
        if name not in m.files:
            raise ArtifactError(f"files: {name} is missing", where, DAMAGED)
    if m.files[WEIGHTS].bytes != m.weights_bytes:
        raise ArtifactError(
            f"weights_bytes is {m.weights_bytes}, but {WEIGHTS} has {m.files[WEIGHTS].bytes}", where, DAMAGED
        )


def _check_file(a: Artifact, name: str, hashed: bool) -> None:
    path, entry = a.file(name), a.manifest.files[name]
    try:
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode):
            raise ArtifactError("expected a regular file", str(path), DAMAGED)
        if info.st_size != entry.bytes:
            raise ArtifactError(f"expected {entry.bytes} bytes, got {info.st_size}", str(path), DAMAGED)
        if not hashed:
            return
        if name != WEIGHTS and entry.bytes > LARGEST_FILE:
            raise ArtifactError(f"larger than {LARGEST_FILE} bytes", str(path), DAMAGED)
        with open_regular(path) as f:
            got = hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise ArtifactError(f"cannot be read ({e.strerror})", str(path), DAMAGED) from None
    if got != entry.sha256:
        raise ArtifactError(f"expected SHA-256 {entry.sha256[:12]}…, got {got[:12]}…", str(path), DAMAGED)


def _check_header(a: Artifact) -> None:
    """The first bytes of the weights name their size and the compilation they belong to."""
    path = a.file(WEIGHTS)
    try:
        with open_regular(path) as f:
            head = f.read(48)
    except OSError as e:
        raise ArtifactError(f"cannot be read ({e.strerror})", str(path), DAMAGED) from None
    if head != MAGIC + a.manifest.weights_bytes.to_bytes(8, "little") + a.manifest.id.encode():
        raise ArtifactError("the header does not match the manifest", str(path), DAMAGED)


def choose_level(a: Artifact, have: Collection[str], wanted: str | None = None) -> LevelEntry:
    """The level this CPU can run that needs the most features; or the one `wanted`. Names what is missing
    otherwise."""
    levels = a.manifest.levels
    names = ", ".join(v.name for v in levels)
    if wanted is not None:
        levels = tuple(v for v in levels if v.name == wanted)
        if not levels:
            raise ArtifactError(
                f"has no level {wanted!r}; it has {names}", str(a.path), f"compile with --target {wanted}"
            )
    needs = {v.name: {*v.features, *LEVEL_FEATURES.get(v.name, ())} for v in levels}
    fit = [v for v in levels if needs[v.name] <= set(have)]
    if fit:
        return max(fit, key=lambda v: len(needs[v.name]))
    if not levels:
        raise ArtifactError("contains no native library", str(a.path), "compile it again")
    lacking: list[list[str]] = [sorted(n - set(have)) for n in needs.values()]
    fewest: list[str] = min(lacking, key=len)
    hint = "compile with --target native on this machine, or --target baseline for any"
    raise ArtifactError(f"made for {names}; this CPU lacks {', '.join(fewest)}", str(a.path), hint)
