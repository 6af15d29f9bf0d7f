"""Graph IR: what a model computes, as SSA over tensors.

A module holds named graphs over shared weights, states and symbols. Everything is frozen and compares by
structure. Operands are strings: `%x` a value of the graph, `@w` a weight or state of the module. Independent
of text, passes or PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property

from tilewright.ir.encoding import Encoding
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.plan.step import SLICE
from tilewright.ir.selection import HELD_AS, Selection
from tilewright.ir.types import SymbolRange, TensorType, as_dim

#: attribute values: plain data only, so that text can hold them
Attr = "bool | int | float | str | None | tuple[Attr, ...]"


@dataclass(frozen=True)
class Location:
    """Where in the user's model an op came from: source file and line, and the module path
    (`layers.0.self_attn`)."""

    file: str
    line: int
    scope: str = ""

    @property
    def text(self) -> str:
        """`model.py:12 (layers.0)`; the module alone where its code is not the user's."""
        if not self.file:
            return f"module {self.scope}"
        return f"{self.file}:{self.line}" + (f" ({self.scope})" if self.scope else "")


@dataclass(frozen=True)
class Value:
    """A named tensor of one graph; `name` without the `%`."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Op:
    """`%results = name operands {attrs}`; attrs sorted by key and complete (defaults filled in by the
    builder).

    `region`: the fused region it belongs to once *fuse* has run. `passes`: names of the passes that made or
    changed it."""

    name: str
    operands: tuple[str, ...]
    results: tuple[Value, ...]
    attrs: tuple[tuple[str, object], ...] = ()
    loc: Location | None = None
    passes: tuple[str, ...] = ()
    region: int | None = None

    def attr(self, key: str) -> object:
        for k, v in self.attrs:
            if k == key:
                return v
        raise KeyError(f"op {self.name} has no attribute {key!r}")

    @property
    def result(self) -> Value:
        """The only result; ValueError if there are several."""
        (r,) = self.results
        return r

    def with_attrs(self, **changes: object) -> Op:
        return replace(self, attrs=tuple(sorted({**dict(self.attrs), **changes}.items())))


# ------------------------------------------------------------------ weights: lazy expressions over stored ten
@dataclass(frozen=True)
class Stored:
    """A tensor by its key in a source: a safetensors file relative to the checkpoint directory, or `memory`
    for tensors that came with a module in this process.
    """

    file: str
    key: str


@dataclass(frozen=True)
class Inline:
    """A small constant kept in the text: little-endian bytes of `STORED[dtype]`, at most 1 MiB."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Apply:
    """A transform of tensors: `concat {axis}`, `stack {axis}`, `slice {axis, start, stop}`, `reshape
    {shape}`, `transpose {perm}`, `cast {dtype}`, `lora {scale}` (base + scale * B @ A), `add`, `mul`, `fill
    {shape, value}`, `rotate`, `low_rank {part, rank}` (a factor, or what is left without the product)."""

    fn: str
    args: tuple[WeightExpr, ...]
    attrs: tuple[tuple[str, object], ...] = ()


WeightExpr = Stored | Inline | Apply


@dataclass(frozen=True)
class Weight:
    """A constant of the module. Nothing is read until the artifact is written, one tensor at a time."""

    name: str
    type: TensorType
    source: WeightExpr


@dataclass(frozen=True)
class CacheStream:
    """One of the tensors that a state keeps: its name within the state, its shape for one sequence, how it is
    stored. Memory is [slots, *shape]. `rows`: axis 1 counts the rows that a KV head holds; `recent`: it
    keeps only the last ones."""

    name: str
    shape: tuple[int, ...]
    encoding: Encoding | None = None
    dtype: str = "f32"
    rows: bool = False
    recent: bool = False

    @property
    def width(self) -> int:
        return self.shape[-1]

    @property
    def type(self) -> TensorType:
        """Of the memory of all sequences of a session."""
        return TensorType(self.dtype, tuple(as_dim(d) for d in ("slots", *self.shape)), self.encoding)


