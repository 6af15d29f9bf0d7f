"""Affine expressions over names: the index and size arithmetic of Tile IR.

In: integers, names (loop variables, symbols, schedule parameters, `%scalar` tiles). Out: a canonical,
hashable sum. Independent of tiles, layouts or text grammars; `str()` is the text form and the grammar
parses exactly that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

Number = int | Fraction
Scalar = "int | str | Affine"


@dataclass(frozen=True, slots=True)
class Affine:
    """`sum(coefficient * name) + const`, terms sorted by name, no zero coefficient.

    Coefficients may be fractions while an index is still symbolic (`g/32` where g counts in steps of 32);
    `integral()` says whether all of them have become whole.
    """

    terms: tuple[tuple[str, Number], ...] = ()
    const: Number = 0

    @staticmethod
    def of(x: int | str | Fraction | Affine) -> Affine:
        """An affine from an integer, a name or an affine."""
        if isinstance(x, Affine):
            return x
        return Affine(((x, 1),)) if isinstance(x, str) else Affine((), whole(x))

    @property
    def is_const(self) -> bool:
        return not self.terms

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.terms)

    def coefficient(self, name: str) -> Number:
        return next((c for n, c in self.terms if n == name), 0)

    def integral(self) -> bool:
        return all(type(c) is int for _, c in self.terms) and type(self.const) is int

    def as_int(self) -> int:
        """The value of a constant; ValueError if names or a fraction are left."""
        if self.terms or Fraction(self.const).denominator != 1:
            raise ValueError(f"{self} is not an integer constant")
        return int(self.const)

    def __add__(self, other: int | str | Affine) -> Affine:
        right = Affine.of(other)
        if not right.terms:
            return Affine(self.terms, whole(self.const + right.const))
        if not self.terms:
            return Affine(right.terms, whole(self.const + right.const))
        sums = dict(self.terms)
        for name, c in right.terms:
            sums[name] = sums.get(name, 0) + c
        return _make(sums, self.const + right.const)

    __radd__ = __add__

    def __neg__(self) -> Affine:
        return self * -1

    def __sub__(self, other: int | str | Affine) -> Affine:
        return self + -Affine.of(other)

    def __rsub__(self, other: int | str | Affine) -> Affine:
        return Affine.of(other) + -self

    def __mul__(self, n: int | Fraction) -> Affine:
        if not n:
            return Affine()
        return Affine(tuple([(name, whole(c * n)) for name, c in self.terms]), whole(self.const * n))

    __rmul__ = __mul__

    def __truediv__(self, n: int) -> Affine:
        return self * Fraction(1, n)

    def bind(self, values: Mapping[str, int | str | Affine]) -> Affine:
        """Names replaced by integers, other names or affines; unknown names stay."""
        if not any(name in values for name, _ in self.terms):
            return self
        out = Affine((), self.const)
        for name, c in self.terms:
            out = out + Affine.of(values.get(name, name)) * c
        return out

    def __str__(self) -> str:
        text = ""
        for name, c in self.terms:
            c = Fraction(c)
            sign, mag = ("-", -c) if c < 0 else ("+", c)
            term = (
                (f"{mag.numerator}*" if mag.numerator != 1 else "")
                + name
                + (f"/{mag.denominator}" if mag.denominator != 1 else "")
            )
            text += f" {sign} {term}" if text else (f"-{term}" if sign == "-" else term)
        if self.const or not text:
            c = Fraction(self.const)
            mag = abs(c)
            number = str(mag.numerator) + (f"/{mag.denominator}" if mag.denominator != 1 else "")
            text += (f" {'-' if c < 0 else '+'} {number}") if text else ("-" if c < 0 else "") + number
        return text


def whole(c: Number) -> Number:
    """A fraction with denominator one as an int, so that equal affines compare and hash equal."""
    if type(c) is int:
        return c
    return int(c) if Fraction(c).denominator == 1 else c


def _make(sums: Mapping[str, Number], const: Number) -> Affine:
    terms = [(n, whole(c)) for n, c in sums.items() if c]
    if len(terms) > 1:
        terms.sort()
    return Affine(tuple(terms), whole(const))
