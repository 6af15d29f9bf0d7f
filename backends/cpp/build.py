"""C++ sources to one shared library: system compiler, files in parallel, results cached by content.

In: source texts and a target. Out: the path of a library in the cache. A `LibraryBuild` takes its sources one
by one, so that the first are being compiled while later ones are still rendered. Independent of kernels.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tilewright.backends.base import BuildError
from tilewright.backends.cache import Cache, CacheError, content_key, full, open_cache, write_text
from tilewright.backends.cpp.isa.prelude import GUARD, common
from tilewright.backends.cpp.target import Target
from tilewright.runtime.cpu import affinity

CANDIDATES = ("g++", "clang++", "c++")
#: no contraction: the generated text states each fused multiply-add. Integers wrap. Buffers may be read as
#: any type.
FLAGS = (
    "-O3", "-std=c++17", "-fPIC", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fwrapv",
    "-fno-strict-aliasing",
    "-fno-semantic-interposition", "-pipe", "-w",
)  # fmt: skip
LINK = ("-shared", "-pthread", "-Wl,--as-needed", "-Wl,--build-id=none", "-s")
_SHOWN = 12
_OMP = re.compile(r"#\s*pragma omp|_Pragma\(\s*\"omp|#\s*include\s*<omp\.h>")
_ERROR = re.compile(r"\berror: |\bundefined reference\b")
_INCLUDE = re.compile(r'#\s*include\s*"([^"]+)"')

#: arguments that bring a precompiled header, by cache folder and key
_PREFIXES: dict[tuple[Path, str], tuple[str, ...]] = {}
_PREFIX_LOCK = threading.Lock()


@dataclass(frozen=True)
class Compiler:
    """`command` with its leading arguments, and the first line of `--version`."""

    command: tuple[str, ...]
    version: str


def find_compiler() -> Compiler:
    """$CXX, else the first of g++, clang++, c++ that runs. Raises BuildError naming what to install."""
    own = os.environ.get("CXX")
    for words in [shlex.split(own)] if own else [[c] for c in CANDIDATES]:
        found = shutil.which(words[0])
        if found:
            return Compiler((found, *words[1:]), _version(found, tuple(words[1:])))
    tried = f"$CXX ({own})" if own else ", ".join(CANDIDATES)
    raise BuildError(
        f"no C++ compiler found (tried {tried}). Install one (Debian, Ubuntu: apt install g++; Fedora: dnf "
        "install gcc-c++; "
        "Alpine: apk add g++), or set CXX to its path"
    )


@cache
def _version(path: str, words: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(
            [path, *words, "--version"], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as e:
        raise BuildError(f"{path} --version does not run ({e}); set CXX to a working C++17 compiler") from e
    return done.stdout.splitlines()[0] if done.stdout else ""


def native_headers() -> Path:
    """The folder of the runtime's C++ headers."""
    spec = importlib.util.find_spec("tilewright.runtime")
    if spec is None or spec.origin is None:
        raise BuildError(
            "tilewright.runtime is not installed, so its headers cannot be found; install tilewright again"
        )
    return Path(spec.origin).parent / "native"


def build_library(source: str | Sequence[str], target: Target, *, name: str, jobs: int | None = None) -> Path:
    """One shared library from one or more sources, each compiled with the target's flags; files that use
    OpenMP get it.

    Raises BuildError (no compiler, or the compiler's first errors with the place of the source) and
    CacheError."""
    with LibraryBuild(target, name, jobs) as build:
        for text in [source] if isinstance(source, str) else source:
            build.add(text)
        return build.finish()


class LibraryBuild:
    """One library under construction. `with LibraryBuild(...) as build: build.add(source) …; path =
    build.finish()`.

    Raises BuildError without a compiler; `finish` raises what `build_library` does, and CancelledError if
    `stop` was set, after which no source is compiled any more."""

    def __init__(
        self, target: Target, name: str, jobs: int | None = None, stop: threading.Event | None = None
    ) -> None:
        self._stop = stop or threading.Event()
        self._build = _Build(find_compiler(), open_cache(), target, name)
        self._pool = ThreadPoolExecutor(jobs or len(affinity()), "tilewright-cc")
        self._objects: list[Future[Path]] = []
        self._openmp = False

    def __enter__(self) -> LibraryBuild:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, source: str, *more: str) -> None:
        """Begin to compile one more source, with extra flags, which come after the usual ones and before
        those of the environment."""
        self._openmp = self._openmp or uses_openmp(source)
        self._objects.append(self._pool.submit(self._object, source, more))

    def check(self) -> None:
        """Raise CancelledError if the build was stopped."""
        if self._stop.is_set():
            raise CancelledError("the library is not needed any more")

    def _object(self, source: str, more: Sequence[str]) -> Path:
        self.check()
        return self._build.object(source, more)

    def finish(self) -> Path:
        """Wait for the objects, in the order in which they were added, and link them."""
        return self._build.link([o.result() for o in self._objects], self._openmp)


def prepare(target: Target) -> None:
    """Make the precompiled header of a level, so that it is ready for the first kernel. Errors are ignored:
    kernels compile without it, and the build itself reports what is wrong with the compiler or the cache."""
    with contextlib.suppress(BuildError, CacheError, OSError):
        _Build(find_compiler(), open_cache(), target, target.name).prefix()


