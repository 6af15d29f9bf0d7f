"""The backend protocol that every target implements, and the records it exchanges with the compiler.

A backend states the targets it builds for and the schedules it wants for a kernel; it says whether it can
render a kernel, renders it, turns it into a function of this process, builds programs, and loads them. The
C++ and the Triton backend are registered in `registry`; this module depends on neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Protocol, overload, runtime_checkable

from numpy.typing import NDArray

from tilewright.ir.errors import TilewrightError
from tilewright.ir.plan.core import Program
from tilewright.ir.tile.core import Buffer, Kernel, Schedule
from tilewright.ir.weights.sources import WeightStore

Array = NDArray[Any]
#: called to report progress: text, done, total
Progress = Callable[[str, int, int], None]


# ------------------------------------------------------------------ kernels as schedulers see them
@dataclass(frozen=True)
class Contraction:
    """A kernel of `y[M, width] = x[M, k] @ w^T`: the facts that determine its schedules.

    `x`, `w`: the buffers it reads, whose encodings say which numeric form the lowering chose; `parts`: column
    tiles that one instance computes at the same time (the halves of a gated layer, for instance); `k`: length
    of the sums; `width`: columns of the result. The kernel's grid is `i` over M rows by `BM` and `j` over
    columns by `BN`; its loop is `k` (by `BK`), `g` over groups or `s` over superblocks.
    """

    x: Buffer
    w: Buffer
    parts: int
    k: int
    width: int


@dataclass(frozen=True)
class ExpertContraction:
    """A kernel that multiplies rows of a mixture of experts, each with the matrix of its expert, which `w`
    holds for all. `x`: the rows; `k`, `width`: length of the sums, columns of the result. The kernel's grid
    is one row at a time (`single`), or `i` over rows by `BM`, and `j` over columns by `BN`; its loop is `k`
    (by `BK`), `g` over groups or `s` over superblocks.
    """

    x: Buffer
    w: Buffer
    k: int
    width: int
    single: bool = False


@dataclass(frozen=True)
class Convolution:
    """A kernel of a convolution. `w`: its matrix, None if every channel is by itself; `across`: results along
    the last axis of space, 0 if known at run time only; `width`: outputs of one group; `weights`: how many
    there are. The kernel's grid is batch, the other axes of space and groups by one, `j` over outputs by `BN`
    and `m` over the last axis of space by `BM`; of both, only those that are names are sizes to choose.
    """

    w: Buffer | None
    across: int
    width: int
    weights: int


@dataclass(frozen=True)
class CachedAttention:
    """A kernel of attention over a cache: `single` if each block of the query-block table has one row;
    `loops`: the loops that read keys and values, one after the other, each with `slice_steps` iterations per
    slice of the context.
    """

    single: bool
    loops: tuple[str, ...]
    slice_steps: int


Work = Contraction | ExpertContraction | Convolution | CachedAttention


@dataclass(frozen=True)
class KernelUse:
    """What the lowering knows about a kernel besides its statements. `work`: its description; None if the
    statements suffice. `weights`, `caches`: names of the parameters that hold weights and caches.
    """

    work: Work | None = None
    weights: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()


def numbered(base: str, n: int) -> str:
    """The n-th value of a kind in a contraction's kernel: schedules stage values by these names."""
    return base if n == 0 else f"{base}{n}"


# ------------------------------------------------------------------ what backends return
@dataclass(frozen=True)
class Support:
    """Whether something is supported; `reason` says why not, and is empty if it is."""

    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Binary:
    """A program built for one target: the library's file, the processor features that it needs, and the
    source it came from."""

    name: str
    features: tuple[str, ...]
    library: Path
    source: str


class PendingBinaries(Sequence[Binary]):
    """Binaries that are still being built: looking at one waits for all, and raises what building them
    raised. Setting `stop` ends the work."""

    def __init__(self, made: Future[tuple[Binary, ...]], stop: Event) -> None:
        self.made, self._stop = made, stop

    @overload
    def __getitem__(self, n: int) -> Binary: ...
    @overload
    def __getitem__(self, n: slice) -> tuple[Binary, ...]: ...
    def __getitem__(self, n: int | slice) -> Binary | tuple[Binary, ...]:
        return self.made.result()[n]

    def __len__(self) -> int:
        return len(self.made.result())

    def cancel(self) -> None:
        """Begin nothing more of what is not built yet: nobody will look at it."""
        self._stop.set()

    def check(self) -> None:
        """Raise an error if building has already failed; does not wait."""
        if self.made.done():
            self.made.result()


