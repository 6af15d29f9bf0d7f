"""The cache of compiled files, keyed by content: entries appear atomically and are checked when read.

In: a key and a function that makes a file. Out: the entry's path. Safe between processes: a lock per entry,
atomic renames, and a digest beside each file, so that a damaged entry is compiled again. Independent of
compilers.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tilewright.ir.errors import TilewrightWarning

_STALE_S = 24 * 3600.0
_STARTED = time.time()


class CacheWarning(TilewrightWarning):
    """The cache folder cannot be written, and a temporary one is used."""


class CacheError(RuntimeError):
    """The cache folder cannot be used; the message names it and the variable that moves it."""


def cache_root() -> Path:
    """$TILEWRIGHT_CACHE, else the platform's cache folder."""
    own = os.environ.get("TILEWRIGHT_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tilewright"


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Raises OSError as CacheError, with a message for users."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full(root) from e
        raise CacheError(
            f"cache folder {root} cannot be written ({e.strerror or e}); make it writable or set "
            "TILEWRIGHT_CACHE "
            "to a folder that is"
        ) from e


def full(root: Path) -> CacheError:
    """The error for a full disk."""
    return CacheError(
        f"no space left for the cache folder {root}; free some space or set TILEWRIGHT_CACHE to a folder "
        "on another disk"
    )


def open_cache() -> Cache:
    """The cache. If its folder cannot be written, a temporary one of this process is put over it, with one
    CacheWarning."""
    root = cache_root()
    other = _instead_of(root)
    return Cache(root) if other is None else Cache(other, root)


@cache
def _instead_of(root: Path) -> Path | None:
    """A temporary folder if this one cannot be written. A full disk is not handled here, but reported when
    something is written."""
    try:
        (root / "scratch").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root / "scratch"):
            return None
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            return None
        why = (
            f"cache folder {root} cannot be written ({e.strerror or e}): using a temporary folder, and "
            "nothing is cached"
        )
    warnings.warn(CacheWarning(f"{why}; set TILEWRIGHT_CACHE to a writable folder"), stacklevel=2)
    folder = tempfile.mkdtemp(prefix="tilewright-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@dataclass(frozen=True)
class Cache:
    """Entries live in `root/KIND/KEY[SUFFIX]`; those of `below`, a folder that is only read, are found
    too."""

    root: Path
    below: Path | None = None

    def entry(self, kind: str, key: str, suffix: str, make: Callable[[Path], None]) -> Path:
        """The file for this key; `make(temporary path)` makes it if it is missing or damaged; what it raises
        is passed on."""
        path = self._path(kind, key, suffix)
        for found in self._places(kind, key, suffix):
            if intact(found):
                return found
        with _explained(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = self._lock(key)
        try:
            if not intact(path):
                self._fill(path, make)
        finally:
            os.close(lock)
        return path

    def read(self, kind: str, key: str, suffix: str) -> bytes | None:
        """What the entry holds; None if it is missing or damaged."""
        for path in self._places(kind, key, suffix):
            with contextlib.suppress(OSError, UnicodeDecodeError):
                data = path.read_bytes()
                if _side(path).read_text("utf-8") == _sum(data):
                    return data
        return None

    def text(self, kind: str, key: str, suffix: str, make: Callable[[], str]) -> str:
        """The text of an entry, made if it is missing or damaged."""
        data = self.read(kind, key, suffix)
        if data is not None:
            return data.decode()
        text = make()
        self.entry(kind, key, suffix, lambda path: write_text(path, text))
        return text

    def _path(self, kind: str, key: str, suffix: str) -> Path:
        return self.root / kind / f"{key}{suffix}"

    def _places(self, kind: str, key: str, suffix: str) -> list[Path]:
        return [root / kind / f"{key}{suffix}" for root in (self.root, self.below) if root]

    def _lock(self, key: str) -> int:
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / key[:32], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd

    def _fill(self, path: Path, make: Callable[[Path], None]) -> None:
        with self.scratch() as folder:
            made = folder / path.name
            try:
                make(made)
            except OSError as e:
                if e.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise full(self.root) from e
                raise
            with _explained(self.root):
                side = folder / "digest"
                side.write_text(digest(made), "utf-8")
                with open(made, "rb") as f:
                    os.fsync(f.fileno())
                os.replace(side, _side(path))
                os.replace(made, path)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private folder on the cache's disk, removed afterwards. Folders left by killed processes are
        removed after a day."""
        with _explained(self.root):
            base = self.root / "scratch"
            base.mkdir(parents=True, exist_ok=True)
            _sweep(base)
            folder = Path(tempfile.mkdtemp(dir=base))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")


def digest(path: Path) -> str:
    return _sum(path.read_bytes())


def _sum(data: bytes) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


def intact(path: Path) -> bool:
    """Whether the entry exists and is what was written."""
    try:
        return _side(path).read_text("utf-8") == digest(path)
    except (OSError, UnicodeDecodeError):
        return False


def _side(path: Path) -> Path:
    return path.with_name(path.name + ".sum")


def _sweep(base: Path) -> None:
    limit = time.time() - _STALE_S
    for p in base.iterdir():
        try:
            old = p.stat().st_mtime < limit
        except OSError:
            continue
        if old:
            shutil.rmtree(p, ignore_errors=True)


def content_key(*parts: str) -> str:
    """A name for these texts together."""
    h = hashlib.sha256()
    for p in parts:
        data = p.encode()
        h.update(len(data).to_bytes(8, "little") + data)
    return h.hexdigest()[:40]


@cache
def code_digest(*packages: str) -> str:
    """A name for the Python sources and grammars of some packages, for cache entries that are valid only as
    long as these do not change. If sources were edited while this process runs, they may differ from the code
    it runs: the name is then a unique one."""
    h = hashlib.sha256()
    for package in packages:
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            for p in sorted(f for f in Path(folder).rglob("*") if f.suffix in (".py", ".lark")):
                data = p.read_bytes() + (os.urandom(16) if p.stat().st_mtime > _STARTED else b"")
                h.update(f"{p.relative_to(folder)} {len(data)}\n".encode() + data)
    return h.hexdigest()
