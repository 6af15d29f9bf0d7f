"""Untrusted templates, bounded: jinja2's sandbox with a budget for steps, for work and for what may be made.

In: a template's text, variables of plain data. Out: text, or `LimitError` before time or memory are gone.
Loops, calls, filters, operators and literals are metered by rewriting the parsed template; whatever can grow
is weighed before it is made, so that not even a single operation of the interpreter underneath runs long. The
limits are counts, so the same template always ends alike.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

#: characters of a template; of one value or of the text; of all values together; what all steps and
#: characters read may cost
SOURCE, VALUE, MADE, WORK = 1 << 18, 1 << 24, 1 << 28, 1 << 30
#: what a step and what an item of a list cost, in characters; calls within calls; bits of an integer
STEP, ITEM, DEPTH, BITS = 1 << 10, 1 << 8, 64, 1 << 13
#: filters that look at the length or the ends of a value alone
SHALLOW = {"length", "count", "first", "last", "default", "d"}
#: filters and methods whose result may be as large as the product of their arguments
GROWING = {"center", "indent", "join", "batch", "slice", "tojson", "round", "truncate", "ljust", "rjust",
"zfill", "expandtabs",
           "translate", "to_bytes"}  # fmt: skip
#: filters that take the square of their text's length
SLOW = {"urlize", "wordwrap", "striptags", "pprint", "xmlattr"}
SPLITS = {"split", "rsplit", "splitlines"}
_CONTAINERS = (list, tuple, dict, set, frozenset, KeysView, ValuesView, ItemsView)
_NESTED, _STARRED = re.compile(r"\{[^{}]*:[^{}]*\{"), re.compile(r"%(\([^)]*\))?[-+ #0]*(\*|\d*\.\*)")


class LimitError(TemplateError):
    """A template that asks for more than any prompt needs."""


class Budget:
    """What a template has used, in characters. `weigh` counts a value written out in full, however often its
    parts are shared."""

    def __init__(self) -> None:
        self.work = self.made = self.depth = 0
        self._known: dict[int, tuple[object, int]] = {}

    def spend(self, work: int) -> None:
        self.work += work
        if self.work > WORK:
            raise LimitError(
                f"it takes more than {WORK // STEP:,} steps, or reads more than {WORK:,} characters"
            )

    def make(self, size: int) -> None:
        """Room for a value that is about to be made."""
        if size > VALUE:
            raise LimitError(f"it creates a value or a string of more than {VALUE:,} characters")
        self.made += size
        if self.made > MADE:
            raise LimitError(f"it produces more than {MADE:,} characters in total")

    def weigh(self, x: object) -> int:
        if isinstance(x, str | bytes):
            return len(x) + 1
        if isinstance(x, int):
            return x.bit_length() // 3 + 1
        if not isinstance(x, _CONTAINERS):
            return 64
        if id(x) in self._known:
            return self._known[id(x)][1]
        inner: Iterable[object] = (y for pair in x.items() for y in pair) if isinstance(x, dict) else x
        total = 1
        for y in inner:
            total += ITEM + self.weigh(y)
            if total > VALUE:
                self.make(total)
        self._known[id(x)] = (x, total)  # the value is kept, so that its number stays its own
        return total

    def metered(self, items: Iterable[Any], cost: int = STEP) -> Iterator[Any]:
        for x in items:
            self.spend(cost)
            yield x


class Metering(NodeTransformer):
    """Puts private filters around what the environment cannot intercept: loops, literals, `~`, slices and
    comparisons."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _filtered(cast(nodes.Expr, node.iter), "(loop)", nodes.Const(STEP + text))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        node.nodes = [_filtered(n, "(made)") for n in node.nodes]
        return _filtered(node, "(made)")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "(read)")
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, "(read)")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "(made)") if isinstance(node.arg, nodes.Slice) and node.ctx == "load" else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "(made)") if node.ctx == "load" else node

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return _filtered(node, "(made)")

    visit_Dict = visit_List


