"""Graph IR to Tile IR: every fused region becomes one tile program (or a few), and the graph a plan of calls.

In: modules whose graphs *fuse* has numbered. Out: a `Program` with each distinct kernel once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tilewright.backends.registry import backend, default_backend
from tilewright.ir.graph.core import Module
from tilewright.ir.plan.core import Program
from tilewright.passes.base import LowerPass, PassContext
from tilewright.passes.lower.program import lower

__all__ = ["Lower", "lower"]


@dataclass(frozen=True)
class Lower(LowerPass):
    """Write each region as a tile program. Regions are those that `fuse` settled; in a graph without region
    numbers, each op is a region of its own. `backends`: names of the backends whose schedules the kernels
    get; empty: the default backend.
    """

    name = "lower"
    needs: ClassVar[frozenset[str]] = frozenset({"fused", "no-attend", "no-fwht", "no-token-choice"})
    gives: ClassVar[frozenset[str]] = frozenset({"program"})
    takes_away: ClassVar[frozenset[str]] = frozenset({"graphs"})
    backends: tuple[str, ...] = ()

    def run(self, module: Module, ctx: PassContext) -> Program:
        asked = [backend(name) for name in self.backends or (default_backend(),)]
        return lower(module, lambda why: ctx.declined("region", "lower", why), asked, ctx.reusable)
