"""The body of a bound kernel as a graph of nodes, for the renderer.

In: a kernel whose schedule parameters are integers. Out: `Node`s (pure tile values, compared by identity),
`LoopNode`s and `StoreNode`s. A node knows the names its value depends on (`roots`). Independent of C++ or
of instruction sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tilewright.ir.affine import Affine
from tilewright.ir.errors import UnsupportedError
from tilewright.ir.tile.core import (
    Buffer,
    For,
    Index,
    Kernel,
    Let,
    Load,
    Pick,
    Stmt,
    Store,
    TileType,
    index_scalars,
    index_shape,
    walk,
)

Shape = tuple[int, ...]


@dataclass(eq=False)
class Node:
    """One tile value. `args`: operand nodes; for loads also `index`, `buffer`, `stream`, `other`; `scalars`:
    rank-0 tiles its index or attributes name. `roots`: loop variables, written buffers and loops (`carry:v`)
    it depends on."""

    op: str
    dtype: str
    shape: Shape
    args: tuple[Node, ...] = ()
    attrs: Mapping[str, object] = field(default_factory=dict)
    name: str = ""
    index: tuple[Index, ...] = ()
    buffer: Buffer | None = None
    stream: str = ""
    other: float = 0.0
    scalars: Mapping[str, Node] = field(default_factory=dict)
    roots: frozenset[str] = frozenset()

    @property
    def source(self) -> Buffer:
        """The buffer a load reads."""
        assert self.buffer is not None, f"{self.op} reads no buffer"
        return self.buffer


@dataclass(eq=False)
class StoreNode:
    """A store; `picks` are the index tiles by name, `scalars` the rank-0 tiles in its index."""

    buffer: Buffer
    stream: str
    index: tuple[Index, ...]
    value: Node
    scalars: Mapping[str, Node]
    shape: Shape


@dataclass(eq=False)
class LoopNode:
    """A loop: per carry the node inside, its initial value, what the body yields, and the node after the
    loop."""

    var: str
    lo: Affine
    hi: Affine
    step: int
    carries: list[Node]
    inits: list[Node]
    yields: list[Node]
    results: list[Node]
    body: list[Item]
    scalars: Mapping[str, Node]

    @property
    def key(self) -> str:
        return f"{self.var}#{id(self)}"


Item = StoreNode | LoopNode


@dataclass
class _Builder:
    kernel: Kernel
    env: dict[str, Node] = field(default_factory=dict)

    def block(self, body: tuple[Stmt, ...]) -> list[Item]:
        out: list[Item] = []
        for s in body:
            if isinstance(s, Let):
                self.env[s.name] = self.let(s)
            elif isinstance(s, Load):
                self.env[s.name] = self.load(s)
            elif isinstance(s, Store):
                out.append(self.store(s))
            else:
                out.append(self.loop(s))
        return out

    def let(self, s: Let) -> Node:
        args = tuple(self.env[a] for a in s.args)
        attrs = dict(s.attrs)
        scalars: dict[str, Node] = {}
        roots = frozenset[str]().union(*(a.roots for a in args))
        value = attrs.get("value")
        if s.op == "index" and isinstance(value, Affine):
            scalars = {n[1:]: self.env[n[1:]] for n in value.names if n.startswith("%")}
            roots |= _roots(value, scalars)
        if s.op == "within":
            roots |= {str(attrs["loop"])}
        return Node(
            s.op, s.type.dtype, _ints(s.type.shape, s.name), args, attrs, s.name, scalars=scalars, roots=roots
        )

    def load(self, s: Load) -> Node:
        buffer = self.kernel.buffer(s.buffer)
        picks = tuple(self.env[i.tile] for i in s.index if isinstance(i, Pick))
        scalars = {n: self.env[n] for n in index_scalars(s.index)}
        roots = _index_roots(s.index, scalars) | {f"buffer:{buffer.name}"}
        roots = roots.union(*(p.roots for p in picks))
        return Node(
            "load", s.type.dtype, _ints(s.type.shape, s.name), picks, {}, s.name, s.index, buffer,
            s.buffer.partition(".")[2], s.other, scalars, frozenset(roots),
        )  # fmt: skip

    def store(self, s: Store) -> StoreNode:
        value = self.env[s.value]
        scalars = {n: self.env[n] for n in index_scalars(s.index)}
        shape = _ints(index_shape(s.index, {n: _type(v) for n, v in self.env.items()}), s.buffer)
        for i in s.index:
            if isinstance(i, Pick):
                scalars[i.tile] = self.env[i.tile]
        return StoreNode(
            self.kernel.buffer(s.buffer), s.buffer.partition(".")[2], s.index, value, scalars, shape
        )

    def loop(self, s: For) -> LoopNode:
        if not isinstance(s.step, int):
            raise UnsupportedError(
                f"loop {s.var}: step {s.step} is not bound by any schedule", f"kernel {self.kernel.name}"
            )
        scalars = {n[1:]: self.env[n[1:]] for a in (s.lo, s.hi) for n in a.names if n.startswith("%")}
        loop = LoopNode(s.var, s.lo, s.hi, s.step, [], [], [], [], [], scalars)
        for c in s.carries:
            init, shape = self.env[c.init], _ints(c.type.shape, c.name)
            carry = Node("carry", c.type.dtype, shape, name=c.name, roots=frozenset({f"carry:{loop.key}"}))
            loop.carries.append(carry)
            loop.inits.append(init)
            self.env[c.name] = carry
        loop.body = self.block(s.body)
        for c in s.carries:
            loop.yields.append(self.env[c.yields])
            shape = _ints(c.type.shape, c.name)
            result = Node(
                "carry", c.type.dtype, shape, name=c.result, roots=frozenset({f"result:{loop.key}"})
            )
            loop.results.append(result)
            self.env[c.result] = result
        return loop


def _type(n: Node) -> TileType:
    return TileType(n.dtype, n.shape)


def _ints(shape: tuple[int | str, ...], where: str) -> Shape:
    if any(isinstance(s, str) for s in shape):
        raise UnsupportedError(
            f"tile %{where} has shape {shape}: a size is not bound by any schedule",
            hint="bind it in the schedule",
        )
    return tuple(int(s) for s in shape)


def _roots(a: Affine, scalars: Mapping[str, Node]) -> frozenset[str]:
    own = frozenset(n for n in a.names if not n.startswith("%"))
    return own.union(*(scalars[n[1:]].roots for n in a.names if n.startswith("%")))


def _index_roots(index: tuple[Index, ...], scalars: Mapping[str, Node]) -> frozenset[str]:
    return frozenset[str]().union(*(_roots(i.start, scalars) for i in index if not isinstance(i, Pick)))


def build(kernel: Kernel) -> list[Item]:
    """The body of a bound kernel as stores and loops over nodes. A value is computed where it is requested,
    so a value loaded before a store to its buffer must not be used after the store: UnsupportedError names
    both."""
    items = _Builder(kernel).block(kernel.body)
    _check_order(kernel, items)
    return items


def _check_order(kernel: Kernel, items: list[Item]) -> None:
    order = {
        id(s) if isinstance(s, Store) else s.name: n
        for n, s in enumerate(walk(kernel.body))
        if isinstance(s, Load | Store)
    }
    written = {s.buffer.split(".")[0] for s in walk(kernel.body) if isinstance(s, Store)}
    stores = {
        b: [order[id(s)] for s in walk(kernel.body) if isinstance(s, Store) and s.buffer.split(".")[0] == b]
        for b in written
    }
    if not any(isinstance(s, Load) and s.buffer.split(".")[0] in written for s in walk(kernel.body)):
        return
    for at, item in zip(sorted(n for s in stores.values() for n in s), _stores(items), strict=True):
        for n in reachable([item]):
            if n.op != "load" or n.source.name not in written:
                continue
            made = order[n.name]
            if any(made < s < at for s in stores[n.source.name]):
                raise UnsupportedError(
                    f"%{n.name} is loaded from %{n.source.name} before a store to it and used after that "
                    "store",
                    f"kernel {kernel.name}", "move the use of the loaded value before the store",
                )  # fmt: skip


def _stores(items: list[Item]) -> Iterator[StoreNode]:
    for s in items:
        if isinstance(s, StoreNode):
            yield s
        else:
            yield from _stores(s.body)


def stored(items: list[Item]) -> Iterator[str]:
    """Names of the buffers that these statements write."""
    for s in items:
        if isinstance(s, StoreNode):
            yield s.buffer.name
        else:
            yield from stored(s.body)


def upstream(tops: Sequence[Node]) -> Iterator[Node]:
    """These nodes and all that they depend on, once each, operands first."""
    seen: set[Node] = set()

    def visit(n: Node) -> Iterator[Node]:
        if n not in seen:
            seen.add(n)
            for a in (*n.args, *n.scalars.values()):
                yield from visit(a)
            yield n

    for top in tops:
        yield from visit(top)


def reachable(items: list[Item]) -> Iterator[Node]:
    """Every node that the statements depend on, once each."""
    seen: set[Node] = set()

    def visit(n: Node) -> Iterator[Node]:
        if n not in seen:
            seen.add(n)
            for a in (*n.args, *n.scalars.values()):
                yield from visit(a)
            yield n

    for s in items:
        tops = (
            [s.value, *s.scalars.values()]
            if isinstance(s, StoreNode)
            else [*s.inits, *s.yields, *s.scalars.values()]
        )
        for n in tops:
            yield from visit(n)
        if isinstance(s, LoopNode):
            for n in reachable(s.body):
                if n not in seen:
                    seen.add(n)
                    yield n
