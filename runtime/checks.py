"""Out-of-bounds indices: kernels read zeros there, and scalar results report how far the indices reached.

In: the manifest's `checks`, the scalar after a run. Out: nothing, or SessionError naming the index, where it
came from and what it should have been. A check costs one reduction over the indices; language models have
none, their ids are checked before a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tilewright.runtime.errors import ArtifactError, SessionError


@dataclass(frozen=True)
class Check:
    """`name`: of the result; `origin`: the input that holds the indices ("": they are computed); `least`,
    `size`: of the axis, numbers or names of sizes; `table`, `axis`: what is read; `place`: the model's source
    line.
    """

    name: str
    origin: str
    least: int | str
    size: int | str
    table: str
    axis: int
    place: str

    def look(self, value: Any, sizes: Mapping[str, int]) -> None:
        """Raises SessionError if indices reach beyond the axis (`.beyond`: largest less the last place) or
        before it."""
        gap, size = float(value), _number(self.size, sizes)
        least = _number(self.least, sizes)
        beyond = self.name.endswith(".beyond")
        if not (gap > 0 if beyond else gap < 0):
            return
        index = "?" if size is None or least is None else str(int(gap) + (size - 1 if beyond else least))
        want = (
            f"{self.least} to {self.size} - 1" if size is None or least is None else f"{least} to {size - 1}"
        )
        where = f"input {self.origin}" if self.origin else "an index computed by the model"
        hint = f"it is read at {self.place}" if self.place else ""
        raise SessionError(
            f"index {index}: expected {want}, of {self.table} along axis {self.axis}", where, hint
        )


def _number(d: int | str, sizes: Mapping[str, int]) -> int | None:
    """A size that is a number, a symbol or its negative; None for any other expression."""
    if isinstance(d, int):
        return d
    known = sizes.get(d.removeprefix("-"))
    return known if known is None or not d.startswith("-") else -known


def read_checks(meta: Mapping[str, object], results: Sequence[str], alone: bool = True) -> tuple[Check, ...]:
    """Raises ArtifactError if the manifest's `checks` are none. `alone`: all of them are results of this
    graph; otherwise other graphs share the metadata, and theirs are left out."""
    raw = meta.get("checks", ())
    out: list[Check] = []
    for item in raw if isinstance(raw, list | tuple) else [raw]:
        match item:
            case [
                str(name),
                str(origin),
                int() | str() as least,
                int() | str() as size,
                str(table),
                int(axis),
                str(place),
            ]:
                if alone or name in results:
                    out.append(Check(name, origin, least, size, table, axis, place))
            case _:
                hint = "the artifact is damaged or was edited; compile the model again"
                raise ArtifactError(f"not a check: {item!r:.60}", "manifest.json: meta.checks", hint)
    if not {c.name for c in out} <= set(results):
        raise ArtifactError("meta.checks and the graph disagree", "manifest.json", "compile the model again")
    return tuple(out)
