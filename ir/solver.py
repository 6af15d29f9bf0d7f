"""Solvers: how the numbers that an encoding holds are chosen. Text: `hqq(int4(group=64))`.

In: values, statistics of what they are multiplied with, an encoding. Out: the encoding's streams.
Round-to-nearest is what an encoding does by itself; a solver wraps it, or another solver. Registered by name,
as encodings are. Knows no files, no graphs.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.encoding import Encoding, EncodingError, RangeError
from tilewright.ir.encoding_registry import known_encodings, parse_encoding
from tilewright.ir.numbers import TAME, hold, largest, unit_rows

F32 = NDArray[np.float32]
Streams = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Statistics:
    """What was seen at the input x of a contraction over `tokens` rows: `h` = 2/T sum x x^T [K, K], mean and
    largest |x| [K]. `fisher`: mean squared gradients of the loss by the weights [N, K], if a solver needs
    them."""

    h: F32
    mean_abs: F32
    absmax: F32
    tokens: int
    fisher: F32 | None = None

    def rows(self, rows: slice) -> Statistics:
        """Those of some rows of the weights."""
        return self if self.fisher is None else dataclasses.replace(self, fisher=self.fisher[rows])

    def columns(self, columns: slice) -> Statistics:
        """Those of some inputs."""
        fisher = None if self.fisher is None else self.fisher[:, columns]
        return Statistics(
            self.h[columns, columns], self.mean_abs[columns], self.absmax[columns], self.tokens, fisher
        )


@dataclass(frozen=True)
class Solver(ABC):
    """Options are the fields. `calibrated`: needs statistics; `informed`: Fisher information among them;
    `grows`: chooses the encoding's group too."""

    name: ClassVar[str] = ""
    calibrated: ClassVar[bool] = False
    informed: ClassVar[bool] = False
    grows: ClassVar[bool] = False

    inner: Solver | None = None

    @abstractmethod
    def solve(self, w: F32, statistics: Statistics | None, encoding: Encoding) -> Streams:
        """Streams of `encoding` for w [N, K]; rows are independent of each other. EncodingError if the
        encoding does not fit."""

    def base(self, w: F32, statistics: Statistics | None, encoding: Encoding) -> Streams:
        """What the solver inside says, or round-to-nearest."""
        return encoding.encode(w) if self.inner is None else self.inner.solve(w, statistics, encoding)

    def chain(self) -> tuple[Solver, ...]:
        """This solver and those inside, outermost first."""
        return (self, *(self.inner.chain() if self.inner else ()))

    def text(self, encoding: object) -> str:
        """`name(inner(encoding), option=value)`: the text that `parse_stored` reads."""
        inside = str(encoding) if self.inner is None else self.inner.text(encoding)
        options = [
            (f.name, getattr(self, f.name), f.default) for f in dataclasses.fields(self) if f.name != "inner"
        ]
        said = [f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v, d in options if v != d]
        return f"{self.name}({', '.join([inside, *said])})"


def solve_rows(solver: Solver, w: F32, statistics: Statistics | None, encoding: Encoding) -> Streams:
    """What a solver finds for w [N, K], all finite. Rows far from 1 are solved at magnitude 1, so that no
    square leaves the range of floats, and their float parameters multiplied back. RangeError for a row that
    would not decode to numbers."""
    sizes = largest(w)
    wild = ((sizes < TAME[0]) & (sizes > 0)) | (sizes > TAME[1])
    with np.errstate(all="ignore"):
        if not wild.any():
            return _numbers(encoding, solver.solve(w, statistics, encoding), sizes)
        stored = {
            s.name: s.dtype
            for s in encoding.record((16, w.shape[-1])).streams
            if s.dtype in ("f32", "bf16", "f16")
        }
        if not encoding.scalable:
            return _numbers(encoding, solver.solve(w, statistics, encoding), sizes, decoded=True)
        units, exponents = unit_rows(w, np.where(wild, sizes, np.float32(0.5)))
        found = dict(solver.solve(units, statistics, encoding))
        for name, dtype in stored.items():
            found[name] = hold(np.ldexp(np.asarray(found[name], np.float32), exponents[:, None]), dtype)
        return _numbers(encoding, found, sizes, decoded=True)


