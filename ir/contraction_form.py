"""How contractions use an encoding: its integer and float dots, and the activations that they take.

Lowering asks `encoding.contraction_form` of weights and `encoding.operand_form` of activations, and knows no
encoding by name. value = unit(code) * scale + offset, where blocks along K share scale and offset; scales
have two factors: `part` differs from block to block, `row` is applied once, after the whole row's dot.
Formulas are given the arithmetic to use (`b`) and a reader of streams (`get`), and run on tiles and on arrays
alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tilewright.ir.formulas import Arithmetic, TileWriter, Value

#: reads one stream by name, at the elements that a formula is evaluated for
Get = Callable[[str], Value]


@dataclass(frozen=True)
class OperandForm:
    """Activations as the signed operand of integer dots: streams `codes` (i8) and `scale` (f32, one per row,
    or one for `block` elements of it). `zero` is not 0: also `sums` (i32), -zero * sum(codes) for `group`
    elements of the row (0: all), which is where the accumulator starts.
    """

    block: int = 0
    group: int = 0
    zero: int = 0


class ContractionForm(ABC):
    """Weights [.., N, K] as an operand of dots. `block`: elements of K that share a factor (0: the row);
    `outer`: elements that share a factor of factors (0: none); `step`: the run of K that starts and ends on
    whole bytes of every stream and on whole blocks.
    """

    block: int = 0
    outer: int = 0
    #: whether units are exact in bf16, so that bf16 activations and units can be multiplied by a bf16 dot
    narrow: ClassVar[bool] = True

    @property
    @abstractmethod
    def step(self) -> int: ...

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Bits of a code."""

    @property
    @abstractmethod
    def code_streams(self) -> tuple[str, ...]:
        """The streams that codes are read from, low bits first."""

    @abstractmethod
    def covers(self, stream: str) -> str:
        """What one entry of a stream covers: `element`, `block`, `outer`, `row` or `tensor`."""

    # ------------------------------------------------------------ float dots
    @abstractmethod
    def units(self, b: Arithmetic, get: Get, dtype: str = "f32", centred: bool = True) -> Value:
        """Units as `dtype`, exactly. Not `centred`: before the block's zero point is subtracted."""

    def part(self, b: Arithmetic, get: Get) -> Any:
        """f32 factor of a block; None if there are no blocks."""
        return None

    def row(self, b: Arithmetic, get: Get) -> Value | None:
        """f32 factor of a row."""
        return None

    def offset(self, b: Arithmetic, get: Get) -> Any:
        """f32 number added to every value of a block."""
        return None

    # ------------------------------------------------------------ integer dots
    #: how much larger the unsigned operand of an integer dot is than its unit; the dot's accumulator starts
    #: at -zero * sum(x). None: no integer dot
    zero: int | None = None
    #: the factor from (integer - zero) to the unit
    unit_scale: ClassVar[float] = 1.0

    @abstractmethod
    def integers(self, b: Arithmetic, get: Get) -> Value:
        """u8 operand: (integer - zero) * unit_scale is the unit."""

    def zeros(self, b: Arithmetic, get: Get) -> Value | None:
        """u8 zero of a block, where it differs from block to block (then `zero` is 1: bare sums)."""
        return None

    def whole_part(self, b: Arithmetic, get: Get) -> Any:
        """The block's factor as i32, if it is an integer: then the row's sum stays an integer."""
        return None

    # ------------------------------------------------------------ sums of terms
    #: binary planes: a value is its offset plus the sum of this many bits, each times its own factor; 0:
    #: values are codes times a scale
    terms: int = 0

    def term(self, b: Arithmetic, get: Get, n: int) -> Value:
        """u8 bit of the n-th term."""
        return self.integers(b, get)

    def factor(self, b: Arithmetic, get: Get, n: int) -> Value:
        """f32 factor of the n-th term, of a block or a row."""
        return self.part(b, get)

    # ------------------------------------------------------------ what there is
    #: whether blocks have offsets, zeros of their own, integer factors (`whole_part`)
    has_offset: bool = False
    has_zeros: bool = False
    integer_parts: bool = False

    def meeting(self, x: OperandForm) -> OperandForm | None:
        """The form that integer activations take for these weights: with the sums that their zero needs. None
        if there is no integer dot, or the groups of both sides do not fit each other.
        """
        if self.zero is None or not self.fits(x):
            return None
        return OperandForm(x.block, (self.block or x.block) if self.zero else 0, self.zero)

    def fits(self, x: OperandForm) -> bool:
        """Whether the activations' groups are whole groups of the weights."""
        return not x.block or (x.block % self.block == 0 if self.block else not self.terms)


class Side(ABC):
    """Side streams of an encoding, whose values are added to those of its codes: `+ sparse(1%)`."""

    #: what the text says before the parenthesis
    name: ClassVar[str] = ""

    @property
    @abstractmethod
    def streams(self) -> tuple[str, ...]:
        """Names of its streams, which no other part of the encoding may have."""

    @property
    def prefetch(self) -> tuple[tuple[str, int], ...]:
        """(loop of `tile_contract`, iterations ahead) worth prefetching."""
        return ()

    @abstractmethod
    def tile_add(
        self, b: TileWriter, values: Value, get: Callable[..., Value], index: Sequence[object], k: int
    ) -> Value:
        """f32 `values` at `index` of an array with rows of `k` elements, plus those of the side streams;
        `get(stream, entry)` loads an entry of the rows of `index`.
        """

    @abstractmethod
    def tile_contract(
        self, b: TileWriter, acc: Value, x: Callable[[Any], Value], get: Callable[[str, Any], Value], k: int
    ) -> Value:
        """acc [rows, columns] plus the products of the side streams: `x(at)` loads entries of the
        activations' rows, as they lie, and `get(stream, at)` those of a stream, one row of the weights a row.
        """
