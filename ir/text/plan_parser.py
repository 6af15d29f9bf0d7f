"""The parser of programs, the inverse of `print_program`; kernels are parsed by the Tile IR parser.

Also `parse_ir`, which tells modules, programs and bare kernels apart. Every mistake is a `ParseError`.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from lark import Token, v_args

from tilewright.ir.errors import ParseError
from tilewright.ir.graph.core import Module, Value
from tilewright.ir.plan.core import Call, Plan, PlanBuffer, Program
from tilewright.ir.text.attributes import (
    Problem,
    parse_attrs,
    parse_type,
    read_int,
    read_name,
    read_operand,
    unquote,
)
from tilewright.ir.text.graph_parser import ModuleBuilder, at_of, inside, parse_module, parse_text, sort_items
from tilewright.ir.text.tile_parser import parse_kernels
from tilewright.ir.tile.core import Condition, Kernel

_SCAN = re.compile(r'"(?:[^"\\\n]|\\.)*"|#[^\n]*|[{}]|\b(?:kernel|plan|graph)\b')


def parse_program(text: str, file: str = "<text>") -> Program:
    """The program a text stands for. Raises ParseError."""
    outer, inner = split_kernels(text)
    program: Program = parse_text(outer, file, "program", ProgramBuilder)
    kernels = parse_kernels(inner, file) if inner.strip() else ()
    return Program(kernels, program.plans, program.weights, program.states, program.symbols, program.meta)


def parse_ir(text: str, file: str = "<text>") -> Module | Program | tuple[Kernel, ...]:
    """A module, a program, or kernels alone, by the words at the text's top level. Raises ParseError."""
    words = {word for word, _ in _top_words(text)}
    if "plan" in words and "graph" in words:
        raise ParseError("the text contains graphs and plans; a file contains only one of the two", file)
    if "plan" in words:
        return parse_program(text, file)
    return (
        parse_kernels(text, file) if "kernel" in words and "graph" not in words else parse_module(text, file)
    )


def split_kernels(text: str) -> tuple[str, str]:
    """The text without its kernels, and the kernels without the rest; blanks keep every line and column in
    place."""
    spans = [(at, _closing(text, at)) for word, at in _top_words(text) if word == "kernel"]
    outer, inner, last = [], [], 0
    for lo, hi in spans:
        outer += [text[last:lo], _blank(text[lo:hi])]
        inner += [_blank(text[last:lo]), text[lo:hi]]
        last = hi
    return "".join([*outer, text[last:]]), "".join([*inner, _blank(text[last:])])


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def _top_words(text: str) -> list[tuple[str, int]]:
    """`kernel`, `plan` and `graph` outside braces, strings and comments, where they start a line."""
    depth, out = 0, []
    for m in _SCAN.finditer(text):
        if m.group() in "{}":
            depth += 1 if m.group() == "{" else -1
        elif (
            depth == 0
            and m.group()[0] not in '"#'
            and not text[text.rfind("\n", 0, m.start()) + 1 : m.start()].strip()
        ):
            out.append((m.group(), m.start()))
    return out


def _closing(text: str, start: int) -> int:
    """Where the braces opened after `start` are closed again (the text's end if never)."""
    depth = 0
    for m in _SCAN.finditer(text, start):
        if m.group() == "{":
            depth += 1
        elif m.group() == "}":
            depth -= 1
            if depth <= 0:
                return m.end()
    return len(text)


class Counted(NamedTuple):
    """A line of a plan: the symbol whose value the buffer holds."""

    symbol: str
    ref: str


@v_args(inline=True)
class ProgramBuilder(ModuleBuilder):
    """Rules of plans."""

    def buffer(self, name: Token, type: Token, nbytes: Token, offset: Token | None) -> PlanBuffer:
        place = -1 if offset is None else read_int(offset)
        return PlanBuffer(inside(name, read_name), inside(type, parse_type), read_int(nbytes), place)

    def counted(self, symbol: Token, ref: Token) -> Counted:
        return Counted(str(symbol), inside(ref, read_operand))

    def condition(self, symbol: Token, op: Token, value: Token) -> Condition:
        return Condition(str(symbol), str(op), read_int(value))

    def call(self, kernel: Token, args: tuple[str, ...] | None, symbols: Token | None, *rest: Any) -> Call:
        when = tuple(c for c in rest if isinstance(c, Condition))
        source = rest[-1] if rest and isinstance(rest[-1], Token) else None
        pairs = inside(symbols, parse_attrs) if symbols is not None else ()
        for key, value in pairs:
            if isinstance(value, bool | float | str | tuple) or value is None:
                raise Problem(f"{key} is bound to {value!r}, expected a dimension", at_of(kernel))
        origin = unquote(source, at_of(source)) if source is not None else ""
        return Call(inside(kernel, read_name), args or (), pairs, when, origin)

    def given(self, name: str, ref: Token) -> tuple[str, str]:
        return name, inside(ref, read_operand)

    def plan(self, name: Token, *rest: Any) -> tuple[str, object]:
        inputs = tuple(v for v in rest if isinstance(v, Value))
        buffers = tuple(b for b in rest if isinstance(b, PlanBuffer))
        calls = tuple(c for c in rest if isinstance(c, Call))
        outputs = tuple(o for o in rest if type(o) is tuple)
        counted = tuple((c.symbol, c.ref) for c in rest if isinstance(c, Counted))
        arena = next(t for t in rest if isinstance(t, Token) and t.type == "INT")
        plan = Plan(inside(name, read_name), inputs, outputs, buffers, calls, read_int(arena), counted)
        return "plan", plan

    def program(self, *items: tuple[str, Any]) -> Program:
        parts = {k: tuple(v) for k, v in sort_items(items).items()}
        return Program((), parts["plan"], parts["weight"], parts["state"], parts["symbol"], parts["meta"])
