"""The builder of tile programs, with which templates and tile decodes are written.

In: buffers, sizes, operator expressions on `Tile` handles. Out: a frozen `Kernel`. The type of each value is
inferred when it is created, so that a `TileTypeError` is raised at the line that is wrong. Independent of
targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tilewright.ir.affine import Affine
from tilewright.ir.encoding import Encoding
from tilewright.ir.layout import RecordSpec
from tilewright.ir.tile.core import (
    At,
    Buffer,
    Carry,
    For,
    GridAxis,
    Index,
    Kernel,
    Let,
    Load,
    Pick,
    Schedule,
    Size,
    Span,
    Stmt,
    Store,
    TileType,
    index_shape,
)
from tilewright.ir.tile.op_record import TileTypeError
from tilewright.ir.tile.ops import TILE_OPS

AffineLike = int | str | Affine


@dataclass(frozen=True)
class Tile:
    """A handle on a tile value inside one builder. Arithmetic with Python numbers makes constants of its
    dtype."""

    b: KernelBuilder
    name: str
    type: TileType

    @property
    def dtype(self) -> str:
        return self.type.dtype

    @property
    def shape(self) -> tuple[Size, ...]:
        return self.type.shape

    def __add__(self, o: Tile | float) -> Tile:
        return self.b.op("add", self, o)

    def __radd__(self, o: float) -> Tile:
        return self.b.op("add", o, self)

    def __sub__(self, o: Tile | float) -> Tile:
        return self.b.op("sub", self, o)

    def __rsub__(self, o: float) -> Tile:
        return self.b.op("sub", o, self)

    def __mul__(self, o: Tile | float) -> Tile:
        return self.b.op("mul", self, o)

    def __rmul__(self, o: float) -> Tile:
        return self.b.op("mul", o, self)

    def __truediv__(self, o: Tile | float) -> Tile:
        return self.b.op("div", self, o)

    def __rtruediv__(self, o: float) -> Tile:
        return self.b.op("div", o, self)

    def __neg__(self) -> Tile:
        return self.b.op("neg", self)

    def __and__(self, o: Tile | int) -> Tile:
        return self.b.op("and", self, o)

    def __or__(self, o: Tile | int) -> Tile:
        return self.b.op("or", self, o)

    def __rshift__(self, o: Tile | int) -> Tile:
        return self.b.op("shr", self, o)

    def __lshift__(self, o: Tile | int) -> Tile:
        return self.b.op("shl", self, o)

    def index(self) -> Affine:
        """A rank-0 integer tile as a name for index and bound expressions."""
        if self.shape != ():
            raise TileTypeError(f"%{self.name} has shape {self.shape}: only rank-0 tiles index")
        return Affine.of(f"%{self.name}")

    def named(self, name: str) -> Tile:
        """The same value under a chosen name, by which schedules can stage it."""
        return self.b.rename(self, name)


@dataclass
class Loop:
    """Inside `with b.loop(...)`: `var` is the first element coordinate of the iteration, `carried` the
    carried values; the body calls `yield_`. Afterwards `results` holds their last values."""

    var: Affine
    carried: tuple[Tile, ...]
    yielded: tuple[Tile, ...] = ()
    results: tuple[Tile, ...] = ()

    def yield_(self, *values: Tile) -> None:
        self.yielded = values


@dataclass
class KernelBuilder:
    name: str
    params: list[Buffer] = field(default_factory=list)
    grids: list[GridAxis] = field(default_factory=list)
    locals: list[Buffer] = field(default_factory=list)
    schedules: list[Schedule] = field(default_factory=list)
    #: number of the first fresh name, for builders that add to an existing kernel
    first: int = 0

    def __post_init__(self) -> None:
        self.types: dict[str, TileType] = {}
        self._blocks: list[list[Stmt]] = [[]]
        self._count = self.first

    # -------------------------------------------------------------- declarations
    def param(
        self, name: str, dtype: str, dims: Sequence[AffineLike], encoding: Encoding | None = None,
        record: RecordSpec | None = None, lo: int | None = None, hi: int | None = None,
    ) -> Buffer:  # fmt: skip
        b = Buffer(name, dtype, tuple(Affine.of(d) for d in dims), encoding, record, lo, hi)
        self.params.append(b)
        return b

    def local(
        self, name: str, dtype: str, dims: Sequence[AffineLike], record: RecordSpec | None = None
    ) -> Buffer:
        b = Buffer(name, dtype, tuple(Affine.of(d) for d in dims), None, record)
        self.locals.append(b)
        return b

    def grid(self, var: str, extent: AffineLike, step: Size = 1, rows: bool = False) -> Affine:
        self.grids.append(GridAxis(var, Affine.of(extent), step, rows))
        return Affine.of(var)

    def schedule(self, target: str, **sizes: int) -> None:
        """Add a schedule that only binds sizes; for more, append a `Schedule(...)` to `schedules`."""
        self.schedules.append(Schedule(target, tuple(sorted(sizes.items()))))

    # -------------------------------------------------------------- values
    def fresh(self) -> str:
        self._count += 1
        return str(self._count - 1)

    def op(self, name: str, *args: Tile | float, **attrs: object) -> Tile:
        """`name` applied to tiles; Python numbers become rank-0 constants of the first tile operand's
        dtype."""
        record = TILE_OPS.get(name)
        if record is None:
            raise TileTypeError(f"no tile operation {name!r}")
        like = next((a for a in reversed(args) if isinstance(a, Tile)), None)
        tiles = [a if isinstance(a, Tile) else self.const(a, like.dtype if like else "f32") for a in args]
        if len(tiles) != record.arity:
            raise TileTypeError(f"{name} takes {record.arity} operands, got {len(tiles)}")
        t = record.infer([x.type for x in tiles], attrs)
        return self._let(
            Let(self.fresh(), name, tuple(x.name for x in tiles), t, tuple(sorted(attrs.items())))
        )

    def const(self, value: float, dtype: str = "f32", shape: Sequence[Size] = ()) -> Tile:
        value = value if dtype[0] in "fb" and dtype != "bool" else int(value)
        return self.op(
            "const",
            value=float(value) if dtype[0] in "fb" and dtype != "bool" else value,
            dtype=dtype,
            shape=tuple(shape),
        )

    def index_value(self, at: AffineLike) -> Tile:
        """An affine expression, such as a loop variable, as a rank-0 i32 tile."""
        return self.op("index", value=Affine.of(at))

    def iota(self, size: Size) -> Tile:
        return self.op("iota", size=size)

    def cast(self, dtype: str, x: Tile) -> Tile:
        return x if x.dtype == dtype else self.op("cast", x, dtype=dtype)

    def bitcast(self, dtype: str, x: Tile) -> Tile:
        return self.op("bitcast", x, **{"dtype": dtype, "from": x.dtype})

    def reduce(self, fn: str, x: Tile, axis: int = -1) -> Tile:
        return self.op("reduce", x, fn=fn, axis=axis % len(x.shape))

    def scan(self, fn: str, x: Tile, axis: int = -1) -> Tile:
        return self.op("scan", x, fn=fn, axis=axis % len(x.shape))

    def dot(self, acc: Tile, a: Tile, b: Tile) -> Tile:
        """acc[m, n] + sum over k of a[m, k] * b[n, k]."""
        return self.op("dot", acc, a, b)

    def bit_dot(self, acc: Tile, a: Tile, b: Tile) -> Tile:
        """acc[m, n] + sum over k of a[m, k] * b[n, k], where b are bits: sums of four products first, which
        can be looked up in a table (T-MAC)."""
        return self.op("bit_dot", acc, a, b)

    def transpose(self, x: Tile) -> Tile:
        return self.op("transpose", x)

    def expand(self, x: Tile, axis: int) -> Tile:
        return self.op("expand", x, axis=axis)

    def reshape(self, x: Tile, *shape: Size) -> Tile:
        return self.op("reshape", x, shape=tuple(shape))

    def lookup(self, table: Tile, codes: Tile) -> Tile:
        return self.op("lookup", table, codes)

    def select(self, cond: Tile, a: Tile | float, b: Tile | float) -> Tile:
        like = a if isinstance(a, Tile) else b
        assert isinstance(like, Tile), "select needs a tile operand"
        a, b = (v if isinstance(v, Tile) else self.const(v, like.dtype) for v in (a, b))
        return self.op("select", cond, a, b)

    def within(self, x: Tile, loop: Affine, axis: int, other: float) -> Tile:
        """x where the loop's index along `axis` lies inside its extent, else `other`. It costs nothing except
        in a partial last iteration."""
        return self.op("within", x, loop=loop.names[0], axis=axis, other=float(other))

    # -------------------------------------------------------------- memory
    def load(self, buffer: Buffer | str, *index: object, other: float = 0.0) -> Tile:
        """`load(x, slice(i, "BM"), k)`; `buffer` may be `"w.codes"`. Outside the logical dims it reads
        `other`."""
        name = buffer.name if isinstance(buffer, Buffer) else buffer
        entries = self._entries(index)
        root = self._buffer(name)
        if len(entries) != len(root.dims):
            raise TileTypeError(f"load %{name}: {len(entries)} indices for {len(root.dims)} dimensions")
        t = TileType(arithmetic_dtype(root, name), index_shape(entries, self.types))
        s = Load(self.fresh(), name, entries, t, float(other))
        self.types[s.name] = t
        self._blocks[-1].append(s)
        return Tile(self, s.name, t)

    def store(self, buffer: Buffer, index: Sequence[object], value: Tile, disjoint: bool = False) -> None:
        self._blocks[-1].append(Store(buffer.name, self._entries(index), value.name, disjoint))

    # -------------------------------------------------------------- loops
    @contextmanager
    def loop(
        self, var: str, lo: AffineLike, hi: AffineLike, step: Size, init: Sequence[Tile] = ()
    ) -> Iterator[Loop]:
        names = [self.fresh() for _ in init]
        carried = tuple(self._bindname(n, i.type) for n, i in zip(names, init, strict=True))
        handle = Loop(Affine.of(var), carried)
        self._blocks.append([])
        yield handle
        body = tuple(self._blocks.pop())
        if len(handle.yielded) != len(init):
            raise TileTypeError(f"loop {var}: {len(init)} carried values, {len(handle.yielded)} yielded")
        carries = []
        for c, i, y in zip(carried, init, handle.yielded, strict=True):
            if y.type != i.type:
                raise TileTypeError(f"loop {var}: carried {i.type} but yields {y.type}")
            carries.append(Carry(c.name, i.name, i.type, y.name, self.fresh()))
        self._blocks[-1].append(For(var, Affine.of(lo), Affine.of(hi), step, tuple(carries), body))
        handle.results = tuple(self._bindname(c.result, c.type) for c in carries)

    def build(self) -> Kernel:
        if len(self._blocks) != 1:
            raise TileTypeError("build() inside an open loop")
        return Kernel(
            self.name,
            tuple(self.params),
            tuple(self.grids),
            tuple(self.locals),
            tuple(self._blocks[0]),
            tuple(self.schedules),
        )

    # -------------------------------------------------------------- inside
    def rename(self, x: Tile, name: str) -> Tile:
        block = self._blocks[-1]
        last = block[-1]
        if not isinstance(last, Let | Load) or last.name != x.name:
            raise TileTypeError(f"named({name!r}): only the value just created can be named")
        from dataclasses import replace

        block[-1] = replace(last, name=name)
        self.types[name] = self.types.pop(x.name)
        return Tile(self, name, x.type)

    def _bindname(self, name: str, t: TileType) -> Tile:
        self.types[name] = t
        return Tile(self, name, t)

    def _let(self, s: Let) -> Tile:
        self.types[s.name] = s.type
        self._blocks[-1].append(s)
        return Tile(self, s.name, s.type)

    def _buffer(self, name: str) -> Buffer:
        root = name.split(".")[0]
        return next(b for b in [*self.params, *self.locals] if b.name == root)

    def _entries(self, index: Sequence[object]) -> tuple[Index, ...]:
        out: list[Index] = []
        for i in index:
            if isinstance(i, slice):
                out.append(Span(Affine.of(i.start), i.stop))
            elif isinstance(i, Tile):
                out.append(Pick(i.name) if i.shape else At(i.index()))
            elif isinstance(i, At | Span | Pick):
                out.append(i)
            else:
                out.append(At(Affine.of(i)))  # type: ignore[arg-type]
        return tuple(out)


def static_shape(buffer: Buffer) -> tuple[int | None, ...]:
    """The buffer's dims, None where the extent is known only at run time."""
    return tuple(d.as_int() if d.is_const else None for d in buffer.dims)


def arithmetic_dtype(buffer: Buffer, name: str) -> str:
    """The dtype of a load of `name` (a buffer or one of its streams): unsigned streams narrower than a byte
    give u8."""
    stream = name.partition(".")[2]
    dtype = buffer.dtype
    if stream:
        spec = buffer.record or (buffer.encoding.record(static_shape(buffer)) if buffer.encoding else None)
        found = [s for s in spec.streams if s.name == stream] if spec else []
        if not found:
            raise TileTypeError(f"buffer %{buffer.name} has no stream {stream!r}")
        dtype = found[0].dtype
    return "u8" if dtype in ("u1", "u2", "u3", "u4", "u5", "u6", "u7") else dtype