def _numbers(encoding: Encoding, found: Streams, sizes: F32, decoded: bool = False) -> Streams:
    """The streams, if their floats (or the values `decoded` from them) are finite."""
    looked = (
        [encoding.decode(found)]
        if decoded
        else [x for x in found.values() if np.issubdtype(x.dtype, np.floating)]
    )
    for x in looked:
        bad = np.flatnonzero(~np.isfinite(x).all(-1))
        if bad.size and len(x) == len(sizes):
            raise RangeError(f"{encoding}: row [{bad[0]}] holds {sizes[bad[0]]:.4g}, beyond its range")
    return found


_REGISTRY: dict[str, type[Solver]] = {}


def register_solver(kind: type[Solver]) -> type[Solver]:
    """Make `kind.name(...)` known; a decorator."""
    if kind.name in _REGISTRY:
        raise EncodingError(f"solver {kind.name!r} is registered twice")
    _REGISTRY[kind.name] = kind
    return kind


def known_solvers() -> tuple[str, ...]:
    return tuple(sorted(_REGISTRY))


def parse_stored(text: str) -> tuple[Solver | None, str]:
    """A solver (None: round-to-nearest) and the text of the encoding inside it. EncodingError names the known
    ones."""
    match = re.fullmatch(r"\s*(\w+)\s*\((.*)\)\s*", text, re.S)
    if match is None or match[1] not in _REGISTRY:
        _check_name(text)
        return None, text.strip()
    kind, (first, *rest) = _REGISTRY[match[1]], _arguments(match[2])
    if not first or "=" in first.partition("(")[0]:
        raise EncodingError(f"{text.strip()}: a solver needs an encoding, as in {kind.name}(int4(group=32))")
    inner, encoding = parse_stored(first)
    return kind(inner, **_options(kind, rest, text.strip())), encoding


def check_stored(text: str) -> None:
    """EncodingError if the text names no solver and encoding that exist. An encoding whose group is left open
    may lack it."""
    parse_encoding(parse_stored(text)[1])


def _check_name(text: str) -> None:
    name = re.match(r"\s*(\w*)", text)
    inside = re.search(r"\(\s*(\w+)\s*(\()?", text)
    word = name[1] if name else ""
    if inside and (inside[2] or inside[1] in known_encodings()) and word not in known_encodings():
        known = f"solvers: {', '.join(known_solvers())}; encodings: {', '.join(known_encodings())}"
        raise EncodingError(f"unknown solver {word!r} in {text.strip()!r}; {known}")


def _arguments(text: str) -> list[str]:
    """Split at commas outside parentheses."""
    out, depth = [""], 0
    for c in text:
        depth += (c == "(") - (c == ")")
        if c == "," and depth == 0:
            out.append("")
        else:
            out[-1] += c
    return [p.strip() for p in out]


def _options(kind: type[Solver], parts: list[str], text: str) -> dict[str, Any]:
    fields = {f.name: f.default for f in dataclasses.fields(kind) if f.name != "inner"}
    out: dict[str, Any] = {}
    for part in parts:
        key, _, value = (p.strip() for p in part.partition("="))
        if key not in fields or not value:
            raise EncodingError(
                f"{text}: unknown option {part!r}; {kind.name} takes {', '.join(fields) or 'none'}"
            )
        out[key] = _value(value, fields[key], f"{text}: {key}")
    return out


def _value(text: str, like: object, where: str) -> object:
    if isinstance(like, bool):
        if text not in ("true", "false"):
            raise EncodingError(f"{where} must be true or false, got {text!r}")
        return text == "true"
    kind = int if isinstance(like, int) else float
    try:
        value = kind(text)
    except ValueError:
        raise EncodingError(f"{where} must be a number, got {text!r}") from None
    if not 0 <= value < float("inf"):
        raise EncodingError(f"{where} must be finite and not negative, got {text}")
    return value
