"""Checks the schedules of a kernel: rules 11 and 12 of `tile.verify`, without stages (`tile.stages`)."""

from __future__ import annotations

from tilewright.ir.affine import Affine
from tilewright.ir.tile.core import At, For, Let, Load, Schedule, Span, Store, walk
from tilewright.ir.tile.scope import Scope, used_sizes
from tilewright.ir.tile.stages import check_stages


def check_schedule(scope: Scope, s: Schedule) -> None:
    """Raise VerifyError for the first entry that names something the kernel does not have."""
    bound, used = [n for n, _ in s.sizes], used_sizes(scope.kernel)
    where = f"schedule {s.target}"
    missing, extra = sorted(used - set(bound)), sorted(set(bound) - _all_names(scope))
    if missing or extra or len(set(bound)) != len(bound) or any(n < 1 for _, n in s.sizes):
        why = (
            f"does not bind {', '.join(missing)}"
            if missing
            else f"binds {', '.join(extra)}, which the kernel does not use"
            if extra
            else "binds a size twice or below 1"
        )
        raise scope.fail(11, f"{where} {why}")
    if s.order and sorted(s.order) != sorted(scope.axes):
        raise scope.fail(
            12,
            f"{where}: order {' '.join(s.order)} is not a permutation of the axes {' '.join(scope.axes)}",
        )
    if s.threads and not set(s.threads.split()) <= set(scope.axes):
        raise scope.fail(12, f"{where}: threads {s.threads}, expected one of the axes {' '.join(scope.axes)}")
    for value, axis in s.stages:
        if value not in scope.defined or axis not in scope.axes:
            raise scope.fail(12, f"{where}: stage %{value} at {axis} needs an existing value and a grid axis")
    check_stages(scope.kernel, s)
    for loop, n in s.prefetch:
        if loop not in {*scope.loop_vars, "copy"} or n < 1:
            raise scope.fail(
                12, f"{where}: prefetch {loop} {n} needs a loop (or copy) and a distance of at least 1"
            )
    for c in s.when:
        if c.symbol not in scope.symbols:
            raise scope.fail(
                12, f"{where}: condition on {c.symbol}, expected one of {', '.join(sorted(scope.symbols))}"
            )


def _all_names(scope: Scope) -> set[str]:
    """Names of sizes in use, including those in index arithmetic and in dimensions of locals."""
    affines = [d for b in scope.kernel.locals for d in b.dims]
    for s in walk(scope.kernel.body):
        if isinstance(s, Load | Store):
            affines += [i.start for i in s.index if isinstance(i, At | Span)]
        elif isinstance(s, For):
            affines += [s.lo, s.hi]
        elif isinstance(s, Let):
            affines += [v for _, v in s.attrs if isinstance(v, Affine)]
    return used_sizes(scope.kernel) | {n for a in affines for n in a.names}
