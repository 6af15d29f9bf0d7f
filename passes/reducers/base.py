"""What a way of reducing tokens says: where tokens are cut, to how many, by which score, and into what.

In: text such as `evit(keep=0.7)`. Out: a `Reducer`, a frozen dataclass whose fields are the options of the
text, and which lists its cuts for a number of attention layers. How a cut is carried out, `reduce-tokens`
knows.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from tilewright.ir.errors import RefusedError
from tilewright.ir.text.attributes import Problem, parse_attrs, value_text
from tilewright.passes.base import default_of, fits, type_name

#: where messages say that the text stands
WHERE = "tokens"
#: scores of tokens: the attention that the first or the last token pays them, or all tokens on average; and
#: what tokens are compared by: the keys of the attention, averaged over heads, or their hidden states
SCORES = ("first", "last", "all")
COMPARED = ("keys", "hidden")


@dataclass(frozen=True)
class Cut:
    """One reduction, after the attention number `layer` (from 0).

    How many: `keep`, the share of the tokens that are not protected, rounded up; or `less`, a number of
    tokens. Which: `mode` and the fields below it, as `assign_tokens` has them (`segments` 0: each place is a
    segment), by `score`. Into what: `mean` of the tokens that share a place, weighted by `weighted` ("size":
    how many tokens each stands for already; "score"; "": all the same), or else the token that represents
    them. `sized`: attention adds ln(size) of a token to the scores of its key from here on."""

    layer: int
    keep: float = 1.0
    less: int = 0
    mode: str = "gather"
    score: str = "first"
    fuse: bool = False
    segments: int = 1
    rounds: int = 0
    mean: bool = False
    weighted: str = ""
    sized: bool = False

    def count(self, tokens: int, protect: int) -> int:
        """How many of `tokens` are left."""
        free = tokens - protect
        if self.less:
            return tokens - min(self.less, free // 2 if self.mode == "merge" else free)
        return min(protect + math.ceil(self.keep * free - 1e-9) + self.fuse, tokens)

    def words(self) -> str:
        """What happens to the tokens, for notes."""
        by = f"{self.score} token's attention" if self.score in SCORES[:2] else self.score
        how = {"gather": "kept by", "merge": "merged by", "cluster": "clustered by"}[self.mode]
        return f"{how} {'attention of all tokens' if self.score == 'all' else by}" + (
            ", the rest fused" if self.fuse else ""
        )


@dataclass(frozen=True)
class Reducer(ABC):
    """Options are the fields. `protect`: how many leading tokens are never cut (a class token is one);
    `restore`: after the last attention every token is there again, for models whose results have all."""

    name: ClassVar[str] = ""

    protect: int = 1
    restore: bool = False

    @abstractmethod
    def cuts(self, layers: int, tokens: int) -> tuple[Cut, ...]:
        """The cuts in a model of `layers` attentions over `tokens` tokens, in order. RefusedError if the
        options do not fit them."""

    def check(self) -> None:
        """RefusedError for values of options that no model allows."""
        keep = getattr(self, "keep", None)
        if isinstance(keep, float) and not 0 < keep <= 1:
            raise refused(f"{self.name}: keep must be above 0 and at most 1, got {keep:g}")
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            least = int(f.name not in _FROM_ZERO)
            if type(value) is int and value < least:
                raise refused(f"{self.name}: {f.name} must be {least} or more, got {value}")

    def places(self, given: tuple[int, ...], otherwise: tuple[int, ...], layers: int) -> tuple[int, ...]:
        """The layers asked for, or else the reducer's own; RefusedError for one that does not exist."""
        chosen = tuple(sorted(set(given or (n for n in otherwise if 0 <= n < layers))))
        if chosen and not 0 <= chosen[0] <= chosen[-1] < layers:
            raise refused(
                f"{self.name}: layers {value_text(given)} of a model with {layers} attention layers",
                f"they are numbered 0 to {layers - 1}",
            )
        return chosen

    def __str__(self) -> str:
        said = [(f.name, getattr(self, f.name), default_of(f)) for f in dataclasses.fields(self)]
        options = ", ".join(f"{k}={value_text(v)}" for k, v, d in said if v != d)
        return f"{self.name}({options})" if options else self.name


#: options that may be 0
_FROM_ZERO = ("protect", "rounds", "r")


def refused(message: str, hint: str = "") -> RefusedError:
    return RefusedError(message, WHERE, hint)


# ------------------------------------------------------------------ by name
_REGISTRY: dict[str, type[Reducer]] = {}
R = TypeVar("R", bound=Reducer)


def register_reducer(kind: type[R]) -> type[R]:
    """Make `kind.name(…)` known; a decorator. RefusedError if the name is taken."""
    if kind.name in _REGISTRY:
        raise refused(f"{kind.name!r} is registered twice")
    _REGISTRY[kind.name] = kind
    return kind


def known_reducers() -> tuple[str, ...]:
    return tuple(sorted(_REGISTRY))


def parse_reducer(text: str) -> Reducer:
    """The reducer that a text such as `pyramid(stages=4, keep=0.5)` names. RefusedError says what is wrong
    with it."""
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\((.*)\))?\s*", text, re.S)
    if match is None:
        raise refused(f"expected a name and options, as in evit(keep=0.7), got {text!r}")
    kind = _REGISTRY.get(match[1])
    if kind is None:
        near = difflib.get_close_matches(match[1], _REGISTRY, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known_reducers())}"
        raise refused(f"unknown token reduction {match[1]!r}", hint)
    made = kind(**_options(kind, match[2] or "", text))
    made.check()
    return made


def _options(kind: type[Reducer], inside: str, text: str) -> Mapping[str, typing.Any]:
    try:
        given = dict(parse_attrs(f"{{{inside}}}"))
    except Problem as why:
        raise refused(f"{text}: {why.message}", "write options as in evit(keep=0.7, layers=[1, 3])") from None
    hints = typing.get_type_hints(kind)
    fields = {f.name for f in dataclasses.fields(kind)}
    out: dict[str, object] = {}
    for key, value in given.items():
        if key not in fields:
            raise refused(f"{kind.name}: unknown option {key!r}", f"its options: {', '.join(sorted(fields))}")
        word = str(value) if hints[key] is str else value  # first, keys: words need no quotes
        if not fits(word, hints[key]):
            raise refused(f"{kind.name}: {key} must be {type_name(hints[key])}, got {value_text(value)}")
        out[key] = float(typing.cast(float, word)) if hints[key] is float else word
    return out
