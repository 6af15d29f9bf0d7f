"""What `tilewright exec` reports: results of the reference interpreter, and how other runs compare.

In: results by name. Out: differences, as JSON or as lines of text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from tilewright.ir.ops.base import Array
from tilewright.passes.driver import EXACT, difference


@dataclass(frozen=True)
class Compared:
    """One result of one way of running: its largest difference from the interpreter's, as a share of the
    largest value."""

    how: str
    difference: float
    agrees: bool


@dataclass
class Ran:
    """One graph, plan or kernel: results of the reference interpreter, and how the other ways compare."""

    what: str
    name: str
    symbols: dict[str, int]
    results: dict[str, Array]
    tolerance: float = EXACT
    compared: dict[str, list[Compared]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def compare(self, how: str, got: Mapping[str, Array]) -> None:
        """Hold another way's results against the interpreter's."""
        for name, want in self.results.items():
            share = difference(want, got[name]) if got[name].shape == want.shape else math.inf
            agrees = share <= (self.tolerance if np.issubdtype(want.dtype, np.floating) else 0.0)
            self.compared.setdefault(name, []).append(Compared(how, share, agrees))

    @property
    def agree(self) -> bool:
        return all(c.agrees for cs in self.compared.values() for c in cs)

    def to_json(self) -> dict[str, object]:
        return {"what": self.what, "name": self.name, "symbols": self.symbols, "agree": self.agree,
        "notes": self.notes,
                "results": [self._result(n, x) for n, x in self.results.items()]}  # fmt: skip

    def _result(self, name: str, x: Array) -> dict[str, object]:
        ways = [
            {"how": c.how, "difference": _finite(c.difference), "agrees": c.agrees}
            for c in self.compared.get(name, ())
        ]
        return {"name": name, "dtype": str(x.dtype), "shape": list(x.shape), "compared": ways, **_summary(x)}


@dataclass(frozen=True)
class Report:
    """Everything a text held, as it ran."""

    runs: tuple[Ran, ...]

    @property
    def agree(self) -> bool:
        return all(r.agree for r in self.runs)

    def to_json(self) -> dict[str, object]:
        return {"agree": self.agree, "runs": [r.to_json() for r in self.runs]}

    def render(self) -> str:
        """Lines for people."""
        lines: list[str] = []
        for r in self.runs:
            sizes = ", ".join(f"{k}={v}" for k, v in r.symbols.items())
            lines.append(f"{r.what} @{r.name}" + (f" ({sizes})" if sizes else ""))
            for name, x in r.results.items():
                ways = [
                    f"{c.how} {'agrees' if c.agrees else 'DIFFERS'} ({c.difference:.2g})"
                    for c in r.compared.get(name, ())
                ]
                lines.append(f"  {name}: {x.dtype}{list(x.shape)}  {'; '.join(ways) or 'interpreted'}")
            lines += [f"  note: {n}" for n in r.notes]
        return "\n".join([*lines, "all agree" if self.agree else "NOT ALL AGREE"])


def _finite(x: float) -> float | str:
    return x if math.isfinite(x) else str(x)


@dataclass(frozen=True)
class Summary:
    """What a report says of a result's numbers; text stands for those that JSON does not have."""

    min: float | str
    max: float | str
    mean: float | str


def _summary(x: Array) -> dict[str, object]:
    if x.size == 0:
        return {}
    wide = x.astype(np.float64)
    return asdict(Summary(*(_finite(float(n)) for n in (wide.min(), wide.max(), wide.mean()))))
