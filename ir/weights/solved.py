"""What solvers found, as sources of weights: `solved(values, stream, …) {by, streams}`.

In: a weight whose source names a solver. Out: its values' expression, the solver's text, and the streams that
calibration found, read from files of a work folder. Knows nothing of how they were found.
"""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.graph.core import Apply, Stored, Weight, WeightExpr, walk_expr

#: the weight function that leaves values alone and says by which solver they are stored
SOLVED = "solved"
#: what a `Stored.file` begins with if the file lies in the folder of solved weights
FOLDER = "solved:"


@dataclass(frozen=True)
class Solution:
    """What a calibration makes of a weight: its values are multiplied by every tensor of `muls`, then `add`
    is added; `streams`: what its encoding holds, by name, if a solver found it."""

    muls: tuple[Stored, ...] = ()
    add: Stored | None = None
    streams: tuple[tuple[str, Stored], ...] = ()


def solver_text(weight: Weight) -> str | None:
    """By which solver, with its encoding, a weight is stored; None: rounded to nearest."""
    e = weight.source
    text = dict(e.attrs).get("by") if isinstance(e, Apply) and e.fn == SOLVED else None
    return str(text) if text else None


def values_of(source: WeightExpr) -> WeightExpr:
    """The expression of the values, without what solvers made of them."""
    return source.args[0] if isinstance(source, Apply) and source.fn == SOLVED else source


def solved_by(source: WeightExpr, text: str) -> Apply:
    """The same values, with the solver that stores them; it replaces an earlier one and what that found."""
    return Apply(SOLVED, (values_of(source),), (("by", text),))


def with_streams(values: WeightExpr, text: str, streams: tuple[tuple[str, Stored], ...]) -> Apply:
    """Values that a solver stores as these streams; without streams, one that is yet to run."""
    if not streams:
        return solved_by(values, text)
    names = tuple(name for name, _ in streams)
    return Apply(SOLVED, (values, *(s for _, s in streams)), (("by", text), ("streams", names)))


def streams_of(source: WeightExpr) -> dict[str, Stored]:
    """The streams that a source names, by name; empty if none were found."""
    if not isinstance(source, Apply) or source.fn != SOLVED:
        return {}
    names = dict(source.attrs).get("streams", ())
    found = [a for a in source.args[1:] if isinstance(a, Stored)]
    return dict(zip(map(str, names if isinstance(names, tuple | list) else ()), found, strict=True))


def is_rescaled(weight: Weight) -> bool:
    """Whether calibration multiplied a weight's values, so that they are not those of the model."""
    return any(
        isinstance(e, Apply) and e.fn in ("mul", "add")
        and any(isinstance(a, Stored) and a.file.startswith(FOLDER) for a in e.args)
        for e in walk_expr(values_of(weight.source))
    )  # fmt: skip
