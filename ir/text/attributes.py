"""Text of the smallest parts of Graph IR, printed and parsed: names, dimensions, types, attribute values.

Dimensions are read as arithmetic on declared names, never evaluated as Python. A mistake is a `Problem` with
its offset in the text; the parsers above turn it into a `ParseError` with line and column. Equal texts are
parsed once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken, VisitError

import tilewright.ir.encodings  # noqa: F401  registers the built-in encodings
from tilewright.ir.encoding import EncodingError
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.types import BITS, TensorType, symbol

if TYPE_CHECKING:
    import sympy

_BARE = re.compile(r"[A-Za-z0-9_]+([.\-][A-Za-z0-9_]+)*\Z")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
#: words that mean a value, not a symbol
CONSTANTS: dict[str, object] = {"true": True, "false": False, "none": None, "inf": math.inf, "nan": math.nan}
FUNCTIONS = ("floor", "ceiling", "Max", "Min", "Mod")
MAX_DIGITS, MAX_TERMS, MAX_POWER, MAX_DEPTH = 19, 16, 8, 64
#: as far as 64 bits reach, downwards
MAX_INT = 1 << 63


class Problem(ValueError):
    """A mistake `at` an offset of the text being read."""

    def __init__(self, message: str, at: int = 0, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.at, self.hint = message, at, hint


# ------------------------------------------------------------------ printing
def name_text(sign: str, name: str) -> str:
    """`%x`, `@w.0`, or `@"any text"`."""
    return sign + (name if _BARE.match(name) else quoted(name))


def operand_text(operand: str) -> str:
    return name_text(operand[:1], operand[1:])


def word_text(word: str) -> str:
    return word if _WORD.match(word) else quoted(word)


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=not text.isprintable())


@lru_cache(maxsize=1 << 14)
def dim_text(d: int | sympy.Expr) -> str:
    return str(d)


def value_text(v: object) -> str:
    """An attribute value: none, true, 3, 1e-05, inf, "text", f32, [a, b], 2*T + 1."""
    if v is None or isinstance(v, bool):
        return {None: "none", True: "true", False: "false"}[v]
    if isinstance(v, str):
        return v if v in BITS else quoted(v)
    if isinstance(v, float):
        return repr(v)
    return f"[{', '.join(map(value_text, v))}]" if isinstance(v, tuple | list) else dim_text(v)


def attrs_text(attrs: Iterable[tuple[str, object]]) -> str:
    inside = ", ".join(f"{word}={value_text(value)}" for word, value in attrs)
    return f"{{{inside}}}" if inside else ""


# ------------------------------------------------------------------ reading
def read_name(token: str) -> str:
    """The name in `%x` or `@"any text"`."""
    return unquote(token[1:]) if token[1:2] == '"' else token[1:]


def read_operand(token: str) -> str:
    return token[0] + read_name(token)


def unquote(text: str, at: int = 0) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        raise Problem(f"bad escape in the string {text}", at) from None


@lru_cache(maxsize=1 << 14)
def parse_type(text: str) -> TensorType:
    """`f32[T, 2*S + 1] as int4(group=32)`. Raises Problem."""
    return _parse(text, "type")  # type: ignore[no-any-return]


@lru_cache(maxsize=1 << 14)
def parse_attrs(text: str) -> tuple[tuple[str, object], ...]:
    """`{axis=1, sizes=[2, T]}` as pairs in the order written. Raises Problem."""
    return _parse(text, "attrs")  # type: ignore[no-any-return]


def read_int(token: Token | str) -> int:
    digits = token.lstrip("-0")
    if len(digits) > MAX_DIGITS or len(digits) == MAX_DIGITS and int(digits) > MAX_INT:
        raise Problem(f"integer {token[:20]}… is too large", getattr(token, "start_pos", 0) or 0)
    return int(token)


# ------------------------------------------------------------------ lark
@v_args(inline=True)
class ValueBuilder(Transformer[Token, object]):
    """Values, dimensions, attributes and types from their rules."""

    def integer(self, t: Token) -> int:
        return read_int(t)

    def number(self, t: Token) -> float:
        return float(t)

    def string(self, t: Token) -> str:
        return unquote(t, t.start_pos or 0)

    def list(self, *items: object) -> tuple[object, ...]:
        return items if items != (None,) else ()

    def name(self, t: Token) -> object:
        if t in CONSTANTS:
            return CONSTANTS[t]
        return str(t) if t in BITS else symbol(str(t))

    def function(self, name: Token, *args: object) -> object:
        if name not in FUNCTIONS:
            raise Problem(
                f"unknown function {name} in a dimension; known: {', '.join(FUNCTIONS)}", name.start_pos or 0
            )
        import sympy

        return self._made(lambda: getattr(sympy, name)(*[sympy.sympify(self._dim(a)) for a in args]))

    def add(self, a: object, b: object) -> object:
        return self._made(lambda: self._dim(a) + self._dim(b))

    def sub(self, a: object, b: object) -> object:
        return self._made(lambda: self._dim(a) - self._dim(b))

    def mul(self, a: object, b: object) -> object:
        return self._made(lambda: self._dim(a) * self._dim(b))

    def div(self, a: object, b: object) -> object:
        import sympy

        if b == 0:
            raise Problem("division by zero in a dimension")
        return self._made(lambda: sympy.sympify(self._dim(a)) / self._dim(b))

    def neg(self, a: object) -> object:
        return -a if isinstance(a, float) else self._made(lambda: -self._dim(a))

    def pow(self, a: object, n: Token) -> object:
        if read_int(n) > MAX_POWER:
            raise Problem(f"power {n} in a dimension; at most {MAX_POWER}", n.start_pos or 0)
        return self._made(lambda: self._dim(a) ** read_int(n))

    def attr(self, key: Token, value: object) -> tuple[str, object]:
        return str(key), value

    def attrs(self, *pairs: tuple[str, object] | None) -> tuple[tuple[str, object], ...]:
        return tuple(p for p in pairs if p is not None)

    def type(self, dtype: Token, *rest: Any) -> TensorType:
        if dtype not in BITS:
            raise Problem(f"unknown element type {dtype}; known: {', '.join(BITS)}", dtype.start_pos or 0)
        *dims, stored = rest
        shape = tuple(self._dim(d) for d in dims if d is not None)
        return TensorType(str(dtype), shape, None if stored is None else self._encoding(stored))

    @staticmethod
    def _encoding(t: Token) -> Any:
        try:
            return parse_encoding(str(t))
        except (EncodingError, ValueError, TypeError, KeyError) as e:
            raise Problem(str(e), t.start_pos or 0) from None

    @staticmethod
    def _dim(d: object) -> Any:
        if isinstance(d, bool | float | str | tuple) or d is None:
            raise Problem(f"expected a dimension, got {value_text(d)}")
        return d

    @staticmethod
    def _made(make: Any) -> Any:
        """A dimension, small enough that expanding it stays cheap; integers as int."""
        import sympy

        try:
            d = make()
        except (ArithmeticError, TypeError, ValueError, RecursionError) as e:
            raise e if isinstance(e, Problem) else Problem(f"not a dimension: {e}") from None
        if isinstance(d, int) or d.is_Integer:
            if not -MAX_INT <= d < MAX_INT:
                raise Problem("dimension is too large")
            return int(d)
        if (
            d.has(sympy.zoo, sympy.nan, sympy.oo)
            or sum(1 for _ in sympy.preorder_traversal(d)) > 8 * MAX_TERMS
            or _terms(d) > MAX_TERMS
        ):
            raise Problem(f"dimension has no finite value or more than {MAX_TERMS} terms")
        return d


def _terms(d: Any) -> int:
    """An upper bound on the terms of the expanded expression."""
    if d.is_Add:
        return sum(_terms(a) for a in d.args)
    if d.is_Mul:
        return math.prod(_terms(a) for a in d.args)
    if d.is_Pow:
        return int(_terms(d.base) ** min(abs(int(d.exp)), 64)) if d.exp.is_Integer else MAX_TERMS + 1
    return 1


_GRAMMARS: dict[tuple[str, str], Lark] = {}


def grammar(start: str, builder: type[ValueBuilder] = ValueBuilder) -> Lark:
    """The parser of one start rule, building with `builder`; made once each."""
    key = (start, builder.__qualname__)
    if key not in _GRAMMARS:
        text = files("tilewright.ir.text").joinpath("graph.lark").read_text("utf-8")
        _GRAMMARS[key] = Lark(
            text, parser="lalr", start=start, transformer=builder(), maybe_placeholders=True
        )
    return _GRAMMARS[key]


def _parse(text: str, start: str) -> Any:
    check_depth(text)
    return run_lark(text, grammar(start))


def run_lark(text: str, parser: Lark) -> Any:
    """Parse, with every failure as a Problem at its offset."""
    try:
        return parser.parse(text)
    except Problem:
        raise
    except UnexpectedToken as e:
        end = e.token.type == "$END"
        what = "the end of the text" if end else repr(str(e.token))
        raise Problem(
            f"unexpected {what}", len(text) if end else e.token.start_pos or 0, _expected(parser, e.expected)
        ) from None
    except UnexpectedCharacters as e:
        at = e.pos_in_stream or 0
        raise Problem(f"unexpected character {text[at]!r}", at, _expected(parser, e.allowed or ())) from None
    except (UnexpectedInput, VisitError) as e:
        inner = getattr(e, "orig_exc", e)
        raise inner if isinstance(inner, Problem) else Problem(str(inner).split("\n")[0]) from None


_WORDS = {
    "VALUE": "a %name",
    "AT": "a @name",
    "NAME": "a name",
    "INT": "an integer",
    "FLOAT": "a number",
    "STRING": "a string",
    "TYPE": "a type",
    "ATTRS": "{attributes}",
    "REGION": "a region",
    "STORED": "an encoding",
    "STAGE": "a pass name",
    "$END": "the end",
}


def _expected(parser: Lark, names: Iterable[str]) -> str:
    literal = {t.name: str(t.pattern.value) for t in parser.terminals if t.pattern.type == "str"}
    shown = sorted(
        _WORDS.get(n) or f"`{literal.get(n, n.lower())}`"
        for n in names
        if n not in ("WS", "COMMENT", "ORIGIN")
    )
    return f"expected {', '.join(shown[:10])}{' …' if len(shown) > 10 else ''}" if shown else ""


_BRACKETS = re.compile(r'"(?:[^"\\\n]|\\.)*"|#[^\n]*|[()\[\]{}]')


def brackets(text: str) -> Iterator[tuple[str, int]]:
    """Every bracket outside strings and comments, with its offset."""
    for m in _BRACKETS.finditer(text):
        if m.group() in "()[]{}":
            yield m.group(), m.start()


def check_depth(text: str) -> None:
    """Refuse brackets nested so deep that walking the result would not end well."""
    depth = 0
    for b, at in brackets(text):
        depth += 1 if b in "([{" else -1
        if depth > MAX_DEPTH:
            raise Problem(f"brackets nested more than {MAX_DEPTH} deep", at)
