"""Demand-driven emission of a region's values as tiles.

A consumer requests a value at coordinates; pointwise ops and views pass the request to their operands; values
in memory are loaded.

In: the ops of one region, a kernel builder. Out: tile values, parameters in call order. Independent of
schedules or plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tilewright.ir.affine import Affine
from tilewright.ir.encoding import Encoding
from tilewright.ir.graph.core import Graph, Module, Op
from tilewright.ir.ops.base import OPS
from tilewright.ir.tile.builder import KernelBuilder, Loop, Tile
from tilewright.ir.tile.core import At, Buffer, Size, Span
from tilewright.ir.types import TensorType
from tilewright.passes.lower.dims import CannotEmit, affine_dim
from tilewright.passes.lower.record import is_alias, lowering_of

Coord = At | Span
Coords = tuple[Coord, ...]


class TilePrims:
    """Scalar primitives over tiles, with which pointwise expressions are evaluated inside kernels."""

    def __init__(self, b: KernelBuilder, dtype: str = "f32") -> None:
        self.b, self.dtype = b, dtype

    def const(self, value: float, dtype: str = "") -> Tile:
        return self.b.const(value, dtype or self.dtype)

    def cast(self, x: Tile, dtype: str) -> Tile:
        return self.b.cast(dtype, x)

    def bitcast(self, x: Tile, dtype: str) -> Tile:
        return self.b.bitcast(dtype, x)

    def __getattr__(self, name: str) -> Callable[..., Tile]:
        return lambda *args: self.b.op(name, *args)


@dataclass
class Emitter:
    """Emission state of one kernel. `args`: for each of `b.params`, the plan operand that it receives.

    `shapes`: the (collapsed) shape under which each operand is seen; `anchors`: values that a template
    computes itself, by name."""

    module: Module
    graph: Graph
    b: KernelBuilder
    inside: dict[str, Op]
    shapes: Callable[[str], tuple[object, ...]]
    anchors: dict[str, Callable[[Coords], Tile]] = field(default_factory=dict)
    args: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._buffers: dict[str, Buffer] = {}
        self._memo: dict[tuple[str, Coords, int], Tile] = {}
        self._scope = self._scopes = self._vars = 0
        self._stats: dict[tuple[object, ...], Tile] = {}
        self._packed: dict[tuple[str, int], bool] = {}

    # ------------------------------------------------------------ operands
    def type_of(self, operand: str) -> TensorType:
        return self.module.operand_type(self.graph, operand)

    def buffer(self, operand: str, role: str = "") -> Buffer:
        """The parameter that carries an operand, declared on first use."""
        if operand not in self._buffers:
            base = self.alias_of(operand) or operand
            dtype, encoding = self.type_of(base).stored
            dims = [affine_dim(d) for d in self.shapes(operand)]
            self._buffers[operand] = self.b.param(role or f"a{len(self.args)}", dtype, dims, encoding)
            self.args.append(base)
        return self._buffers[operand]

    def extra(
        self,
        name: str,
        dtype: str,
        dims: Sequence[int | str | Affine],
        arg: str,
        encoding: Encoding | None = None,
    ) -> Buffer:
        """A parameter that is not an operand of the region (a cache, a query-block table)."""
        if arg not in self._buffers:
            self._buffers[arg] = self.b.param(name, dtype, dims, encoding)
            self.args.append(arg)
        return self._buffers[arg]

    def in_memory(self, operand: str, role: str) -> Buffer:
        """The buffer of an operand that is read in whole rows; for a reshape, the buffer of what it is a
        reshape of. CannotEmit if the operand is computed in this kernel."""
        if operand[0] == "%" and operand[1:] in self.inside and self.alias_of(operand) is None:
            raise CannotEmit(f"operand {operand} of a contraction is computed inside the region")
        return self.buffer(operand, role)

    def fresh_var(self, base: str) -> str:
        """A name for a loop variable that no other loop of this kernel uses."""
        self._vars += 1
        return f"{base}{self._vars}"

    def once(self, key: tuple[object, ...], make: Callable[[], Tile]) -> Tile:
        """A per-row statistic, emitted where it is first requested, which must be outside the loops that
        share it."""
        if key not in self._stats:
            self._stats[key] = make()
        return self._stats[key]

    # ------------------------------------------------------------ grids and results
    def row_grid(self, shape: Sequence[object]) -> list[At]:
        """A grid over all axes but the last; of a vector, one instance."""
        if len(shape) == 1:
            self.b.grid("i0", 1, 1)
        return [At(self.b.grid(f"i{m}", affine_dim(d), 1)) for m, d in enumerate(shape[:-1])]

    def store(self, y: Buffer, operand: str, at: Coords) -> None:
        """An operand's value at coordinates, into memory in that buffer's element type."""
        tile = self.emit(operand, at)
        self.b.store(y, at, self.b.cast(y.dtype, tile))

    # ------------------------------------------------------------ values
    @contextmanager
    def loop(
        self, var: str, lo: int | str | Affine, hi: int | str | Affine, step: Size, init: Sequence[Tile] = ()
    ) -> Iterator[Loop]:
        """A loop whose body shares no emitted values with other bodies."""
        outer, self._scope, self._scopes = self._scope, self._scopes + 1, self._scopes + 1
        with self.b.loop(var, lo, hi, step, init) as handle:
            yield handle
        self._scope = outer

    def whole(self, tile: Tile, at: Coords) -> Tile:
        """A tile with every axis as long as its coordinates, where those of size 1 are repeated."""
        shape = tuple(c.size for c in at if isinstance(c, Span))
        return tile if tile.shape == shape else self.b.select(self.b.const(1, "bool", shape), tile, tile)

    def emit(self, operand: str, at: Coords) -> Tile:
        """The tile of `operand` at coordinates, one entry per dimension of its (collapsed) shape."""
        key = (operand, at, self._scope)
        if key not in self._memo:
            self._memo[key] = self._emit(operand, at)
        return self._memo[key]

    def _emit(self, operand: str, at: Coords) -> Tile:
        name = operand[1:]
        if operand[0] == "%" and name in self.anchors:
            return self.anchors[name](at)
        if operand[0] == "%" and name in self.inside and self.alias_of(operand) is None:
            return self._op(self.inside[name], name, at)
        return self._leaf(operand, at)

    def alias_of(self, operand: str) -> str | None:
        """The value in memory that `operand` is only a reshape of (the same bytes under another shape); None
        if there is none."""
        base = operand
        while base[0] == "%" and base[1:] in self.inside:
            op = self.inside[base[1:]]
            if not is_alias(op):
                return None
            base = op.operands[0]
        plain = self.type_of(base).stored[1] is None and base[1:] not in self.anchors
        return base if base != operand and plain else None

    def reads_packed(self, operand: str) -> bool:
        """Whether a value comes, within this kernel, from a packed buffer: its streams have no masks, so that
        chunks must divide its rows exactly."""
        key = (operand, len(self.anchors))
        if key not in self._packed:
            self._packed[key] = self._reads_packed(operand)
        return self._packed[key]

    def _reads_packed(self, operand: str) -> bool:
        if operand[0] == "%" and operand[1:] in self.anchors:
            return False
        op = self.inside.get(operand[1:]) if operand[0] == "%" else None
        if op is None:
            return self.type_of(operand).stored[1] is not None
        return any(self.reads_packed(o) for o in op.operands)

    def _leaf(self, operand: str, at: Coords) -> Tile:
        buffer = self.buffer(operand)
        if buffer.encoding is not None:
            tile = buffer.encoding.tile_decode(self.b, buffer, at)
        else:
            tile = self.b.load(buffer, *at)
        want = self.type_of(operand).dtype
        return self.b.cast(want, tile)

    def _op(self, op: Op, name: str, at: Coords) -> Tile:
        record = OPS[op.name]
        if record.expr is not None:
            args = [self.emit(o, self.broadcast(o, at)) for o in op.operands]
            return record.expr(TilePrims(self.b, args[-1].dtype if args else "f32"), *args, **dict(op.attrs))  # type: ignore[return-value]
        lowering = lowering_of(op)
        if lowering is not None and lowering.emit is not None:
            return lowering.emit(self, op, at)
        return self.through(op, name, at)

    def op(self, name: str, *args: Tile, **attrs: object) -> Tile:
        """A pointwise op of the graph on tiles."""
        expr = OPS[name].expr
        assert expr is not None, name
        return expr(TilePrims(self.b, args[-1].dtype), *args, **attrs)  # type: ignore[return-value]

    def through(self, op: Op, name: str, at: Coords) -> Tile:
        """A view's result: the operand at the coordinates that the view maps these to."""
        lowering = lowering_of(op)
        if lowering is None or lowering.view is None:
            raise CannotEmit(f"op {op.name} cannot be computed inside a fused kernel")
        view = lowering.view.coordinates(self._seen(op, len(at)), name, at, self.shapes)
        tile = self.emit(op.operands[0], view.at)
        if view.transposed:
            tile = self.b.transpose(tile)
        return self.b.reshape(tile, *view.shape) if view.shape is not None else tile

    def _seen(self, op: Op, rank: int) -> Op:
        """A view as seen when leading axes are collapsed into one: it may cut only the axes after them."""
        merged = op.results[0].type.rank - rank
        lowering = lowering_of(op)
        if not merged or lowering is not None and lowering.view is not None and lowering.view.aligned:
            return op
        axis = dict(op.attrs).get("axis")
        if not isinstance(axis, int) or axis <= merged:
            raise CannotEmit(f"{op.name} cuts or moves leading axes that are collapsed into one")
        return replace(op, attrs=tuple((k, axis - merged if k == "axis" else v) for k, v in op.attrs))

    def broadcast(self, operand: str, at: Coords) -> Coords:
        """Coordinates of an operand under NumPy broadcasting against a result at `at`."""
        shape = self.shapes(operand)
        tail = at[len(at) - len(shape) :]
        out: list[Coord] = []
        for d, c in zip(shape, tail, strict=True):
            if d == 1 and not _unit(c):
                out.append(At(Affine()) if isinstance(c, At) else Span(Affine(), 1))
            else:
                out.append(c)
        return tuple(out)


def _unit(c: Coord) -> bool:
    return c.start == Affine() and (isinstance(c, At) or c.size == 1)
