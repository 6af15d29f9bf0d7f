"""Shared by all tests: paths of the repository and the embedded model, a cache, and the choice of slow tests.

`--slow all` (the default) runs every test, `none` leaves the slow ones out, `sample` runs one slice of them.
The slices rotate with TW_SLOW_SEED (by default the day of the year), so consecutive days together run every
slow test. A test's parameter `level` names an instruction set: those between the lowest and this machine's
own make a test slow. `all` also compiles every kernel with the flags that users get. The other two do so for
tests marked `shipped_flags`, at this machine's own level, and take `-Og` for the rest, which halves the
compiler's time and keeps the arithmetic: the generated text itself says which multiplications and additions
are fused.
"""

from __future__ import annotations

import datetime
import gc
import hashlib
import os
from pathlib import Path

import pytest

from tilewright.backends.cpp.levels import runnable
from tilewright.backends.cpp.target import Target
from tilewright.runtime.cpu import available_levels

ROOT = Path(__file__).resolve().parent.parent
SLICES = 24
#: after the compiler's own flags, for tests that ask for right results and not for speed
QUICK_FLAGS = "-Og"

#: instruction sets below this machine's own, and those of them above the lowest
LOWER = available_levels()[:0:-1]
MIDDLE = LOWER[1:]

# Nothing that a user's machine holds may decide a test: compiled kernels go to a cache inside the tree, and
# no hub is asked.
os.environ["XDG_CACHE_HOME"] = str(ROOT / "build" / "cache")
os.environ["HF_HUB_OFFLINE"] = "1"
# Sessions start every run with NaN in the arena, the caches and the results: what a kernel leaves unwritten
# shows.
os.environ["TW_POISON"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", choices=("none", "sample", "all"), default="all", help="which of the slow tests to run"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Set before workers start, so that all of them pick the same tests even across midnight.
    os.environ.setdefault("TW_SLOW_SEED", str(datetime.datetime.now(datetime.UTC).timetuple().tm_yday))


def pytest_report_header(config: pytest.Config) -> str:
    return f"slow tests: {config.getoption('--slow')}, TW_SLOW_SEED={os.environ['TW_SLOW_SEED']}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--slow") == "sample":
        terminalreporter.write_line(
            f"slow tests: slice {_slice()} of {SLICES}; to repeat it: "
            f"TW_SLOW_SEED={os.environ['TW_SLOW_SEED']} make test"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("--slow")
    if wanted == "all":
        return
    slow = sorted((i for i in items if i.get_closest_marker("slow") or _level(i) in MIDDLE), key=_shuffle)
    kept = set(slow[_slice() :: SLICES]) if wanted == "sample" else set()
    dropped = [i for i in slow if i not in kept]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [i for i in items if i not in set(dropped)]


def pytest_collection_finish() -> None:
    """What was imported stays until the end: the garbage collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    own = item.get_closest_marker("shipped_flags") and _level(item) not in LOWER
    shipped = item.config.getoption("--slow") == "all" or own
    os.environ["TILEWRIGHT_CXXFLAGS"] = "" if shipped else QUICK_FLAGS


def _level(item: pytest.Item) -> object:
    """The value of the parameter `level`, if a test has one."""
    call = getattr(item, "callspec", None)
    return None if call is None else call.params.get("level")


def _slice() -> int:
    return int(os.environ["TW_SLOW_SEED"]) % SLICES


def _shuffle(item: pytest.Item) -> str:
    return hashlib.sha256(item.nodeid.encode()).hexdigest()


@pytest.fixture(scope="session")
def levels(request: pytest.FixtureRequest) -> tuple[Target, ...]:
    """Instruction sets to compile for: all that this machine has with `--slow all`, else its own and one of
    the lower ones, which take turns with TW_SLOW_SEED."""
    every = tuple(runnable())
    if request.config.getoption("--slow") == "all" or len(every) < 2:
        return every
    return (every[int(os.environ["TW_SLOW_SEED"]) % (len(every) - 1)], every[-1])


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    """The embedded model: a trained Llama of 5.5 million parameters."""
    return ROOT / "examples" / "models" / "tiny-llama"