@dataclass(frozen=True)
class State:
    """A KV cache that persists between steps, one range per sequence: `heads` KV heads, key and value width,
    stored as `k` and `v` say, for `context` positions. `window`: positions older than this are never read
    again (None: all).

    `evicts`: rows may be removed, so each states its original position, and each head how many are gone: the
    token at position p is in row p - gone. `observed`: each row keeps a sum of the attention that it got.
    `shares`: query heads whose softmax may begin with a state that was computed for sequences together (0:
    none). `select`: how single tokens choose the blocks of rows that attention reads (None: it reads all).
    `recent`: at least so many of the last rows are also kept in bf16, which attention then reads.
    """

    name: str
    heads: int
    k_dim: int
    v_dim: int
    k: Encoding
    v: Encoding
    context: int
    window: int | None = None
    evicts: bool = False
    observed: bool = False
    shares: int = 0
    select: Selection | None = None
    recent: int = 0

    @property
    def slices(self) -> int:
        return -(-self.context // SLICE)

    @property
    def keys(self) -> CacheStream:
        return CacheStream("k", (self.heads, self.context, self.k_dim), self.k, rows=True)

    @property
    def values(self) -> CacheStream:
        return CacheStream("v", (self.heads, self.context, self.v_dim), self.v, rows=True)

    @property
    def streams(self) -> tuple[CacheStream, ...]:
        """Keys, values, `home` (for each slice of a sequence's rows the sequence whose memory holds it),
        recent rows, and what eviction needs; plans and kernels write `@name.k`, `@name.v`, …"""
        out = [self.keys, self.values, CacheStream("home", (self.slices,), dtype="i32")]
        if self.recent:
            sides = (self.keys, self.values)
            out += [replace(s, name=f"recent_{s.name}", encoding=_recent(s.name), recent=True) for s in sides]
        if self.evicts:
            out += [
                CacheStream("pos", (self.heads, self.context), dtype="i32", rows=True),
                CacheStream("gone", (self.heads,), dtype="i32"),
            ]
        if self.observed:
            out.append(CacheStream("score", (self.heads, self.context), rows=True))
        if self.shares:
            carry = (self.shares, self.v_dim + 2)
            out += [CacheStream("skip", (1,), dtype="i32"), CacheStream("carry", carry)]
        return (*out, *self._selecting(self.select)) if self.select else tuple(out)

    def _selecting(self, select: Selection) -> tuple[CacheStream, ...]:
        """`summary` of each whole block, of the first `seen` rows; `worth`: the latest scores of blocks;
        `runs`: how many runs of rows attention reads next, of which `list` has the first and the end of
        each."""
        blocks = select.blocks(self.context)
        shape = (self.heads, blocks, len(select.formula.summary) * self.k_dim)
        return (
            CacheStream("summary", shape, parse_encoding(f"{HELD_AS}(layout=keys)")),
            CacheStream("seen", (self.heads,), dtype="i32"),
            CacheStream("worth", (self.heads, blocks)),
            CacheStream("list", (self.heads, blocks, 2), dtype="i32"),
            CacheStream("runs", (self.heads,), dtype="i32"),
        )

    def stream(self, name: str) -> CacheStream:
        return next(s for s in self.streams if s.name == name)


@cache
def _recent(name: str) -> Encoding:
    """How the recent rows of keys (`k`) or values (`v`) are stored."""
    return parse_encoding("bf16").arranged({"k": "keys", "v": "values"}[name])


@dataclass(frozen=True)
class Graph:
    """A straight line of ops. `outputs` are operand strings (`%x`); `results` names them for users."""

    name: str
    inputs: tuple[Value, ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]
    results: tuple[str, ...] = ()

    def values(self) -> Mapping[str, Value]:
        """Every value by name; made once, as lowering asks for every operand."""
        return self._values

    @cached_property
    def _values(self) -> Mapping[str, Value]:
        inside = (r for op in self.ops for r in op.results)
        return {v.name: v for v in (*self.inputs, *inside)}

    def producers(self) -> dict[str, Op]:
        return {r.name: op for op in self.ops for r in op.results}

    def uses(self) -> dict[str, list[Op]]:
        """Ops that read each operand string (`%x` or `@w`), in order; an op appears once per operand slot."""
        out: dict[str, list[Op]] = {}
        for op in self.ops:
            for o in op.operands:
                out.setdefault(o, []).append(op)
        return out


@dataclass(frozen=True)
class Module:
    """Graphs, weights, states, symbols (name, range) and metadata (`meta`: strings and numbers about the
    model)."""

    graphs: tuple[Graph, ...]
    weights: tuple[Weight, ...] = ()
    states: tuple[State, ...] = ()
    symbols: tuple[tuple[str, SymbolRange], ...] = ()
    meta: tuple[tuple[str, object], ...] = field(default=())

    def graph(self, name: str) -> Graph:
        for g in self.graphs:
            if g.name == name:
                return g
        raise KeyError(f"module has no graph @{name}; it has {', '.join('@' + g.name for g in self.graphs)}")

    def weight_map(self) -> Mapping[str, Weight]:
        return self._weights

    @cached_property
    def _weights(self) -> Mapping[str, Weight]:
        return {w.name: w for w in self.weights}

    def state_map(self) -> dict[str, State]:
        return {s.name: s for s in self.states}

    def replace_graph(self, graph: Graph) -> Module:
        return replace(self, graphs=tuple(graph if g.name == graph.name else g for g in self.graphs))

    def operand_type(self, graph: Graph, operand: str) -> TensorType:
        """Type of `%x` or `@w` (not of a state)."""
        return graph.values()[operand[1:]].type if operand[0] == "%" else self.weight_map()[operand[1:]].type


def walk_expr(e: WeightExpr) -> Iterator[WeightExpr]:
    """The expression and everything below it."""
    yield e
    if isinstance(e, Apply):
        for a in e.args:
            yield from walk_expr(a)


def rename(graph: Graph, mapping: Mapping[str, str]) -> Graph:
    """Operands replaced (`%a` -> `%b` or `@w`) throughout ops and outputs; definitions stay."""
    ops = tuple(replace(op, operands=tuple(mapping.get(o, o) for o in op.operands)) for op in graph.ops)
    return replace(graph, ops=ops, outputs=tuple(mapping.get(o, o) for o in graph.outputs))