def added_flags() -> tuple[str, ...]:
    """The flags in $TILEWRIGHT_CXXFLAGS, which come last: `-g -Og` to step through a kernel in a debugger."""
    return tuple(shlex.split(os.environ.get("TILEWRIGHT_CXXFLAGS", "")))


def uses_openmp(source: str) -> bool:
    """Whether the source, or a header of the runtime that it includes, uses OpenMP."""
    return any(bool(_OMP.search(text)) for text in (source, *headers_of(source).values()))


def headers_of(source: str) -> dict[str, str]:
    """The runtime's headers that a source includes, directly or indirectly: text by name."""
    found: dict[str, str] = {}
    work = _INCLUDE.findall(source)
    while work:
        name = work.pop()
        path = native_headers() / name
        if name not in found and path.is_file():
            found[name] = path.read_text("utf-8")
            work += _INCLUDE.findall(found[name])
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class _Build:
    compiler: Compiler
    cache: Cache
    target: Target
    name: str

    def flags(self, openmp: bool, more: Sequence[str] = ()) -> tuple[str, ...]:
        return (*FLAGS, *more, *self.target.flags, *(("-fopenmp",) if openmp else ()), *added_flags())

    def object(self, source: str, more: Sequence[str] = ()) -> Path:
        openmp = uses_openmp(source)
        flags = self.flags(openmp, more)
        compiler = (*self.compiler.command, self.compiler.version)
        key = content_key(source, " ".join(flags), *compiler, *headers_of(source).values())

        def make(path: Path) -> None:
            text = path.with_suffix(".cpp")
            text.write_text(source, "utf-8")
            before = self.prefix(openmp) if GUARD in source else ()
            self._run(
                [*flags, *before, f"-I{native_headers()}", "-c", str(text), "-o", str(path)], source, key
            )

        return self.cache.entry("objects", key, ".o", make)

    def prefix(self, openmp: bool = False) -> tuple[str, ...]:
        """Arguments that put the level's precompiled header before a source: reading the intrinsics takes the
        compiler longer than most kernels do. Sources contain the same text with an include guard, so that
        they compile to the same without the header. Empty for clang, which needs precompiled headers in
        another form, and where the header cannot be made."""
        if "clang" in self.compiler.version:
            return ()
        text, flags = common(self.target), self.flags(openmp)
        key = content_key(text, " ".join(flags), *self.compiler.command, self.compiler.version)
        with _PREFIX_LOCK:  # the digest of a header is checked once per process
            if (self.cache.root, key) not in _PREFIXES:
                _PREFIXES[self.cache.root, key] = self._header(text, flags, key)
            return _PREFIXES[self.cache.root, key]

    def _header(self, text: str, flags: Sequence[str], key: str) -> tuple[str, ...]:
        header = self.cache.entry("headers", key, ".h", lambda path: write_text(path, text))
        try:
            self.cache.entry(
                "headers", key, ".h.gch",
                lambda path: self._run([*flags, "-x", "c++-header", str(header), "-o", str(path)], None, key),
            )  # fmt: skip
        except BuildError:
            return ()
        return ("-include", str(header))

    def link(self, objects: Sequence[Path], openmp: bool) -> Path:
        flags = (*LINK, *self.flags(openmp))
        key = content_key(" ".join(flags), self.compiler.version, self.name, *[o.stem for o in objects])

        def make(path: Path) -> None:
            self._run([*map(str, objects), *flags, "-o", str(path)], None, key)

        return self.cache.entry("libraries", key, f"-{self.name}.so", make)

    def _run(self, arguments: Sequence[str], source: str | None, key: str) -> None:
        command = [*self.compiler.command, *arguments]
        env = {**os.environ, "LC_ALL": "C", "TMPDIR": str(Path(arguments[-1]).parent)}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=env, check=False)
        if done.returncode == 0:
            return
        if "No space left on device" in done.stderr:
            raise full(self.cache.root)
        raise BuildError(self._explain(command, done.stderr, source, key))

    def _explain(self, command: Sequence[str], stderr: str, source: str | None, key: str) -> str:
        lines = stderr.splitlines()
        if any("omp.h" in x or "fopenmp" in x or "lgomp" in x or "lomp" in x for x in lines):
            return (
                f"{self.compiler.version} cannot build OpenMP code: {lines[0] if lines else ''}. Install "
                "its OpenMP library (Debian, Ubuntu: apt install g++ libgomp1, for clang libomp-dev), or set "
                "CXX to a compiler that has one"
            )
        errors = "\n".join(
            [x for x in lines if _ERROR.search(x)][:_SHOWN]
            or lines[:_SHOWN]
            or ["(the compiler printed nothing)"]
        )
        shown = " ".join(shlex.join(command).split(" -I")[0].split())
        text = (
            f"{self.compiler.version} failed on {self.name} for {self.target.name}:\n{errors}\nflags: {shown}"
        )
        if source is None:
            return text
        kept = self._keep(source, key)
        return re.sub(rf"\S*{key}\.cpp", str(kept), text) + f"\nsource kept: {kept}"

    def _keep(self, source: str, key: str) -> Path:
        folder = self.cache.root / "failed"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}-{key[:12]}.cpp"
        path.write_text(source, "utf-8")
        return path
