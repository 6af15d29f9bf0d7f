"""The graph under construction as importers' helpers see it: the part of `context.Capture` that they use.

A protocol, so that `Capture` can call helpers that take it. Beside it stand the checks of indices, which a
context carries and `indices` fills.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tilewright.capture.symbols import Dim, Symbols
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Location, Op


@dataclass
class Checks:
    """The checks of one graph. `wanted`: whether its runtime looks at them; language models have ids checked
    before a step."""

    wanted: bool = False
    #: name of the result, its value, and what the runtime needs for a message
    found: list[tuple[str, str, tuple[object, ...]]] = field(default_factory=list)
    seen: set[tuple[object, ...]] = field(default_factory=set)

    def metadata(self) -> dict[str, object]:
        """For the module: `checks`, a list for each result."""
        return {"checks": tuple((name, *about) for name, _, about in self.found)} if self.found else {}


class Making(Protocol):
    """One program on its way into a graph; what each member does stands at `Capture`."""

    b: GraphBuilder
    symbols: Symbols
    checks: Checks
    loc: Location | None

    def op(self, name: str, *operands: str, **attrs: object) -> str: ...

    def const(self, value: float | bool, dtype: str, /) -> str: ...

    def number(self, dim: Dim, dtype: str = ..., /) -> str: ...

    def cast(self, x: str, dtype: str, /) -> str: ...

    def index(self, x: str, /) -> str: ...

    def trunc(self, x: str, /) -> str: ...

    def reshape(self, x: str, shape: Sequence[Dim], /) -> str: ...

    def producer(self, operand: str, /) -> Op | None: ...

    def dtype(self, x: str, /) -> str: ...

    def shape(self, x: str, /) -> tuple[Dim, ...]: ...
