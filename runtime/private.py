"""Loads a native library from a private copy: the bytes that were hashed are the bytes that run.

In: a path, and the hash that its bytes must have. Out: a loaded library. One copy per process serves all who
load the same bytes.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from tilewright.runtime.errors import ArtifactError
from tilewright.runtime.files import read_bytes
from tilewright.runtime.json_fields import DAMAGED

#: libraries by the hash of their bytes. They stay loaded, and the memory behind each stays open: the loader
#: tells libraries apart by name, and a name under /proc/self/fd may not come to mean another one
_LOADED: dict[str, ctypes.CDLL] = {}
_MODE = os.RTLD_LOCAL | os.RTLD_NOW


def load_private(file: Path, sha256: str = "") -> ctypes.CDLL:
    """The library in a file. ArtifactError if it cannot be read or is not what the hash says, OSError of the
    loader."""
    try:
        data = read_bytes(file)
    except OSError as e:
        raise ArtifactError(f"cannot be read ({e.strerror})", str(file), DAMAGED) from None
    found = hashlib.sha256(data).hexdigest()
    if sha256 and found != sha256:
        raise ArtifactError(f"expected SHA-256 {sha256[:12]}…, got {found[:12]}…", str(file), DAMAGED)
    if found not in _LOADED:
        _LOADED[found] = _load(data, file.name)
    return _LOADED[found]


def _load(data: bytes, name: str) -> ctypes.CDLL:
    """From memory; else from an unlinked file in a folder that allows running what lies there. The first
    failure is told."""
    first: OSError | None = None
    for way in _WAYS:
        try:
            return way(data, name)
        except OSError as e:
            first = first or e
    assert first is not None
    raise first


def _from_memory(data: bytes, name: str) -> ctypes.CDLL:
    fd = os.memfd_create(f"tilewright-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(fd, "wb", closefd=False) as f:
            f.write(data)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return ctypes.CDLL(f"/proc/self/fd/{fd}", mode=_MODE)
    except OSError:
        os.close(fd)
        raise


def _from_folder(folder: Callable[[], str]) -> Callable[[bytes, str], ctypes.CDLL]:
    def load(data: bytes, name: str) -> ctypes.CDLL:
        fd, path = tempfile.mkstemp(prefix="tilewright-", suffix=f"-{name}", dir=folder())
        try:
            with os.fdopen(fd, "wb") as f:
                f.write(data)
            return ctypes.CDLL(path, mode=_MODE)
        finally:
            os.unlink(path)

    return load


_WAYS: tuple[Callable[[bytes, str], ctypes.CDLL], ...] = (
    _from_memory,
    _from_folder(tempfile.gettempdir),
    _from_folder(lambda: "/dev/shm"),
    _from_folder(lambda: os.environ.get("XDG_RUNTIME_DIR") or os.path.expanduser("~")),
)