def _filtered(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the model said; the text is the same without it."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """For one rendering of one template."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        self.budget = Budget()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
            finalize=self._written,
        )
        self.globals.pop("lipsum", None)
        self.filters.pop("random", None)

    def render(self, source: str, variables: Mapping[str, object]) -> str:
        """The text. Raises LimitError, and what jinja2 and the template raise."""
        if len(source) > SOURCE:
            raise LimitError(f"it has {len(source):,} characters, more than {SOURCE:,}")
        self.filters = {name: self._filter(name, f) for name, f in self.filters.items()}
        self.tests = {name: self._test(cast(Callable[..., Any], f)) for name, f in self.tests.items()}
        self.filters |= {"(loop)": self.budget.metered, "(made)": self._made, "(read)": self._read}
        pieces, size = [], 0
        for piece in self.from_string(source).generate(**variables):
            size += len(piece)
            if size > VALUE:
                self.budget.make(size)
            pieces.append(piece)
        return "".join(pieces)

    def _generate(self, source: nodes.Template, *args: Any, **named: Any) -> str:
        return super()._generate(Metering().visit(source), *args, **named)

    # ------------------------------------------------------------ what the rewritten template calls
    def _made(self, x: Any) -> Any:
        self.budget.spend(STEP)
        self.budget.make(self.budget.weigh(x))
        return x

    def _read(self, x: Any) -> Any:
        self.budget.spend(STEP + self.budget.weigh(x))
        return x

    def _written(self, x: Any) -> Any:
        size = self.budget.weigh(x)
        self.budget.spend(size)
        self.budget.make(size)
        return x

    # ------------------------------------------------------------ operators, calls, filters, tests
    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            self._bits(left, max(right, 1) if isinstance(right, int) else 1)
        elif operator == "*":
            self._product(left, right)
        elif operator == "%" and isinstance(left, str | bytes):
            self._format(str(left), [right])
        return self._made(super().call_binop(context, operator, left, right))

    def _bits(self, x: object, times: int) -> None:
        if isinstance(x, int) and x.bit_length() * times > BITS:
            raise LimitError(f"it creates an integer of more than {BITS:,} bits")

    def _product(self, left: object, right: object) -> None:
        for many, x in ((left, right), (right, left)):
            if isinstance(many, int) and isinstance(x, str | bytes | list | tuple):
                self.budget.make(
                    max(many, 0) * (len(x) if isinstance(x, str | bytes) else self.budget.weigh(x))
                )
        if isinstance(left, int) and isinstance(right, int):
            self._bits(left, 1)
            self._bits(right, 1)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        self, budget = __self, __self.budget
        budget.spend(STEP)
        if budget.depth >= DEPTH:
            raise LimitError(f"its calls are nested more deeply than {DEPTH}")
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes | int | float | list | tuple | dict):
            budget.spend(STEP + (0 if isinstance(owner, dict) else budget.weigh(owner)))
            self._grows(method.__name__, owner, args, kwargs)
        if isinstance(__obj, LoopContext) and args:
            args = (budget.metered(args[0]), *args[1:])
        budget.depth += 1
        try:
            return self._made(super().call(__context, __obj, *args, **kwargs))
        finally:
            budget.depth -= 1

    def _filter(self, name: str, f: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if hasattr(f, "jinja_pass_arg") else 0

        @functools.wraps(f)
        def metered(*args: Any, **kwargs: Any) -> Any:
            value, rest = args[first], args[first + 1 :]
            if isinstance(value, Iterator):
                value = (self._made(x) for x in value)
            weight = (
                ITEM * len(value)
                if name in SHALLOW and hasattr(value, "__len__")
                else self.budget.weigh(value)
            )
            self.budget.spend(STEP + (weight * weight if name in SLOW else weight))
            self._grows(name, value, rest, kwargs)
            return self._made(f(*args[:first], value, *rest, **kwargs))

        return metered

    def _test(self, f: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(f)
        def metered(*args: Any, **kwargs: Any) -> Any:
            if len(args) > 1:
                for x in args:
                    self._read(x)
            return f(*args, **kwargs)

        return metered

    def _grows(self, name: str, value: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Room for what a filter or method of a builtin type is about to make."""
        others = [*args, *kwargs.values()]
        if name in ("format", "format_map") and isinstance(value, str):
            self._format(value, others)
        elif name == "replace" and isinstance(value, str) and len(args) > 1:
            self.budget.make(len(value) + value.count(str(args[0])) * self.budget.weigh(args[1]))
        elif name in SPLITS and isinstance(value, str):
            pieces = (
                value.count(args[0]) if args and isinstance(args[0], str) and args[0] else len(value) // 2
            )
            self.budget.make(len(value) + ITEM // 4 * (pieces + 1))
        elif name == "tojson":
            weight = self.budget.weigh(value)
            self.budget.make(weight + (weight // ITEM + 1) ** 2 // 4 * sum(map(self._magnitude, others)))
        elif name in GROWING:
            self.budget.make(self.budget.weigh(value) * (1 + sum(map(self._magnitude, others))))

    def _magnitude(self, x: object) -> int:
        return (
            abs(x)
            if isinstance(x, int)
            else 0
            if x is None or isinstance(x, Undefined)
            else self.budget.weigh(x)
        )

    def _format(self, text: str, values: list[Any]) -> None:
        """Widths appear in the text; every field may hold every value."""
        if _NESTED.search(text) or _STARRED.search(text):
            raise LimitError("it uses a variable as a format width")
        widths = sum(int(d[:9]) for d in re.findall(r"\d+", text))
        self.budget.make(
            len(text) + widths + (text.count("%") + text.count("{")) * sum(map(self.budget.weigh, values))
        )
