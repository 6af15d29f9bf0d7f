"""Parser of modules: the inverse of `print_module`.

In: text. Out: a `Module` as written; what it says is checked by `verify_module`, not here. Every mistake is a
`ParseError` with its line underlined. Text is data: nothing of it runs, and its size, depth and numbers are
bounded.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from lark import Token, v_args

from tilewright.ir.encoding import Encoding
from tilewright.ir.errors import ParseError, source_line
from tilewright.ir.graph.core import (
    Apply,
    Graph,
    Inline,
    Location,
    Module,
    Op,
    State,
    Stored,
    Value,
    Weight,
    WeightExpr,
)
from tilewright.ir.numbers import STORED
from tilewright.ir.selection import Selection, SelectionError, parse_selection
from tilewright.ir.text.attributes import (
    Problem,
    ValueBuilder,
    check_depth,
    grammar,
    parse_attrs,
    parse_type,
    read_int,
    read_name,
    read_operand,
    run_lark,
    unquote,
)
from tilewright.ir.types import SymbolRange, TensorType, type_text

MAX_TEXT = 1 << 28
MAX_INLINE = 1 << 20
T = TypeVar("T")
#: what the fields of a cache hold; the first six must be given
_FIELDS: dict[str, Any] = {
    **dict.fromkeys(("heads", "k_dim", "v_dim"), int | None), "k": Encoding, "v": Encoding,
    **dict.fromkeys(("context", "window", "evicts", "observed", "shares"), int | None), "select": Selection,
    "recent": int,
}  # fmt: skip

_ORIGIN = re.compile(
    r'\s*#\s*(?:(?P<file>"(?:[^"\\\n]|\\.)*"|[^\s"\[\]#:]+):(?P<line>-?[0-9]+)'
    r'(?:\s+(?P<scope>"(?:[^"\\\n]|\\.)*"|[^\s"\[\]#]+))?)?\s*(?:\[(?P<passes>[^\[\]\n"#]*)\])?\s*\Z'
)


def parse_module(text: str, file: str = "<text>") -> Module:
    """The module a text stands for. Raises ParseError."""
    built: Module = parse_text(text, file, "module", ModuleBuilder)
    return built


def parse_text(text: str, file: str, start: str, builder: type[ValueBuilder]) -> Any:
    """Run one start rule over a whole text, problems as ParseErrors."""
    if len(text) > MAX_TEXT:
        raise ParseError(f"text of {len(text)} characters; at most {MAX_TEXT} are read", file)
    try:
        check_depth(text)
        return run_lark(text, grammar(start, builder))
    except Problem as e:
        raise parse_error(e, text, file) from None


def parse_error(e: Problem, text: str, file: str) -> ParseError:
    line = text.count("\n", 0, e.at) + 1
    column = e.at - (text.rfind("\n", 0, e.at) + 1) + 1
    return ParseError(e.message, file, line, column, source_line(text, line), e.hint)


def inside(token: Token, read: Callable[[str], T]) -> T:
    """Read a token that has a grammar of its own; problems point into the whole text."""
    try:
        return read(str(token))
    except Problem as e:
        raise Problem(e.message, (token.start_pos or 0) + e.at, e.hint) from None


def at_of(token: Token) -> int:
    return token.start_pos or 0


@v_args(inline=True)
class ModuleBuilder(ValueBuilder):
    """Rules of modules as their parts; each top-level item is a (kind, part) pair."""

    # -------------------------------------------------------------- items
    def meta(self, key: str, value: object) -> tuple[str, object]:
        return "meta", (key, value)

    def word(self, t: Token) -> str:
        return unquote(t, at_of(t)) if t[0] == '"' else str(t)

    def symbol(self, name: Token, lo: int, hi: int | None) -> tuple[str, object]:
        return "symbol", (str(name), SymbolRange(lo, hi))

    def bound(self, t: Token) -> int:
        return read_int(t)

    def state(self, name: Token, *fields: tuple[str, Token, object] | None) -> tuple[str, object]:
        given = {f[0]: f for f in fields if f is not None}
        for f in given.values():
            if not isinstance(f[2], _FIELDS.get(f[0], ())):
                raise Problem(
                    f"unknown cache field {f[0]}={f[1]}", at_of(f[1]), f"expected {', '.join(_FIELDS)}"
                )
        missing = [n for n in list(_FIELDS)[:6] if n not in given]
        if missing:
            raise Problem(f"the cache @{read_name(name)} does not state its {missing[0]}", at_of(name))
        values: dict[str, Any] = {n: f[2] for n, f in given.items()}
        for flag in ("evicts", "observed"):
            if values.get(flag, 0) not in (0, 1):
                raise Problem(f"{flag}={given[flag][1]}", at_of(given[flag][1]), "expected 0 or 1")
            values[flag] = bool(values.get(flag, 0))
        return "state", State(read_name(name), **values)

    def field(self, key: Token, value: Token) -> tuple[str, Token, object]:
        if value.type == "INT":
            return str(key), value, read_int(value)
        if key == "select":
            return str(key), value, _selection(value)
        return str(key), value, None if value == "none" else self._encoding(value)

    # -------------------------------------------------------------- weights
    def weight(self, name: Token, type: Token, source: WeightExpr) -> tuple[str, object]:
        return "weight", Weight(inside(name, read_name), inside(type, parse_type), source)

    def stored(self, file: Token, key: Token) -> Stored:
        return Stored(unquote(file, at_of(file)), unquote(key, at_of(key)))

    def inline(self, type: Token, data: Token) -> Inline:
        t = inside(type, parse_type)
        try:
            raw = base64.b64decode(str(data)[1:-1].encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError) as e:
            raise Problem(f"not base64: {e}", at_of(data)) from None
        shape = tuple(d for d in t.shape if isinstance(d, int) and d >= 0)
        want = math.prod(shape) * STORED[t.dtype]().itemsize
        if len(shape) != t.rank or t.encoding is not None or len(raw) != want or want > MAX_INLINE:
            expected = f"at most {MAX_INLINE}" if want > MAX_INLINE else str(want)
            raise Problem(f"inline {type_text(t)} of {len(raw)} bytes; expected {expected}", at_of(data))
        return Inline(t.dtype, shape, raw)

    def apply(self, fn: Token, attrs: Token | None, *args: WeightExpr | None) -> Apply:
        pairs = inside(attrs, parse_attrs) if attrs is not None else ()
        return Apply(str(fn), tuple(a for a in args if a is not None), pairs)

    # -------------------------------------------------------------- graphs
    def input(self, name: Token, type: Token) -> Value:
        return Value(inside(name, read_name), inside(type, parse_type))

    def values(self, *names: Token) -> tuple[Token, ...]:
        return names

    def operands(self, *names: Token) -> tuple[str, ...]:
        return tuple(inside(n, read_operand) for n in names)

    def types(self, *tokens: Token) -> tuple[TensorType, ...]:
        return tuple(inside(t, parse_type) for t in tokens)

    def op(
        self,
        names: tuple[Token, ...] | None,
        op: Token,
        operands: tuple[str, ...] | None,
        attrs: Token | None,
        types: tuple[TensorType, ...] | None,
        region: Token | None,
        origin: Token | None,
    ) -> Op:
        names, types = names or (), types or ()
        if len(names) != len(types):
            raise Problem(f"{op} names {len(names)} results but has {len(types)} types", at_of(op))
        results = tuple(Value(inside(n, read_name), t) for n, t in zip(names, types, strict=True))
        pairs = inside(attrs, parse_attrs) if attrs is not None else ()
        loc, passes = read_origin(origin) if origin is not None else (None, ())
        number = read_int(region[1:]) if region is not None else None
        return Op(str(op), operands or (), results, pairs, loc, passes, number)

    def one_result(self, t: Token) -> tuple[tuple[str | None, Token], ...]:
        return ((None, t),)

    def result(self, name: str | None, t: Token) -> tuple[str | None, Token]:
        return name, t

    def results(self, *results: tuple[str | None, Token] | None) -> tuple[tuple[str | None, Token], ...]:
        return tuple(r for r in results if r is not None)

    def graph(self, name: Token, *rest: Any) -> tuple[str, object]:
        inputs = tuple(v for v in rest if isinstance(v, Value))
        ops = tuple(o for o in rest if isinstance(o, Op))
        results, outputs = next(r for r in rest if isinstance(r, tuple)), rest[-1] or ()
        names = [n for n, _ in results if n is not None]
        if len(results) != len(outputs) or len(names) not in (0, len(results)):
            count = f"{len(results)} results ({len(names)} named)"
            raise Problem(
                f"graph @{read_name(name)} declares {count} and returns {len(outputs)}", at_of(name)
            )
        return "graph", (Graph(inside(name, read_name), inputs, ops, outputs, tuple(names)), results)

    # -------------------------------------------------------------- module
    def module(self, *items: tuple[str, Any]) -> Module:
        parts = sort_items(items)
        weights = tuple(parts["weight"])
        types = {"@" + w.name: w.type for w in weights}
        graphs = []
        for g, declared in parts["graph"]:
            _check_results(g, declared, types)
            graphs.append(g)
        return Module(
            tuple(graphs), weights, tuple(parts["state"]), tuple(parts["symbol"]), tuple(parts["meta"])
        )


def _selection(t: Token) -> Selection:
    try:
        return parse_selection(str(t))
    except SelectionError as e:
        raise Problem(str(e), at_of(t)) from None


def sort_items(items: Sequence[tuple[str, Any]]) -> dict[str, list[Any]]:
    """Top-level items by kind, order kept."""
    out: dict[str, list[Any]] = {k: [] for k in ("meta", "symbol", "weight", "state", "graph", "plan")}
    for kind, part in items:
        out[kind].append(part)
    return out


def _check_results(
    g: Graph, declared: Sequence[tuple[str | None, Token]], weights: dict[str, TensorType]
) -> None:
    types = {**weights, **{"%" + n: v.type for n, v in g.values().items()}}
    for operand, (_, token) in zip(g.outputs, declared, strict=True):
        actual = types.get(operand)
        if token != "?" and (actual is None or inside(token, parse_type) != actual):
            got = "is not defined" if actual is None else f"is {type_text(actual)}"
            raise Problem(f"graph @{g.name} declares the result {token}, but {operand} {got}", at_of(token))


def read_origin(token: Token) -> tuple[Location | None, tuple[str, ...]]:
    """Location and passes from the comment on an op's line."""
    m = _ORIGIN.match(token)
    assert m is not None, "the grammar accepts only what this expression matches"
    file, line, scope, passes = m.group("file", "line", "scope", "passes")
    loc = None
    if file is not None:
        plain = [unquote(p, at_of(token)) if p[:1] == '"' else p for p in (file, scope or "")]
        loc = Location(plain[0], read_int(line), plain[1])
    return loc, tuple(p.strip() for p in passes.split(",")) if passes and passes.strip() else ()
