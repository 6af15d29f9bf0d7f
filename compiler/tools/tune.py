"""Tuning: measures schedules of a program's contractions and chooses the fastest.

In: a lowered program, a CPU level, row counts. Out: choices, and the schedules that a tuning file holds
(`tools.tuning_file`).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from tilewright.backends.base import TimedKernel, Tunable
from tilewright.backends.registry import chosen
from tilewright.ir.errors import RefusedError, TilewrightError
from tilewright.ir.plan.core import Program
from tilewright.ir.tile.core import Condition, GridAxis, Kernel, Schedule
from tilewright.ir.tile.verify import verify_kernel
from tilewright.tools.kernel_arrays import kernel_arrays
from tilewright.tools.tuning_file import digest, tunable

#: bytes of buffers that a measurement walks through, so that every run reads memory
SPAN = 128 << 20
#: a candidate replaces the default only if it is faster by this factor
MARGIN = 1.03
#: runs of the fastest candidate interleaved with the default
PAIRS = 9
#: tile heights and widths that are tried
HEIGHTS, WIDTHS = (1, 2, 3, 4, 6, 8, 12), (16, 32, 48, 64)
#: sums side by side that are tried at the default's sizes; below 4, none is split
SUMS = (2, 4, 16)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Trial:
    """One schedule at one row count: the model's cycles per element, and measured seconds per call (None: it
    does not build)."""

    schedule: Schedule
    predicted: float
    seconds: float | None = None


@dataclass(frozen=True)
class Choice:
    """The trials of one kernel at one row count; the first is what the compiler chose by itself."""

    kernel: str
    digest: str
    rows: int
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The fastest, if it is clearly faster than the default."""
        done = [t for t in self.trials if t.seconds is not None]
        best = min(done, key=lambda t: t.seconds or 0.0, default=self.trials[0])
        base = self.trials[0]
        clear = base.seconds is None or best.seconds is not None and best.seconds * MARGIN < base.seconds
        return best if clear else base

    @property
    def gain(self) -> float:
        """Time of the default over that of the best."""
        base, best = self.trials[0].seconds, self.best.seconds
        return base / best if base and best else 1.0


def _tunable_backend(level: str) -> Tunable:
    """The backend of a target. RefusedError if its schedules cannot be measured."""
    found, _ = chosen(level)
    if not isinstance(found, Tunable):
        raise RefusedError(
            f"schedules of the {found.name} backend cannot be measured", f"target {level}", "name a CPU level"
        )
    return found


def default(kernel: Kernel, level: str, rows: int) -> Schedule:
    """What the compiler chose for a row count."""
    symbol, known = kernel.symbols[0], _tunable_backend(level).matching(kernel, level)
    return next(s for s in known if all(c.holds({symbol: rows}) for c in s.when))


def candidates(kernel: Kernel, level: str, rows: int, most: int) -> list[Trial]:
    """The default, then others by what they should cost, at most `most` in all, no two of which are the same
    code."""
    base, asked = default(kernel, level, rows), _tunable_backend(level)
    seen, out = {base}, list[Trial]()
    for s in _variants(kernel, level, base):
        if s not in seen and _legal(kernel, s):
            seen.add(s)
            out.append(Trial(s, asked.predicted(kernel, s, level, rows)))
    out.sort(key=lambda t: t.predicted)
    found: dict[str, Trial] = {}
    for trial in (Trial(base, asked.predicted(kernel, base, level, rows)), *out):
        if len(found) < most:
            found.setdefault(_text(kernel, level, trial.schedule), trial)
    return list(found.values())


def _text(kernel: Kernel, level: str, s: Schedule) -> str:
    """The kernel with this schedule alone, rendered; the schedule itself if it does not render."""
    try:
        return chosen(level)[0].render(_with(kernel, s), level)
    except TilewrightError:
        return str(s)


def _with(kernel: Kernel, s: Schedule) -> Kernel:
    return replace(kernel, schedules=(replace(s, when=()),))


def _variants(kernel: Kernel, level: str, base: Schedule) -> Iterator[Schedule]:
    sizes = dict(base.sizes)
    tall = next(str(a.step) for a in kernel.grid if a.rows)
    wide = next((a for a in kernel.grid if not a.rows and isinstance(a.step, str)), None)
    known = _tunable_backend(level).matching(kernel, level)
    stages = dict.fromkeys([base.stages, (), *(s.stages for s in known)])
    ahead = dict.fromkeys([base.prefetch, (), *(s.prefetch for s in known)])
    for sums in SUMS if "sums" in dict(base.options) else ():
        yield replace(base, when=(), options=tuple(sorted((dict(_options(base)) | {"sums": sums}).items())))
    for height in HEIGHTS:
        for width in _widths(wide) if wide is not None else (0,):
            new = sizes | {tall: height} | ({str(wide.step): width} if wide is not None else {})
            for stage in stages:
                for p in ahead:
                    yield replace(
                        base,
                        sizes=tuple(sorted(new.items())),
                        stages=stage,
                        prefetch=p,
                        when=(),
                        options=_options(base),
                    )


