"""What a pass is: a frozen dataclass of options and a `run`, named in kebab-case, registered by path.

`Pass` rewrites a module; `LowerPass` turns a module into a program; `ProgramPass` rewrites a program.
Pipelines are text: `canonicalize, encode-weights{weights="int4(group=32)"}, fuse`; building one checks names
and options, running one its order (`passes.facts`). Independent of what any pass does.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import numpy as np
from lark import v_args
from numpy.typing import NDArray

from tilewright.ir.errors import ParseError, TilewrightError
from tilewright.ir.graph.core import Location, Module, Op
from tilewright.ir.plan.core import Program
from tilewright.ir.text.attributes import (
    Problem,
    ValueBuilder,
    attrs_text,
    check_depth,
    grammar,
    parse_attrs,
    run_lark,
    value_text,
)
from tilewright.ir.weights.solved import Solution
from tilewright.ir.weights.sources import Weights

Array = NDArray[np.generic]
IR = Module | Program


class PassError(TilewrightError):
    """A pass or a pipeline that cannot run as asked: unknown name or option, an unmet need, the wrong
    form of IR."""

    kind = "pass error"


# ------------------------------------------------------------------ context
@dataclass(frozen=True)
class Note:
    """One rewrite that fired or was declined, for `--explain`."""

    pass_name: str
    rewrite: str
    applied: bool
    what: str
    reason: str = ""
    loc: Location | None = None

    def __str__(self) -> str:
        where = f" ({self.loc.file}:{self.loc.line})" if self.loc else ""
        word = "applied" if self.applied else "declined"
        return f"{self.pass_name}: {self.rewrite} {word} at {self.what}{where}" + (
            f": {self.reason}" if self.reason else ""
        )


@dataclass
class PassContext:
    """What every pass is handed: the target, a seed, the weights' values where a choice needs them, and the
    log of rewrites. The driver sets `pass_name`. `calibrator`: runs a module on samples and gives what
    solvers found, by weight name; None: there are no samples. `reusable`: by graph name, what a pass found
    that a later one would find again; the later pass checks that nothing it was found from has changed."""

    target: str = ""
    seed: int = 0
    weights: Weights | None = None
    calibrator: Callable[[Module, PassContext], Mapping[str, Solution]] | None = None
    pass_name: str = ""
    notes: list[Note] = field(default_factory=list)
    reusable: dict[str, object] = field(default_factory=dict)

    def applied(self, rewrite: str, at: Op | str, reason: str = "") -> None:
        """Record that a named rewrite fired at an op."""
        self._note(rewrite, True, at, reason)

    def declined(self, rewrite: str, at: Op | str, reason: str) -> None:
        """Record that a rewrite almost matched, and why it did not."""
        self._note(rewrite, False, at, reason)

    def _note(self, rewrite: str, applied: bool, at: Op | str, reason: str) -> None:
        if isinstance(at, Op):
            results = ", ".join(f"%{r.name}" for r in at.results)
            self.notes.append(
                Note(
                    self.pass_name,
                    rewrite,
                    applied,
                    f"{results} = {at.name}" if results else at.name,
                    reason,
                    at.loc,
                )
            )
        else:
            self.notes.append(Note(self.pass_name, rewrite, applied, at, reason))


# ------------------------------------------------------------------ passes
@dataclass(frozen=True)
class AnyPass(ABC):
    """Options are the fields. `needs`/`gives`: facts (`passes.facts`) that must hold before, that hold after;
    `takes_away`: that no longer do; `works_on`: the fact that says what form of IR the pass takes.

    `tolerance`: the largest |difference| that `--check-each` allows, as a share of the result's largest
    value; None: the pass changes values by design (a quantization) and only shapes are compared."""

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()
    takes_away: ClassVar[frozenset[str]] = frozenset()
    works_on: ClassVar[str] = ""
    tolerance: ClassVar[float | None] = 1e-5

    @abstractmethod
    def apply(self, ir: IR, ctx: PassContext) -> IR:
        """Run on whatever the pipeline holds, which is of the form that the pass works on."""

    def adapt(
        self, before: Module, after: Module, graph: str, inputs: Mapping[str, Array]
    ) -> CheckCase | None:
        """How to compare when the signature changes: the inputs of the old graph as the new graph takes them,
        and a map from new results to the old form. None: the signature is the same."""
        return None

    def __str__(self) -> str:
        options = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
        changed = [
            (k, v) for (k, v), f in zip(options, dataclasses.fields(self), strict=True) if v != default_of(f)
        ]
        return self.name + attrs_text(changed)


@dataclass(frozen=True)
class CheckCase:
    """Inputs for the graph named `graph` after a pass, and `back`: its results brought into the old graph's
    form (entries left out are not compared)."""

    graph: str
    inputs: Mapping[str, Array]
    back: Callable[[Mapping[str, Array]], Mapping[str, Array]]
    front: Callable[[Mapping[str, Array]], Mapping[str, Array]] = lambda results: results


@dataclass(frozen=True)
class Pass(AnyPass):
    """Module -> Module."""

    works_on: ClassVar[str] = "graphs"

    def apply(self, ir: IR, ctx: PassContext) -> IR:
        assert isinstance(ir, Module), f"{self.name} works on graphs"
        return self.run(ir, ctx)

    @abstractmethod
    def run(self, module: Module, ctx: PassContext) -> Module: ...


@dataclass(frozen=True)
class LowerPass(AnyPass):
    """Module -> Program."""

    works_on: ClassVar[str] = "graphs"
    takes_away: ClassVar[frozenset[str]] = frozenset({"graphs"})

    def apply(self, ir: IR, ctx: PassContext) -> IR:
        assert isinstance(ir, Module), f"{self.name} works on graphs"
        return self.run(ir, ctx)

    @abstractmethod
    def run(self, module: Module, ctx: PassContext) -> Program: ...


@dataclass(frozen=True)
class ProgramPass(AnyPass):
    """Program -> Program."""

    works_on: ClassVar[str] = "program"

    def apply(self, ir: IR, ctx: PassContext) -> IR:
        assert isinstance(ir, Program), f"{self.name} works on programs"
        return self.run(ir, ctx)

    @abstractmethod
    def run(self, program: Program, ctx: PassContext) -> Program: ...


# ------------------------------------------------------------------ registry
#: where each pass lives, by name: `module:Class`; nothing is imported before it is requested
PASSES: dict[str, str] = {
    name: f"tilewright.passes.{name.replace('-', '_')}:{''.join(w.title() for w in name.split('-'))}"
    for name in (
        "canonicalize", "recognise", "flatten-tokens", "incrementalize", "select-rows", "merge-linears",
        "calibrate", "encode-weights", "quantize-activations", "specialize", "decompose-attend", "fuse",
        "lower", "expand-encodings", "plan-memory", "rotate", "expand-fwht",
        "reduce-tokens", "expand-tokens", "channels-last", "fold-scales", "pack-tokens",
    )
}  # fmt: skip
_LOADED: dict[str, type[AnyPass]] = {}
P = TypeVar("P", bound=AnyPass)


def register_pass(cls: type[P]) -> type[P]:
    """Class decorator for passes outside the package; PassError if the name is taken by another class."""
    if cls.name in PASSES and _LOADED.get(cls.name) is not cls:
        raise PassError(f"pass {cls.name!r} is registered twice")
    PASSES[cls.name] = f"{cls.__module__}:{cls.__qualname__}"
    _LOADED[cls.name] = cls
    return cls


def find_pass(name: str) -> type[AnyPass]:
    """The class of a pass; PassError names close matches."""
    if name not in PASSES:
        near = difflib.get_close_matches(name, PASSES, 3)
        raise PassError(
            f"unknown pass {name!r}",
            hint=f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(sorted(PASSES))}",
        )
    if name not in _LOADED:
        path, _, attribute = PASSES[name].partition(":")
        _LOADED[name] = getattr(importlib.import_module(path), attribute)
    return _LOADED[name]


# ------------------------------------------------------------------ options
def make_pass(name: str, options: Mapping[str, object]) -> AnyPass:
    """A pass with options checked against its fields' types. PassError names the option, what it takes and
    what it got."""
    cls = find_pass(name)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key, value in options.items():
        if key not in fields:
            raise PassError(f"unknown option {key!r}", name, f"its options: {', '.join(fields) or 'none'}")
        if not fits(value, hints[key]):
            raise PassError(f"option {key} must be {type_name(hints[key])}, got {value_text(value)}", name)
    missing = [
        f.name for f in fields.values() if default_of(f) is dataclasses.MISSING and f.name not in options
    ]
    if missing:
        raise PassError(f"option {missing[0]} ({type_name(hints[missing[0]])}) is missing", name)
    return cls(**{k: float(typing.cast(float, v)) if hints[k] is float else v for k, v in options.items()})


def default_of(f: dataclasses.Field[object]) -> object:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def fits(value: object, hint: object) -> bool:
    """Whether a parsed value is of a field's type: bool, int, float, str, None, unions, `tuple[X, ...]`,
    `tuple[X, Y]`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = args[:1] * len(value) if args[1:] == (...,) else args
        return len(each) == len(value) and all(fits(v, a) for v, a in zip(value, each, strict=True))
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def type_name(hint: object) -> str:
    return (
        hint.__name__
        if isinstance(hint, type) and not typing.get_args(hint)
        else str(hint).replace("typing.", "")
    )


# ------------------------------------------------------------------ pipelines
@v_args(inline=True)
class _PipelineBuilder(ValueBuilder):
    def stage(self, name: object, attrs: object) -> object:
        return str(name), dict(parse_attrs(str(attrs))) if attrs is not None else {}

    def pipeline(self, *stages: object) -> object:
        return [s for s in stages if s is not None]


def parse_pipeline(text: str, file: str = "<pipeline>") -> tuple[AnyPass, ...]:
    """`canonicalize, fuse{x=1}` as passes. ParseError for bad text, PassError for unknown names and
    options."""
    try:
        check_depth(text)
        stages = run_lark(text, grammar("pipeline", _PipelineBuilder))
    except Problem as e:
        line = text.count("\n", 0, e.at) + 1
        column = e.at - (text.rfind("\n", 0, e.at) + 1) + 1
        raise ParseError(e.message, file, line, column, text.split("\n")[line - 1], e.hint) from None
    return tuple(make_pass(name, options) for name, options in stages)
