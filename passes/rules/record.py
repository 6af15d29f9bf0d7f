"""The rules of an op: what rewriting passes may make of it, registered beside each other as data.

In: an op's name. Out: its rules, empty ones if none are registered. An op without rules is not an exception
anywhere: `canonicalize` leaves it, `flatten-tokens` goes by its axis roles, and it needs no cache. Knows no
particular op.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tilewright.ir.encoding import Encoding
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Op
from tilewright.ir.ops.base import OPS, OpTypeError
from tilewright.ir.selection import Selection
from tilewright.ir.types import TensorType
from tilewright.passes.tokens import Axes, Flattening


class Canonical(Protocol):
    """What a rule of `canonicalize` may ask and use. `b`: the builder of the new graph; the op's operands are
    already those of the new graph."""

    b: GraphBuilder

    def type(self, operand: str) -> TensorType: ...

    def producer(self, operand: str, name: str) -> Op | None:
        """The op that made an operand, if it is of this kind."""
        ...

    def scalar(self, operand: str) -> float | None:
        """The one number that every element of a constant is."""
        ...

    def changed(self, op: Op, operands: tuple[str, ...], **attrs: object) -> Op:
        """The op over other operands."""
        ...


#: another op with the same results, an operand that is the result already (of several results, one each), or
#: None: the rule does not apply
Rule = Callable[[Canonical, Op], "Op | str | tuple[str, ...] | None"]


def _no_inputs(axes: Axes, op: Op) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class FlatForm:
    """An op over one axis of tokens, where axis roles do not say it all. `rewrite` defines the op's results
    in the new graph, or returns False to have the op handled by its axis roles; it raises `Mixes` if the op
    takes tokens together. `inputs`: the inputs of a step that the flat form reads."""

    rewrite: Callable[[Flattening, Op], bool]
    inputs: Callable[[Axes, Op], tuple[str, ...]] = _no_inputs


@dataclass
class Caches:
    """What a cached form is handed. `b`: the builder of the step; `keys`, `values`: how caches are encoded;
    `length`: positions that each has room for; `evicts`, `observes`: whether they may lose rows, and count
    the attention that each row gets; `shares`: whether what sequences have in common is read together;
    `select`: how single tokens choose the blocks that they read, where they can (None: they read all);
    `recent`: how many of the last rows are kept in bf16 too."""

    b: GraphBuilder
    keys: Encoding
    values: Encoding
    length: int
    evicts: bool = False
    observes: bool = False
    shares: bool = False
    select: Selection | None = None
    recent: int = 0


@dataclass(frozen=True)
class CachedForm:
    """An op over whole sequences as work on the tokens of one step and a cache. `refusal`: why that cannot
    be, or an empty string; `rewrite` defines the op's result in the step."""

    refusal: Callable[[Op], str]
    rewrite: Callable[[Caches, Op], None]


@dataclass(frozen=True)
class OpRules:
    """`canonical`: rewrites that `canonicalize` tries in order."""

    op: str
    canonical: tuple[Rule, ...] = ()
    flat: FlatForm | None = None
    cached: CachedForm | None = None


RULES: dict[str, OpRules] = {}


def register_rules(rules: OpRules) -> OpRules:
    """Add the rules of an op. OpTypeError if it is not an op, or has rules already."""
    if rules.op not in OPS:
        raise OpTypeError(f"rules for {rules.op!r}, which is not an op: register the op first")
    if rules.op in RULES:
        raise OpTypeError(f"op {rules.op!r} has rules already")
    RULES[rules.op] = rules
    return rules


def rules_of(op: Op | str) -> OpRules:
    name = op if isinstance(op, str) else op.name
    return RULES.get(name) or OpRules(name)