def _options(base: Schedule) -> tuple[tuple[str, int], ...]:
    """The options that say something of the row count; whether to prefetch is what is measured."""
    return tuple((n, v) for n, v in base.options if n != "foreseen")


def _widths(axis: GridAxis) -> list[int]:
    """Column tiles that divide the padded width."""
    panels = -(-int(axis.extent.const) // 16) if axis.extent.is_const else 1
    return [w for w in WIDTHS if panels % (w // 16) == 0]


def _legal(kernel: Kernel, s: Schedule) -> bool:
    try:
        verify_kernel(_with(kernel, s))
    except TilewrightError:
        return False
    return True


# ------------------------------------------------------------------ measuring
def tune(
    program: Program, level: str, rows: Sequence[int], *, threads: int, most: int = 12,
    seconds: float = 600.0,
    only: str = "", progress: Progress | None = None,
) -> list[Choice]:  # fmt: skip
    """Measure every contraction at every row count, within `seconds`; what time did not suffice for is left
    out."""
    began, out = time.monotonic(), []
    work = [(k, r) for k in program.kernels if tunable(k) and only in k.name for r in sorted(rows)]
    if not work:
        known = ", ".join(k.name for k in program.kernels if tunable(k)) or "none"
        raise RefusedError(
            f"no kernel to tune contains {only!r}", "tune", f"kernels that can be tuned: {known}"
        )
    for n, (kernel, r) in enumerate(work):
        if progress:
            progress(f"tune {kernel.name}, {r} rows", n, len(work))
        if time.monotonic() - began > seconds:
            break
        trials = candidates(kernel, level, r, most)
        out.append(
            Choice(kernel.name, digest(kernel), r, tuple(_measured(kernel, level, r, trials, threads)))
        )
    if progress:
        progress("tune", len(work), len(work))
    return out


def _measured(kernel: Kernel, level: str, rows: int, trials: Sequence[Trial], threads: int) -> list[Trial]:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        built = list(pool.map(lambda t: _built(kernel, level, t.schedule), trials))
    symbols = {kernel.symbols[0]: rows}
    arrays = kernel_arrays(replace(kernel, schedules=(trials[0].schedule,)), symbols, {}, 0)
    size = sum(a.nbytes for a in arrays.values())
    sets = [{n: a.copy() for n, a in arrays.items()} for _ in range(max(SPAN // size, 2))]
    best: dict[int, float] = {}
    for _ in range(3):  # rounds interleave: a busy moment then affects all
        for n, c in enumerate(built):
            if c is not None:
                best[n] = min(best.get(n, float("inf")), c.bench(sets, symbols, threads, best_of=1))
    confirmed = {0}
    while 0 in best and (n := min(best, key=lambda n: best[n])) not in confirmed:
        confirmed.add(n)
        best[n] = best[0] / _ratio(built, n, lambda c: c.bench(sets, symbols, threads, best_of=1))
    return [replace(t, seconds=best.get(n)) for n, t in enumerate(trials)]


def _ratio(built: Sequence[TimedKernel | None], n: int, bench: Callable[[TimedKernel], float]) -> float:
    """Time of the default over that of the n-th: the median over interleaved runs, since the luckiest run of
    many is not a proof.
    """
    default, other = built[0], built[n]
    assert default is not None and other is not None
    return statistics.median(bench(default) / bench(other) for _ in range(PAIRS))


def _built(kernel: Kernel, level: str, s: Schedule) -> TimedKernel | None:
    try:
        return _tunable_backend(level).timed(_with(kernel, s), level)
    except TilewrightError:
        return None


# ------------------------------------------------------------------ the file
def tuned_schedules(choices: Sequence[Choice], level: str, symbol: str) -> tuple[Schedule, ...]:
    """The winners of one kernel, each up to its row count; the last for all above. Empty: the defaults are
    best."""
    if all(c.best is c.trials[0] for c in choices):
        return ()
    rows = sorted(choices, key=lambda c: c.rows)
    made = [replace(c.best.schedule, target=level, when=(Condition(symbol, "<=", c.rows),)) for c in rows]
    made[-1] = replace(made[-1], when=())
    merged: list[Schedule] = []
    for s in made:
        if merged and replace(merged[-1], when=()) == replace(s, when=()):
            merged.pop()
        merged.append(s)
    return tuple(merged)


def by_kernel(choices: Sequence[Choice], level: str, program: Program) -> dict[str, tuple[Schedule, ...]]:
    """The winners of every kernel that was measured, by its digest."""
    found = {}
    for key in dict.fromkeys(c.digest for c in choices):
        kernel = next(k for k in program.kernels if tunable(k) and digest(k) == key)
        found[key] = tuned_schedules([c for c in choices if c.digest == key], level, kernel.symbols[0])
    return found
