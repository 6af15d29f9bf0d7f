"""Parser of tile programs: canonical text, and the freer form people write.

In: text. Out: `Kernel`s; nested expressions are flattened under fresh names and missing types inferred. Every
mistake is a `ParseError` with its line underlined; text is data, nothing of it runs. Independent of
invariants (see `tile.verify`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import count

from lark import Lark, Token
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken, VisitError

import tilewright.ir.encodings  # noqa: F401  registers the built-in encodings
from tilewright.ir.affine import Affine
from tilewright.ir.encoding import EncodingError
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import ParseError, source_line
from tilewright.ir.text.tile_nodes import (
    BufferNode,
    Entry,
    Expr,
    ItemNode,
    KernelNode,
    LetNode,
    LoopNode,
    Problem,
    StmtNode,
    StoreNode,
)
from tilewright.ir.text.tile_syntax import Build  # fmt: skip
from tilewright.ir.tile.builder import arithmetic_dtype
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
    Span,
    Stmt,
    Store,
    TileType,
    index_shape,
)  # fmt: skip
from tilewright.ir.tile.op_record import TileTypeError
from tilewright.ir.tile.ops import TILE_OPS

MAX_TEXT = 1 << 26
Attrs = dict[str, object]


@lru_cache(maxsize=1)
def _lark() -> Lark:
    grammar = files("tilewright.ir.text").joinpath("tile.lark").read_text("utf-8")
    return Lark(grammar, parser="lalr", transformer=Build(), maybe_placeholders=True)


def parse_kernels(text: str, file: str = "<text>") -> tuple[Kernel, ...]:
    """The kernels of a text, in order. Raises ParseError."""
    if len(text) > MAX_TEXT:
        raise ParseError(f"text of {len(text)} characters; at most {MAX_TEXT} are read", file)
    try:
        nodes: tuple[KernelNode, ...] = _lark().parse(text)
        return tuple(_Elaborator(n).kernel() for n in nodes)
    except Problem as e:
        raise _error(e.message, text, file, e.at) from None
    except UnexpectedToken as e:
        what = "the end of the text" if e.token.type == "$END" else repr(str(e.token))
        line, column = (text.count("\n") + 1, 1) if e.token.type == "$END" else (e.line, e.column)
        raise ParseError(
            f"unexpected {what}", file, line, column, source_line(text, line), _expected(e.expected)
        ) from None
    except UnexpectedCharacters as e:
        message = f"unexpected character {text[e.pos_in_stream or 0]!r}"
        raise ParseError(
            message, file, e.line, e.column, source_line(text, e.line), _expected(e.allowed)
        ) from None
    except UnexpectedInput as e:
        raise ParseError(str(e).split("\n")[0], file) from None
    except VisitError as e:
        raise ParseError(str(e.orig_exc), file) from None


def parse_kernel(text: str, file: str = "<text>") -> Kernel:
    """The one kernel of a text. Raises ParseError, also if there are none or several."""
    found = parse_kernels(text, file)
    if len(found) != 1:
        raise ParseError(f"expected one kernel, found {len(found)}", file)
    return found[0]


def _error(message: str, text: str, file: str, at: Token | None) -> ParseError:
    line, column = (at.line or 0, at.column or 0) if at is not None else (0, 0)
    return ParseError(message, file, line, column, source_line(text, line))


def _expected(names: object) -> str:
    known = {t.name: str(t.pattern.value) for t in _lark().terminals if t.pattern.type == "str"}
    words = {
        "VALUE": "a %name",
        "KERNEL": "a @name",
        "NAME": "a name",
        "INT": "an integer",
        "FLOAT": "a number",
        "STRING": "a string",
        "SPECIAL": "inf",
        "COMPARE": "a comparison",
    }
    found = sorted(
        words.get(n) or f"`{known.get(n, n.lower())}`"
        for n in (names if isinstance(names, set | frozenset) else ())
    )
    return f"expected {', '.join(found[:12])}{' …' if len(found) > 12 else ''}" if found else ""


class _Elaborator:
    """One kernel: names in scope, their types, the block being written."""

    def __init__(self, node: KernelNode) -> None:
        self.node = node
        self.types: dict[str, TileType] = {}
        self.scope: dict[str, str] = {}
        self.buffers: dict[str, Buffer] = {}
        self.block: list[Stmt] = []
        taken = _names(node.body)
        self.fresh = (n for n in map(str, count()) if n not in taken)

    def kernel(self) -> Kernel:
        n = self.node
        params, locals_ = tuple(map(self.buffer, n.params)), tuple(map(self.buffer, n.locals))
        grid = tuple(GridAxis(a.var, a.extent, a.step, a.rows) for a in n.grid)
        self.statements(n.body)
        return Kernel(str(n.name)[1:], params, grid, locals_, tuple(self.block), n.schedules)

    def buffer(self, n: BufferNode) -> Buffer:
        lo, hi = n.range or (None, None)
        try:
            encoding = parse_encoding(str(n.encoding)) if n.encoding is not None else None
        except (
            ValueError,
            TypeError,
            KeyError,
            ArithmeticError,
        ) as e:  # a registered maker may object in its own way
            raise Problem(
                str(e) if isinstance(e, EncodingError) else f"encoding {n.encoding}: {e!r}", n.encoding
            ) from None
        b = Buffer(_bare(n.name), n.dtype, n.dims, encoding, n.record, lo, hi)
        self.buffers[b.name] = b
        return b

    # -------------------------------------------------------- statements
    def statements(self, body: Sequence[StmtNode]) -> None:
        for s in body:
            if isinstance(s, LetNode):
                self.let(s)
            elif isinstance(s, StoreNode):
                value = self.value(s.value)
                self.block.append(Store(_bare(s.buffer), self.index(s.index), value, s.disjoint))
            else:
                self.loop(s)

    def let(self, s: LetNode) -> None:
        if len(s.names) != 1:
            raise Problem(f"{len(s.names)} names for one value; only loops have several results", s.names[1])
        name = _bare(s.names[0])
        if s.value.op == "ref":
            self.scope[name] = self.ref(s.value)
            return
        self.scope.pop(name, None)
        self.value(s.value, name, s.type)

    def loop(self, s: LoopNode) -> None:
        if not len(s.items) == len(s.yields) or len(s.names) not in (0, len(s.items)):
            raise Problem(
                f"loop {s.var} carries {len(s.items)} values, yields {len(s.yields)}, names {len(s.names)} "
                "results",
                s.var,
            )
        lo, hi = self.affine(s.lo), self.affine(s.hi)
        inits = [self.value(i.init, None, i.type) for i in s.items]
        outer, scope = self.block, dict(self.scope)
        self.block = []
        heads = [
            self.carried(i, init, s.names[k] if s.names else None)
            for k, (i, init) in enumerate(zip(s.items, inits, strict=True))
        ]
        self.statements(s.body)
        yields = [self.value(y) for y in s.yields]
        body, self.block, self.scope = tuple(self.block), outer, scope
        results = [_bare(t) for t in s.names] or [next(self.fresh) for _ in s.items]
        for (_, t), r in zip(heads, results, strict=True):
            self.scope.pop(r, None)
            if t is not None:
                self.types[r] = t
        carries = tuple(
            Carry(name, init, t or self.type_of(init, s.var), y, r)
            for (name, t), init, y, r in zip(heads, inits, yields, results, strict=True)
        )
        self.block.append(For(str(s.var), lo, hi, s.step, carries, body))

    def carried(self, item: ItemNode, init: str, result: Token | None) -> tuple[str, TileType | None]:
        """A carry's name in the body; unnamed, the loop's own result name means the carried value there."""
        if item.name is not None:
            name = _bare(item.name)
            self.scope.pop(name, None)
        else:
            name = next(self.fresh)
            if result is not None:
                self.scope[_bare(result)] = name
        t = item.type or self.types.get(init)
        if t is not None:
            self.types[name] = t
        return name, t

    # -------------------------------------------------------- values
    def ref(self, e: Expr) -> str:
        name = _bare(e.at)
        return self.scope.get(name, name)

    def type_of(self, name: str, at: Token) -> TileType:
        if name not in self.types:
            raise Problem(f"%{name} is not defined here, so its type is unknown", at)
        return self.types[name]

    def value(self, e: Expr, name: str | None = None, t: TileType | None = None) -> str:
        """The value's name after emitting what it needs; `name` and `t` when the text gives them."""
        while e.op == "paren":
            e = e.args[0]
        if e.op == "ref":
            return self.ref(e)
        if e.op == "literal":
            t = t or TileType("f32")
            return self.emit(
                e, name, "const", (), {"value": e.attrs[0][1], "dtype": t.dtype, "shape": t.shape}, t
            )
        if e.op == "load":
            return self.load(e, name, t)
        record = TILE_OPS.get(e.op)
        if record is None:
            raise Problem(f"no tile operation {e.op!r}; known: {', '.join(TILE_OPS)}", e.at)
        if len(e.args) != record.arity:
            raise Problem(f"{e.op} takes {record.arity} operands, got {len(e.args)}", e.at)
        args = self.operands(e)
        return self.emit(e, name, e.op, args, self.attributes(e, args), t)

    def operands(self, e: Expr) -> tuple[str, ...]:
        """Operand names; bare numbers become rank-0 constants of a sibling's dtype."""
        made: list[str | None] = [None if _literal(a) is not None else self.value(a) for a in e.args]
        if None not in made:
            return tuple(m for m in made if m is not None)
        like = next((m for m in reversed(made) if m is not None), None)
        dtype = self.type_of(like, e.at).dtype if like is not None else "f32"
        return tuple(
            m if m is not None else self.value(a, None, TileType(dtype))
            for m, a in zip(made, e.args, strict=True)
        )

    def attributes(self, e: Expr, args: tuple[str, ...]) -> Attrs:
        attrs: Attrs = dict(e.attrs)
        if e.op == "bitcast":
            attrs["from"] = self.type_of(args[0], e.at).dtype
        elif e.op == "index":
            attrs["value"] = self.affine(attrs["value"])  # type: ignore[arg-type]
        elif "axis" in attrs and attrs["axis"] is None:
            attrs["axis"] = len(self.type_of(args[0], e.at).shape) - 1
        return attrs

    def emit(
        self, e: Expr, name: str | None, op: str, args: tuple[str, ...], attrs: Attrs, t: TileType | None
    ) -> str:
        if op == "const":
            attrs["value"] = _constant(attrs["value"], str(attrs["dtype"]), e.at)
        if set(attrs) != set(TILE_OPS[op].attrs):
            raise Problem(f"{op} needs {', '.join(TILE_OPS[op].attrs)}: write it in its own syntax", e.at)
        t = t or self.infer(e, op, args, attrs)
        name = name if name is not None else next(self.fresh)
        self.types[name] = t
        self.block.append(Let(name, op, args, t, tuple(sorted(attrs.items()))))
        return name

    def infer(self, e: Expr, op: str, args: tuple[str, ...], attrs: Mapping[str, object]) -> TileType:
        try:
            return TILE_OPS[op].infer([self.type_of(a, e.at) for a in args], attrs)
        except (TileTypeError, KeyError, IndexError, TypeError) as x:
            raise Problem(str(x), e.at) from None

    # -------------------------------------------------------- memory
    def load(self, e: Expr, name: str | None, t: TileType | None) -> str:
        buffer, attrs = _bare(e.at), dict(e.attrs)
        index = self.index(attrs["index"])
        if t is None:
            t = TileType(self.loaded_dtype(buffer, e.at), self.made_shape(index, e.at))
        name = name if name is not None else next(self.fresh)
        self.types[name] = t
        self.block.append(Load(name, buffer, index, t, attrs["other"]))
        return name

    def made_shape(self, index: tuple[Index, ...], at: Token) -> tuple[int | str, ...]:
        for i in index:
            if isinstance(i, Pick):
                self.type_of(i.tile, at)
        return index_shape(index, self.types)

    def loaded_dtype(self, buffer: str, at: Token) -> str:
        root = self.buffers.get(buffer.split(".")[0])
        if root is None:
            raise Problem(f"no buffer %{buffer}; known: {', '.join('%' + b for b in self.buffers)}", at)
        try:
            return arithmetic_dtype(root, buffer)
        except ValueError as x:
            raise Problem(str(x), at) from None

    def index(self, entries: tuple[Entry, ...]) -> tuple[Index, ...]:
        return tuple(self.entry(e) for e in entries)

    def entry(self, e: Entry) -> Index:
        start = self.affine(e.start)
        if e.size is not None:
            return Span(start, e.size)
        if (
            len(start.terms) == 1
            and not start.const
            and start.terms[0][1] == 1
            and start.terms[0][0].startswith("%")
        ):
            tile = start.terms[0][0][1:]
            if tile in self.types and self.types[tile].shape:
                return Pick(tile)
        return At(start)

    def affine(self, a: Affine) -> Affine:
        moved = {n: "%" + self.scope[n[1:]] for n in a.names if n.startswith("%") and n[1:] in self.scope}
        return a.bind(moved) if moved else a


def _bare(t: Token) -> str:
    return str(t)[1:]


def _literal(e: Expr) -> Expr | None:
    while e.op == "paren":
        e = e.args[0]
    return e if e.op == "literal" else None


def _constant(value: object, dtype: str, at: Token) -> int | float:
    """The value as a constant of `dtype` holds it: float for float dtypes, else a integer."""
    assert isinstance(value, int | float)
    if dtype[0] in "fb" and dtype != "bool":
        return float(value)
    if value != value or value in (float("inf"), float("-inf")) or int(value) != value:
        raise Problem(f"{value} is not a value of {dtype}", at)
    return int(value)


def _names(body: Sequence[StmtNode]) -> set[str]:
    """Every %name that the text gives to a value: fresh names avoid them."""
    out: set[str] = set()
    for s in body:
        if isinstance(s, LetNode | LoopNode):
            out.update(map(_bare, s.names))
        if isinstance(s, LoopNode):
            out.update(_bare(i.name) for i in s.items if i.name is not None)
            out |= _names(s.body)
    return out
