"""Ranges of rank-0 integer tiles: what bounds of run-time loops are known to be.

In: a kernel. Out: for each scalar tile the smallest and largest value it can take, None where nothing is known. The verifier
proves accesses with it; the renderer learns how far a loop can run.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.ir.affine import Affine
from tilewright.ir.tile import Kernel, Let, Load, walk

Bounds = tuple[int | None, int | None]
UNKNOWN: Bounds = (None, None)


def scalar_ranges(kernel: Kernel) -> dict[str, Bounds]:
    """Bounds of every rank-0 integer tile by name; values outside these need a wrapped sum."""
    out: dict[str, Bounds] = {}
    for s in walk(kernel.body):
        if isinstance(s, Load) and not s.type.shape:
            out[s.name] = (0, 255) if s.type.dtype == "u8" else UNKNOWN
        elif isinstance(s, Let) and not s.type.shape and s.type.dtype[0] in "iu":
            out[s.name] = _range(s, [out.get(a, UNKNOWN) for a in s.args])
    return out


def _range(s: Let, args: list[Bounds]) -> Bounds:
    if s.op == "const":
        value = s.attr("value")
        return (int(value), int(value)) if isinstance(value, int) else UNKNOWN
    if s.op == "index":
        at = s.attr("value")
        return (at.as_int(), at.as_int()) if isinstance(at, Affine) and at.is_const else UNKNOWN
    rule = _RULES.get(s.op)
    return rule(*args) if rule else UNKNOWN


def _min(a: Bounds, b: Bounds) -> Bounds:
    highs = [x for x in (a[1], b[1]) if x is not None]
    return (min(a[0], b[0]) if a[0] is not None and b[0] is not None else None, min(highs, default=None))


def _max(a: Bounds, b: Bounds) -> Bounds:
    lows = [x for x in (a[0], b[0]) if x is not None]
    return (max(lows, default=None), max(a[1], b[1]) if a[1] is not None and b[1] is not None else None)


def _shr(a: Bounds, b: Bounds) -> Bounds:
    if b[0] is None or b[0] != b[1] or a[0] is None or a[0] < 0:
        return UNKNOWN
    return (a[0] >> b[0], a[1] >> b[0] if a[1] is not None else None)


def _and(a: Bounds, b: Bounds) -> Bounds:
    masks = [x[1] for x in (a, b) if x[0] is not None and x[0] >= 0 and x[1] is not None]
    return (0, min(masks)) if masks else UNKNOWN


_RULES: dict[str, Callable[..., Bounds]] = {"min": _min, "max": _max, "shr": _shr, "and": _and}
