"""The data structures of Tile IR: kernels, on tiles whose shape is static once a schedule binds its sizes.

A kernel is a grid of instances over a body of statements: `Let` (a pure tile value), `Store`, `For` (with
carried values). All objects are frozen and compared by structure; names are strings (`%x` values and buffers,
bare loop variables, symbols and schedule parameters). Independent of instruction sets, C++, Triton or text
syntax.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from tilewright.ir.affine import Affine
from tilewright.ir.contraction_form import ContractionForm, OperandForm, Side
from tilewright.ir.encoding import Encoding
from tilewright.ir.layout import RecordSpec

#: A tile extent: an integer, or the name of a schedule parameter (`BM`) before binding.
Size = int | str


@dataclass(frozen=True)
class TileType:
    dtype: str
    shape: tuple[Size, ...] = ()


# ------------------------------------------------------------------ buffers
@dataclass(frozen=True)
class Buffer:
    """A kernel parameter or local, named without `%`. `dims` are affine over symbols (locals: over sizes).

    `encoding`: stored in that encoding; a load of `%w` decodes, a load of `%w.codes` reads a stream.
    `record`: an explicit packed layout (one stream called `values` is read as the buffer itself). Neither:
    dense row-major. `lo`/`hi`: every value lies in this range (integers only)."""

    name: str
    dtype: str
    dims: tuple[Affine, ...]
    encoding: Encoding | None = None
    record: RecordSpec | None = None
    lo: int | None = None
    hi: int | None = None

    @property
    def contraction_form(self) -> ContractionForm | None:
        """The dots that weights in this buffer support; None: they are decoded first."""
        return self.encoding.contraction_form if self.encoding is not None else None

    @property
    def operand_form(self) -> OperandForm | None:
        """Activations in this buffer as the operand of integer dots; None: they are floats."""
        return self.encoding.operand_form if self.encoding is not None else None

    @property
    def sides(self) -> tuple[Side, ...]:
        """Side streams, whose values are added to those of the codes."""
        return self.encoding.sides if self.encoding is not None else ()


# ------------------------------------------------------------------ indices
@dataclass(frozen=True)
class At:
    """A bare index: the tile has no axis for this dimension. Names may include rank-0 integer tiles
    (`%slot`)."""

    start: Affine


@dataclass(frozen=True)
class Span:
    """`start:size`, element coordinates start, start+1, …: an axis of the tile."""

    start: Affine
    size: Size


@dataclass(frozen=True)
class Pick:
    """An index tile of rank 1: an axis of the tile, whose coordinates are the values of the index tile plus
    `offset`."""

    tile: str


Index = At | Span | Pick


# ------------------------------------------------------------------ statements
@dataclass(frozen=True)
class Let:
    """`%name = op args {attrs} : type`. Attribute values are int, float, str or tuples of them."""

    name: str
    op: str
    args: tuple[str, ...]
    type: TileType
    attrs: tuple[tuple[str, object], ...] = ()

    def attr(self, key: str) -> object:
        return next(v for k, v in self.attrs if k == key)


@dataclass(frozen=True)
class Load:
    """`%name = load %buffer[index] else other`. Outside the buffer's logical dims it reads `other`.

    `buffer` may name a stream (`w.codes`). The result has the dtype of arithmetic (`u4` loads as `u8`)."""

    name: str
    buffer: str
    index: tuple[Index, ...]
    type: TileType
    other: float = 0.0

    op = "load"

    @property
    def args(self) -> tuple[str, ...]:
        return tuple(i.tile for i in self.index if isinstance(i, Pick)) + index_scalars(self.index)


@dataclass(frozen=True)
class Store:
    """`store %buffer[index], %value`: the value broadcasts to the shape of the index; nothing is written
    outside the buffer.

    `disjoint`: the author's promise, for indices that are loaded or computed, that no other instance accesses
    what this store writes."""

    buffer: str
    index: tuple[Index, ...]
    value: str
    disjoint: bool = False


@dataclass(frozen=True)
class Carry:
    """A carried value: its name inside the body, its initial value, what the body yields, its name after the
    loop."""

    name: str
    init: str
    type: TileType
    yields: str
    result: str


@dataclass(frozen=True)
class For:
    """`for var in lo..hi by step`: var takes lo, lo+step, …; the last iteration may be partial.

    Bounds are affine over symbols, grid and loop variables, sizes and rank-0 tiles."""

    var: str
    lo: Affine
    hi: Affine
    step: Size
    carries: tuple[Carry, ...]
    body: tuple[Stmt, ...]


Stmt = Let | Load | Store | For


@dataclass(frozen=True)
class GridAxis:
    """`grid [rows] var in extent by step`: var is the first element coordinate of the instance's tile.

    `rows`: the tile's height varies at run time between 1 and `step` (balanced blocks), and `step`, which
    must be a schedule parameter, is re-bound to that height; no masks are needed along it."""

    var: str
    extent: Affine
    step: Size
    rows: bool = False


@dataclass(frozen=True)
class Condition:
    """`symbol op value` with op among <= < >= > == (a conjunction is a tuple of these)."""

    symbol: str
    op: str
    value: int

    def holds(self, values: Mapping[str, int]) -> bool:
        x = values[self.symbol]
        return {
            "<=": x <= self.value,
            "<": x < self.value,
            ">=": x >= self.value,
            ">": x > self.value,
            "==": x == self.value,
        }[self.op]


@dataclass(frozen=True)
class Schedule:
    """How, never what: sizes, loop order (grid axes outer to inner), thread axis, staging, prefetch.

    `target` is the name of a CPU level, `*` for any CPU level, or `triton`. `stages`: (value name, grid
    axis): keep that value in a local buffer filled at that axis. `prefetch`: (loop variable or `copy`,
    iterations ahead). `options`: options that only one renderer reads (`foreseen`, `epilogue`, `sums`,
    `parts`). `threads`: one grid axis, or several (`n h`) taken together. The first schedule whose target and
    `when` fit is used."""

    target: str
    sizes: tuple[tuple[str, int], ...]
    when: tuple[Condition, ...] = ()
    order: tuple[str, ...] = ()
    threads: str = ""
    stages: tuple[tuple[str, str], ...] = ()
    prefetch: tuple[tuple[str, int], ...] = ()
    options: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Kernel:
    """A tile program. `params` in call order; `symbols` are the run-time integers its extents use, in order
    of first use."""

    name: str
    params: tuple[Buffer, ...]
    grid: tuple[GridAxis, ...]
    locals: tuple[Buffer, ...]
    body: tuple[Stmt, ...]
    schedules: tuple[Schedule, ...] = field(default=())

    def buffer(self, name: str) -> Buffer:
        """The parameter or local that `name`, possibly a stream such as `w.codes`, belongs to; KeyError if
        none."""
        root = name.split(".")[0]
        for b in (*self.params, *self.locals):
            if b.name == root:
                return b
        raise KeyError(f"kernel {self.name} has no buffer %{root}")

    @property
    def symbols(self) -> tuple[str, ...]:
        sizes: set[Size] = {name for s in self.schedules for name, _ in s.sizes}
        sizes |= {a.step for a in self.grid} | {s.step for s in walk(self.body) if isinstance(s, For)}
        inner = {a.var for a in self.grid} | {s.var for s in walk(self.body) if isinstance(s, For)}
        affines = [d for b in self.params for d in b.dims] + [a.extent for a in self.grid]
        affines += [a for s in walk(self.body) if isinstance(s, For) for a in (s.lo, s.hi)]
        affines += [
            i.start
            for s in walk(self.body)
            if isinstance(s, Load | Store)
            for i in s.index
            if not isinstance(i, Pick)
        ]
        affines += index_values(self.body)
        names = [
            n for a in affines for n in a.names if not n.startswith("%") and n not in inner and n not in sizes
        ]
        return tuple(dict.fromkeys(names))

    def loaded(self) -> tuple[str, ...]:
        """Names of the parameters that the body loads from: a parameter that is also written is updated in
        place."""
        params = {b.name for b in self.params}
        names = [s.buffer.split(".")[0] for s in walk(self.body) if isinstance(s, Load)]
        return tuple(dict.fromkeys(n for n in names if n in params))

    def written(self) -> tuple[str, ...]:
        """Names of the parameters that the body stores to."""
        params = {b.name for b in self.params}
        names = [s.buffer.split(".")[0] for s in walk(self.body) if isinstance(s, Store)]
        return tuple(dict.fromkeys(n for n in names if n in params))


def index_values(body: tuple[Stmt, ...]) -> list[Affine]:
    """The expressions that `index` ops turn into values; some sizes are used only there."""
    values = [dict(s.attrs).get("value") for s in walk(body) if isinstance(s, Let) and s.op == "index"]
    return [v for v in values if isinstance(v, Affine)]


# ------------------------------------------------------------------ walking and rebuilding
def walk(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """Every statement, outer before inner, in order."""
    for s in body:
        yield s
        if isinstance(s, For):
            yield from walk(s.body)


def index_scalars(index: tuple[Index, ...]) -> tuple[str, ...]:
    """Names (`%slot` without the sign) of rank-0 tiles used in an index."""
    return tuple(n[1:] for i in index if not isinstance(i, Pick) for n in i.start.names if n.startswith("%"))


def index_shape(index: tuple[Index, ...], types: Mapping[str, TileType]) -> tuple[Size, ...]:
    """The shape of the tile at an index."""
    out: list[Size] = []
    for i in index:
        if isinstance(i, Span):
            out.append(i.size)
        elif isinstance(i, Pick):
            out.append(types[i.tile].shape[0])
    return tuple(out)


def bind(kernel: Kernel, values: Mapping[str, int]) -> Kernel:
    """The kernel with schedule parameters (and any symbols named) replaced by integers; the result has no
    schedules."""
    return replace(
        kernel,
        params=tuple(_bind_buffer(b, values) for b in kernel.params),
        grid=tuple(replace(a, extent=a.extent.bind(values), step=_size(a.step, values)) for a in kernel.grid),
        locals=tuple(_bind_buffer(b, values) for b in kernel.locals),
        body=tuple(_bind_stmt(s, values) for s in kernel.body),
        schedules=(),
    )


def _size(s: Size, values: Mapping[str, int]) -> Size:
    return values.get(s, s) if isinstance(s, str) else s


def _bind_type(t: TileType, values: Mapping[str, int]) -> TileType:
    return TileType(t.dtype, tuple(_size(s, values) for s in t.shape))


def _bind_buffer(b: Buffer, values: Mapping[str, int]) -> Buffer:
    return replace(b, dims=tuple(d.bind(values) for d in b.dims))


def _bind_index(index: tuple[Index, ...], values: Mapping[str, int]) -> tuple[Index, ...]:
    def one(i: Index) -> Index:
        if isinstance(i, Pick):
            return i
        return (
            At(i.start.bind(values))
            if isinstance(i, At)
            else Span(i.start.bind(values), _size(i.size, values))
        )

    return tuple(one(i) for i in index)


def _bind_stmt(s: Stmt, values: Mapping[str, int]) -> Stmt:
    if isinstance(s, Let):
        attrs = tuple((k, _bind_attr(v, values)) for k, v in s.attrs)
        return replace(s, type=_bind_type(s.type, values), attrs=attrs)
    if isinstance(s, Load):
        return replace(s, index=_bind_index(s.index, values), type=_bind_type(s.type, values))
    if isinstance(s, Store):
        return replace(s, index=_bind_index(s.index, values))
    return replace(
        s,
        lo=s.lo.bind(values),
        hi=s.hi.bind(values),
        step=_size(s.step, values),
        carries=tuple(replace(c, type=_bind_type(c.type, values)) for c in s.carries),
        body=tuple(_bind_stmt(x, values) for x in s.body),
    )


def _bind_attr(v: object, values: Mapping[str, int]) -> object:
    if isinstance(v, tuple):
        return tuple(_bind_attr(x, values) for x in v)
    return v.bind(values) if isinstance(v, Affine) else values.get(v, v) if isinstance(v, str) else v
