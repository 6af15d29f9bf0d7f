"""Bounds of dimensions, given the ranges of their symbols: the arithmetic behind the rules of plans.

In: integers, sympy expressions and affine forms. Out: `Poly`, a sum of products of integers, and proofs about
it: its least and largest value, whether one is never larger than another. A proof may fail although the
statement is true; it never succeeds if it is false.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from tilewright.ir.affine import Affine

#: most terms of a polynomial, and most variables for which all corners of their ranges are tried
MAX_TERMS, MAX_CORNERS = 256, 8
#: magnitudes up to this are well inside 64 bits
MOST = 1 << 62
Ends = tuple[int, int]
Ranges = Mapping[str, Ends]


class NotWhole(ValueError):
    """A dimension that is not an integer, or that a plan cannot compute; the message says why."""


@dataclass(frozen=True)
class Atom:
    """A term that is not polynomial: `floor` or `ceiling` of a polynomial divided by the positive integer
    `by`, `mod` by it, `max` or `min`."""

    kind: str
    args: tuple[Poly, ...]
    by: int = 1

    def __str__(self) -> str:
        inside = ", ".join(map(str, self.args))
        return f"{self.kind}({inside})" if self.by == 1 else f"{self.kind}({inside} / {self.by})"


Name = str | Atom
Monomial = tuple[Name, ...]


@dataclass(frozen=True)
class Poly:
    """`sum(coefficient * product of names)`: sorted, no zero coefficient, so equal polynomials compare
    equal."""

    terms: tuple[tuple[Monomial, int], ...] = ()

    @staticmethod
    def of(n: int | str | Atom) -> Poly:
        if isinstance(n, int):
            return Poly((((), n),)) if n else Poly()
        return Poly((((n,), 1),))

    def __add__(self, other: Poly) -> Poly:
        return _sum([*self.terms, *other.terms])

    def __sub__(self, other: Poly) -> Poly:
        return _sum([*self.terms, *((m, -c) for m, c in other.terms)])

    def __mul__(self, other: Poly) -> Poly:
        if len(self.terms) * len(other.terms) > MAX_TERMS:
            raise NotWhole(f"a product of more than {MAX_TERMS} terms")
        return _sum([(tuple(sorted(a + b, key=str)), c * d) for a, c in self.terms for b, d in other.terms])

    def __str__(self) -> str:
        return (
            " + ".join(
                "*".join([*([str(c)] if c != 1 or not m else []), *map(str, m)]) for m, c in self.terms
            )
            or "0"
        )

    @property
    def names(self) -> tuple[Name, ...]:
        return tuple(dict.fromkeys(n for m, _ in self.terms for n in m))

    def symbols(self) -> set[str]:
        """Names of all symbols, those inside floors and maxima included."""
        return {
            s
            for n in self.names
            for s in ([n] if isinstance(n, str) else [x for p in n.args for x in p.symbols()])
        }


def _sum(terms: list[tuple[Monomial, int]]) -> Poly:
    sums: dict[Monomial, int] = {}
    for m, c in terms:
        sums[m] = sums.get(m, 0) + c
    return Poly(tuple(sorted(((m, c) for m, c in sums.items() if c), key=lambda t: (len(t[0]), str(t[0])))))


ZERO, ONE = Poly.of(0), Poly.of(1)


# ------------------------------------------------------------------ from dimensions
@lru_cache(maxsize=1 << 14)
def polynomial(d: Any) -> Poly:
    """A dimension as a polynomial. Raises NotWhole."""
    if isinstance(d, int):
        return Poly.of(d)
    return _whole(_fractions(d), d)


def _whole(parts: Mapping[Monomial, Fraction], d: object) -> Poly:
    if any(c.denominator != 1 for c in parts.values()):
        raise NotWhole(f"{d} is not an integer for all values of its symbols; write floor(…) or ceiling(…)")
    return _sum([(m, int(c)) for m, c in parts.items()])


def _fractions(d: Any) -> dict[Monomial, Fraction]:
    """An expression as a sum with rational coefficients."""
    if getattr(d, "is_Rational", False):
        return {(): Fraction(int(d.p), int(d.q))}
    kind = type(d).__name__
    if kind == "Symbol":
        return {(str(d),): Fraction(1)}
    if kind == "Add":
        out: dict[Monomial, Fraction] = {}
        for a in d.args:
            for m, c in _fractions(a).items():
                out[m] = out.get(m, Fraction(0)) + c
        return out
    if kind == "Mul":
        return _product([_fractions(a) for a in d.args])
    if kind == "Pow" and d.exp.is_Integer and 0 < int(d.exp) <= 16:
        return _product([_fractions(d.base)] * int(d.exp))
    return {(_atom(d, kind),): Fraction(1)}


def _product(factors: list[dict[Monomial, Fraction]]) -> dict[Monomial, Fraction]:
    out: dict[Monomial, Fraction] = {(): Fraction(1)}
    for f in factors:
        if len(out) * len(f) > MAX_TERMS:
            raise NotWhole(f"a product of more than {MAX_TERMS} terms")
        made: dict[Monomial, Fraction] = {}
        for a, c in out.items():
            for b, e in f.items():
                m = tuple(sorted(a + b, key=str))
                made[m] = made.get(m, Fraction(0)) + c * e
        out = made
    return out


def _atom(d: Any, kind: str) -> Atom:
    if kind in ("floor", "ceiling"):
        top, bottom = d.args[0].as_numer_denom()
        return Atom(kind, (polynomial(top),), _divisor(bottom, d))
    if kind == "Mod":
        return Atom("mod", (polynomial(d.args[0]),), _divisor(d.args[1], d))
    if kind in ("Max", "Min"):
        return Atom(kind.lower(), tuple(sorted(map(polynomial, d.args), key=str)))
    raise NotWhole(
        f"{d}: {kind} is not supported in plans; expected sums, products, floor, ceiling, Mod, Max, Min"
    )


def _divisor(n: Any, d: object) -> int:
    if not getattr(n, "is_Integer", isinstance(n, int)) or int(n) < 1:
        raise NotWhole(f"{d} divides by {n}, expected a positive integer")
    return int(n)


def substituted(a: Affine, values: Mapping[str, Poly]) -> Poly:
    """An affine form with its names replaced. Raises NotWhole for a fraction, KeyError for a name without a
    value."""
    if not a.integral():
        raise NotWhole(f"{a} is not an integer")
    out = Poly.of(int(a.const))
    for name, c in a.terms:
        out = out + Poly.of(int(c)) * values[name]
    return out


def product(dims: Any) -> Poly:
    """The number of elements of a shape."""
    return math.prod(dims, start=ONE)


# ------------------------------------------------------------------ bounds
def bounds(p: Poly, ranges: Ranges) -> Ends:
    """The least and the largest value, or bounds outside them."""
    return _bounds(p, tuple(sorted((n, ranges[n]) for n in p.symbols())))


@lru_cache(maxsize=1 << 14)
def _bounds(p: Poly, ranges: tuple[tuple[str, Ends], ...]) -> Ends:
    known = dict(ranges)
    ends = {n: known[n] if isinstance(n, str) else _atom_bounds(n, known) for n in p.names}
    if len(ends) <= MAX_CORNERS and all(len(set(m)) == len(m) for m, _ in p.terms):
        return _corners(p, ends)  # linear in each name: extremes are at corners
    low = high = 0
    for m, c in p.terms:
        lo, hi = _interval([ends[n] for n in m])
        low, high = low + min(c * lo, c * hi), high + max(c * lo, c * hi)
    return low, high


def _corners(p: Poly, ends: Mapping[Name, Ends]) -> Ends:
    found = []
    for corner in itertools.product(*ends.values()):
        at = dict(zip(ends, corner, strict=True))
        found.append(sum(c * math.prod(at[n] for n in m) for m, c in p.terms))
    return min(found), max(found)


def _interval(factors: list[Ends]) -> Ends:
    lo = hi = 1
    for a, b in factors:
        made = (lo * a, lo * b, hi * a, hi * b)
        lo, hi = min(made), max(made)
    return lo, hi


def _atom_bounds(a: Atom, ranges: Ranges) -> Ends:
    inner = [bounds(p, ranges) for p in a.args]
    lo, hi = inner[0]
    if a.kind == "floor":
        return lo // a.by, hi // a.by
    if a.kind == "ceiling":
        return -(-lo // a.by), -(-hi // a.by)
    if a.kind == "mod":
        return (lo, hi) if lo >= 0 and hi < a.by else (0, a.by - 1)
    pick = max if a.kind == "max" else min
    return pick(x for x, _ in inner), pick(x for _, x in inner)


def at_most(a: Poly, b: Poly, ranges: Ranges) -> bool:
    """Whether a <= b for all values of the symbols."""
    return a == b or bounds(b - a, ranges)[0] >= 0


def computable(p: Poly, ranges: Ranges) -> bool:
    """Whether 64-bit C++ integers give the same value. Intermediate sums and products may wrap, but what is
    divided or compared must fit in 64 bits, and dividends must not be negative, since C++ rounds quotients
    towards zero."""
    for n in p.names:
        if isinstance(n, Atom):
            least = 0 if n.kind in ("floor", "ceiling", "mod") else -MOST
            for x in n.args:
                lo, hi = bounds(x, ranges)
                if lo < least or hi > MOST or not computable(x, ranges):
                    return False
    return True
