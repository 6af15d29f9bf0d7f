"""What every template is given, and what it returns.

In: a region with the graph around it. Out: kernels with the plan operands of their parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tilewright.backends.base import KernelUse, Work
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.tile.builder import KernelBuilder, Tile
from tilewright.ir.tile.core import Condition, Kernel
from tilewright.passes.lower.clean import drop_dead
from tilewright.passes.lower.dims import CannotEmit, RunTimeSize, dim_of
from tilewright.passes.lower.emit import Coords, Emitter
from tilewright.passes.lower.regions import Region


@dataclass(frozen=True)
class Built:
    """A kernel, its description for the backends that schedule it, and how the plan calls it."""

    kernel: Kernel
    args: tuple[str, ...]
    symbols: tuple[tuple[str, object], ...] = ()
    when: tuple[Condition, ...] = ()
    use: KernelUse = field(default_factory=KernelUse)


@dataclass
class Job:
    """What every template needs."""

    module: Module
    graph: Graph
    region: Region
    inside: dict[str, Op]
    rows: object = None  # the run-time row count of a contraction
    lead: int = 1  # leading dimensions collapsed into one
    across: tuple[object, ...] = ()  # those dimensions
    whole: frozenset[str] = frozenset()  # operands whose axes are not collapsed: a contraction's matrix

    def emitter(self, kind: str) -> Emitter:
        return Emitter(self.module, self.graph, KernelBuilder(kind), self.inside, self.shape)

    def alone(self, op: Op) -> None:
        """CannotEmit if the region holds more than this op."""
        if len(self.region.ops) > 1:
            raise CannotEmit(f"{op.name} must be the only op of its region")

    def shape(self, operand: str) -> tuple[object, ...]:
        t = self.module.operand_type(self.graph, operand)
        if self.lead > 1 and t.rank > 1 and operand not in self.whole:
            return self._collapsed(operand, t.shape)
        if (
            self.lead == 1
            and self.rows is not None
            and operand[0] == "%"
            and t.rank >= 2
            and t.shape[0] == self.rows
        ):
            return ("M", *t.shape[1:])
        return t.shape

    def _collapsed(self, operand: str, shape: tuple[object, ...]) -> tuple[object, ...]:
        """The shape with the rows' axes as one; an operand that is one row for all of them gets an axis of
        size 1."""
        before, after = shape[: self.lead], shape[self.lead :]
        if before == self.across and after:
            return ("M", *after)
        if all(d == 1 for d in shape[:-1]):
            return (1, shape[-1])
        raise CannotEmit(
            f"{operand} of shape {list(shape)} cannot be combined with rows of {list(self.across)}"
        )

    def matrix(self, operand: str) -> tuple[int, int]:
        """Rows and columns of a contraction's second operand."""
        t = self.module.operand_type(self.graph, operand)
        n, k = t.shape[-2:]
        if not (isinstance(n, int) and isinstance(k, int)):
            raise RunTimeSize(f"a matrix of size {n} x {k}, known at run time only")
        return n, k

    def store_results(self, e: Emitter, op: Op, at: Coords, tile: Tile) -> None:
        """Let `tile` be the result of `op` at these coordinates, and store the region's outputs there: the
        result itself, or what pointwise ops compute from it. CannotEmit if these need it at other
        coordinates."""

        def value(asked: Coords) -> Tile:
            if asked != at:
                raise CannotEmit("the product is read at other coordinates than computed")
            return tile

        e.anchors[op.result.name] = value
        for name in self.region.outputs:
            if len(self.shape("%" + name)) != len(at):
                raise CannotEmit("an output of the region has another rank than the product")
            e.store(e.buffer("%" + name, f"y{len(e.args)}"), "%" + name, at)

    def finish(self, e: Emitter, when: tuple[Condition, ...] = (), work: Work | None = None) -> Built:
        kernel = drop_dead(e.b.build())
        known = {"M": self.rows} if self.rows is not None else {}
        own = {name for name, _ in self.module.symbols}
        symbols = tuple((s, known[s] if s in known else dim_of(s, own)) for s in kernel.symbols)
        return Built(kernel, tuple(e.args), symbols, when, self._use(kernel, e.args, work))

    def _use(self, kernel: Kernel, args: Sequence[str], work: Work | None) -> KernelUse:
        stored = {p.name: a[1:] for p, a in zip(kernel.params, args, strict=True) if a[0] == "@"}
        known = self.module.weight_map()
        weights = tuple(p for p, name in stored.items() if name in known)
        return KernelUse(work, weights, tuple(p for p in stored if p not in weights))