class BuildError(RuntimeError):
    """No library could be built; the message says why and what to do."""


def support_of(render: Callable[[Kernel, str], str], kernel: Kernel, target: str) -> Support:
    """Support as determined by rendering: a kernel that can be rendered is supported; otherwise the
    renderer's error is the reason."""
    try:
        render(kernel, target)
    except TilewrightError as why:
        return Support(str(why))
    return Support()


#: runs one kernel on arrays of stored bits by parameter name, written in place, under a binding of its
#: symbols and with a number of threads
KernelFunction = Callable[[Mapping[str, Array], Mapping[str, int], int], None]


class Executable(Protocol):
    """A program that runs in this process. Sequences of language models are handled by the runtime: see
    `native.NativeProgram`."""

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Results of one graph by name, of inputs by name. bfloat16 goes in and comes out as its bits in
        uint16. Raises SessionError or RefusedError naming the input that does not fit."""


class Backend(Protocol):
    """One way to make programs run. Names of targets belong to one backend each."""

    @property
    def name(self) -> str:
        """The name under which it is registered."""

    @property
    def targets(self) -> Mapping[str, tuple[str, ...]]:
        """Names of targets, from least to best, with the processor features that each needs."""

    @property
    def compilers(self) -> tuple[str, ...]:
        """Compiler commands, of which the first that runs is used; empty: it needs none."""

    def choose(self, words: str) -> tuple[str, ...]:
        """The targets that a user's request names, from least to best; empty if a word is not a target of
        this backend."""

    def schedules(self, kernel: Kernel, use: KernelUse) -> tuple[Schedule, ...]:
        """The schedules that the backend wants for a kernel, in addition to those of its template; the first
        that fits is used. A schedule never changes a result.
        """

    def supports(self, kernel: Kernel, target: str) -> Support:
        """Whether the kernel can be rendered for the target, or why not."""

    def render(self, kernel: Kernel, target: str) -> str:
        """The kernel's source. Raises UnsupportedError where `supports` says no."""

    def source(self, program: Program, target: str) -> str:
        """All source of a program, built or not."""

    def function(self, kernel: Kernel, target: str) -> KernelFunction:
        """The kernel ready to be called in this process. Raises what rendering and building raise."""

    def prepare(self, targets: Sequence[str]) -> None:
        """Begin, in the background, what every build for these targets needs."""

    def build(
        self, program: Program, targets: Sequence[str], progress: Progress | None = None
    ) -> Sequence[Binary]:
        """A binary for each target, maybe still being built. Raises RefusedError if the backend builds none,
        and what its compiler raises."""

    def load(
        self, program: Program, weights: WeightStore, target: str, threads: int | None = None
    ) -> Executable:
        """The program in this process, with its weights: nothing is written except to the cache of compiled
        files. `threads` None: as many as the process may use."""


# ------------------------------------------------------------------ what some backends can also do
class TimedKernel(Protocol):
    """One kernel, built and loaded by itself."""

    def __call__(
        self, arrays: Mapping[str, Array], symbols: Mapping[str, int] | None = None, threads: int = 1
    ) -> None:
        """Run it once, on arrays of stored bits by parameter name, written in place."""

    def bench(
        self, sets: Sequence[Mapping[str, Array]], symbols: Mapping[str, int], threads: int, best_of: int
    ) -> float:
        """Seconds a call takes over several sets of buffers, so that caches do not hold them."""


@runtime_checkable
class Tunable(Protocol):
    """A backend whose schedules can be compared by measurement (`tilewright tune`)."""

    def matching(self, kernel: Kernel, target: str) -> tuple[Schedule, ...]:
        """Those of the kernel's schedules that may serve the target, in the order in which they are tried."""

    def predicted(self, kernel: Kernel, schedule: Schedule, target: str, rows: int) -> float:
        """What a call should cost for a number of rows, for ranking candidates only."""

    def timed(self, kernel: Kernel, target: str) -> TimedKernel:
        """The kernel ready to be measured. Raises what rendering and building raise."""
