"""The build driver: cache hits, repair of damaged entries, races, kills, and compiler errors as messages."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from tilewright.backends import cache
from tilewright.backends.cache import Cache, CacheError, CacheWarning
from tilewright.backends.cpp import build
from tilewright.backends.cpp.build import BuildError, build_library, find_compiler, headers_of, uses_openmp
from tilewright.backends.cpp.isa import TARGETS
from tilewright.backends.cpp.isa.prelude import prelude

#: the generated code itself is what is tested here
pytestmark = pytest.mark.shipped_flags

BASE = TARGETS["baseline"]
ONE = 'extern "C" int one() { return 1; }\n'
TEAM = (
    '#include <omp.h>\nextern "C" int team() { int n = 0;\n#pragma omp parallel num_threads(2) '
    "reduction(+ : n)\nn += 1;\n"
)
TEAM += "return n; }\n"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache"


def test_several_sources_make_one_library_and_openmp_comes_where_it_is_used() -> None:
    path = build_library([ONE, TEAM], BASE, name="pair", jobs=2)
    library = ctypes.CDLL(str(path))
    assert (library.one(), library.team()) == (1, 2)
    assert (uses_openmp(ONE), uses_openmp(TEAM), uses_openmp('#include "tw_limits.h"')) == (
        False,
        True,
        False,
    )


def test_an_entry_is_found_again_and_depends_on_source_flags_and_name(root: Path) -> None:
    first = build_library(ONE, BASE, name="a")
    stamp = first.stat().st_mtime_ns
    assert build_library(ONE, BASE, name="a") == first and first.stat().st_mtime_ns == stamp
    others = {
        build_library(ONE + "\n", BASE, name="a"),
        build_library(ONE, TARGETS["avx2"], name="a"),
        build_library(ONE, BASE, name="b"),
    }
    assert len(others | {first}) == 4
    assert not list((root / "scratch").iterdir())


def test_flags_of_the_environment_follow_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for added in ("-DN=1", "-DN=1 -UN -DN=2"):
        monkeypatch.setenv("TILEWRIGHT_CXXFLAGS", added)
        path = build_library('extern "C" int n() { return N; }\n', BASE, name="n")
        found.append(ctypes.CDLL(str(path)).n())
    assert found == [1, 2]


def test_a_source_may_have_flags_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for own, added in (("-DN=1", ""), ("-DN=2", ""), ("-DN=2", "-UN -DN=3")):
        monkeypatch.setenv("TILEWRIGHT_CXXFLAGS", added)
        with build.LibraryBuild(BASE, "own") as making:
            making.add('extern "C" int n() { return N; }\n', own)
            found.append(ctypes.CDLL(str(making.finish())).n())
    assert found == [1, 2, 3]


def test_a_header_of_the_runtime_is_part_of_the_key() -> None:
    assert list(headers_of('#include "tw_limits.h"\n#include "absent.h"\n')) == ["tw_limits.h"]


@pytest.mark.parametrize("damage", [b"", b"not a library", None])
def test_a_damaged_entry_is_made_again(damage: bytes | None) -> None:
    path = build_library(ONE, BASE, name="a")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert build_library(ONE, BASE, name="a") == path and path.read_bytes() == whole


_CHILD = """
import sys
import threading
from tilewright.backends.cpp.build import build_library
from tilewright.backends.cpp.isa import TARGETS
print(build_library(sys.argv[1], TARGETS['baseline'], name='race'))
"""
#: takes the compiler a second or so
_SLOW = """
template <int N> struct S { static int f(int x) { return S<N - 1>::f(x * 3 + N); } };
template <> struct S<0> { static int f(int x) { return x; } };
extern "C" int slow(int x) { return S<850>::f(x); }
"""


def test_two_processes_build_the_same_library_at_once() -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", _CHILD, _SLOW], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    paths = {c.communicate(timeout=60)[0].strip() for c in children}
    assert len(paths) == 1 and all(c.returncode == 0 for c in children)
    assert ctypes.CDLL(paths.pop()).slow


def test_a_killed_build_leaves_no_entry_and_no_lock(root: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, _SLOW], stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.time() + 30
    while not list(root.glob("scratch/*/*.cpp")) and time.time() < deadline:
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert not list(root.glob("objects/*.o")) and not list(root.glob("libraries/*.so"))
    assert ctypes.CDLL(str(build_library(_SLOW, BASE, name="race"))).slow


def test_stale_scratch_folders_are_swept(root: Path) -> None:
    old = root / "scratch" / "old"
    old.mkdir(parents=True)
    os.utime(old, (1, 1))
    build_library(ONE, BASE, name="a")
    assert not old.exists()


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BuildError) as e:
        build_library(ONE, BASE, name="a")
    assert str(e.value) == (
        "no C++ compiler found (tried g++, clang++, c++). Install one (Debian, Ubuntu: apt install g++; "
        "Fedora: dnf install gcc-c++; Alpine: apk add g++), or set CXX to its path"
    )
    monkeypatch.setenv("CXX", "icpx -v")
    with pytest.raises(BuildError, match=re.escape("no C++ compiler found (tried $CXX (icpx -v)).")):
        find_compiler()


def test_a_compiler_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(
        BuildError, match=r"broken --version does not run .*; set CXX to a working C\+\+17 compiler"
    ):
        build_library(ONE, BASE, name="a")


def test_errors_of_the_compiler_name_the_kept_source(root: Path) -> None:
    with pytest.raises(BuildError) as e:
        build_library("int f() { return missing; }\n", BASE, name="bad")
    lines = str(e.value).splitlines()
    kept = next((root / "failed").iterdir())
    assert lines[0] == f"{find_compiler().version} failed on bad for baseline:"
    assert lines[1].startswith(f"{kept}:1:18: error: ") and "missing" in lines[1]
    assert lines[2].startswith("flags: ") and lines[3] == f"source kept: {kept}"
    assert kept.read_text() == "int f() { return missing; }\n"


def test_a_compiler_without_openmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "plain"
    fake.write_text(
        "#!/bin/sh\nif [ $1 = --version ]; then echo plain 1.0; else echo 'fatal error: omp.h: No such "
        "file' >&2; exit 1; fi\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(BuildError) as e:
        build_library(TEAM, BASE, name="a")
    assert str(e.value) == (
        "plain 1.0 cannot build OpenMP code: fatal error: omp.h: No such file. Install its OpenMP library "
        "(Debian, Ubuntu: apt install g++ libgomp1, for clang libomp-dev), or set CXX to a compiler that "
        "has one"
    )


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "cache"
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(folder))
    with pytest.warns(CacheWarning) as told:
        library = build_library(ONE, BASE, name="a")
    assert len(told) == 1 and str(told[0].message) == (
        f"cache folder {folder} cannot be written (Not a directory): using a temporary folder, and nothing "
        "is cached; "
        "set TILEWRIGHT_CACHE to a writable folder"
    )
    assert library.is_file() and library == build_library(ONE, BASE, name="a")


def test_what_a_cache_that_is_only_read_holds_is_used(root: Path, tmp_path: Path) -> None:
    Cache(root).entry("kind", "key", ".txt", lambda p: cache.write_text(p, "old"))
    over = Cache(tmp_path / "over", root)
    assert over.read("kind", "key", ".txt") == b"old"
    assert over.entry("kind", "key", ".txt", lambda p: cache.write_text(p, "new")).read_text() == "old"
    assert (
        over.text("kind", "other", ".txt", lambda: "new") == "new"
        and not (root / "kind" / "other.txt").exists()
    )


def test_a_disk_that_fills_while_an_entry_is_made(root: Path) -> None:
    def fills(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CacheError, match=f"^no space left for the cache folder {root}; free some space"):
        Cache(root).entry("kind", "key", ".txt", fills)


def test_a_full_disk(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = (
        f"no space left for the cache folder {root}; free some space or set TILEWRIGHT_CACHE to a "
        "folder on another disk"
    )

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m, pytest.raises(CacheError) as e:
        m.setattr(cache.os, "replace", refuse)
        build_library(ONE, BASE, name="a")
    assert str(e.value) == expected
    fake = tmp_path / "plain"
    fake.write_text(
        "#!/bin/sh\nif [ $1 = --version ]; then echo plain 1.0; else echo 'cc1plus: No space left on "
        "device' >&2; exit 1; fi\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(CacheError) as e:
        build_library(ONE, BASE, name="a")
    assert str(e.value) == expected


def test_the_cache_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TILEWRIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / "tilewright"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_root() == Path.home() / ".cache" / "tilewright"


def test_flags_never_fit_the_building_machine() -> None:
    """An artifact built here must run on any machine of its level."""
    for target in TARGETS.values():
        assert not [f for f in (*build.FLAGS, *target.flags) if "native" in f or "fast-math" in f]


def test_the_precompiled_header_changes_the_time_and_nothing_else(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = prelude(BASE, "t_sqrt") + 'extern "C" float one(void) { return t_sqrt(1.0f); }\n'
    build.prepare(BASE)
    (header,) = (root / "headers").glob("*.h.gch")
    before = header.stat().st_mtime_ns
    path = build_library(source, BASE, name="a")
    assert ctypes.CDLL(str(path)).one and header.stat().st_mtime_ns == before
    whole = path.read_bytes()
    monkeypatch.setenv("TILEWRIGHT_CACHE", str(root.parent / "other"))
    monkeypatch.setattr(build._Build, "prefix", lambda *_: ())
    assert build_library(source, BASE, name="a").read_bytes() == whole


def test_a_header_that_cannot_be_made_stops_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "g++"
    refuse = 'case "$*" in *c++-header*) echo "error: no headers today" >&2; exit 1;; esac'
    compiler.write_text(f'#!/bin/sh\n{refuse}\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    build.prepare(BASE)
    source = prelude(BASE, "") + 'extern "C" int one(void) { return 1; }\n'
    assert ctypes.CDLL(str(build_library(source, BASE, name="a"))).one() == 1


def test_sources_are_compiled_as_they_come_and_linked_in_their_order() -> None:
    with build.LibraryBuild(BASE, "pair") as making:
        making.add('extern "C" int two() { return 2; }\n')
        making.add(ONE)
        library = ctypes.CDLL(str(making.finish()))
    assert (library.one(), library.two()) == (1, 2)
    with pytest.raises(BuildError, match="missing"), build.LibraryBuild(BASE, "bad") as making:
        making.add("int f() { return missing; }\n")
        making.finish()


def test_a_stopped_build_compiles_nothing_more(root: Path) -> None:
    stop = threading.Event()
    with build.LibraryBuild(BASE, "stopped", stop=stop) as library:
        library.check()
        stop.set()
        library.add(ONE)
        with pytest.raises(CancelledError):
            library.finish()
        with pytest.raises(CancelledError):
            library.check()
    assert not list(root.rglob("*.o"))
