"""The record that defines a graph op, and the registry. An op is defined in one place and one place only.

A record gives operands, attributes, type inference, the reference semantics in NumPy, the role of each axis,
and the cost. A pointwise op is an *expression* over the scalar primitives of Tile IR, from which semantics,
inference, axis roles and kernels all follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tilewright.ir.types import TensorType

if TYPE_CHECKING:
    from tilewright.ir.graph.core import Op

Array = NDArray[Any]
Attrs = Mapping[str, object]

#: What an op does to one axis of one operand: ("keep", result axis), ("reduce",), ("broadcast", result axis),
#: ("mix", result axis), ("causal", result axis) (mixes, but position i reads only positions <= i), ("shift",
#: result axis).
AxisRole = tuple[str, int] | tuple[str]


#: symbol in costs: how many positions a token of a step attends to; no shape gives it, since the caches hold
#: them
CONTEXT = "context"


class OpTypeError(ValueError):
    """Operands or attributes that do not fit an op; the message says expected and got."""


@dataclass(frozen=True)
class AttrSpec:
    """Kind is one of int, float, bool, str, dtype, ints, dims; `default` ... means required."""

    kind: str
    default: object = ...


@dataclass(frozen=True)
class Gain:
    """The result is f(x) times operand `weight`, plus operand `bias`, along the axes from attribute `axis`
    on. `offset`: the attribute that is added to the weight; `turns`: rotations pass through, f(xQ) = f(x)Q
    for every orthogonal Q on those axes."""

    weight: int = 1
    bias: int = 2
    offset: str = ""
    turns: bool = False


@dataclass(frozen=True)
class OpDef:
    """`operands`: names; a trailing `?` marks an optional one (absent operands are simply left out at the
    end), a trailing `*` a variadic last one. `state`: the first operand is a state (`@kv.0`), and the op is
    ordered. `cost`: arithmetic operations, an expression in the symbols of its operands' shapes and CONTEXT.

    What rewrites may rely on, up to rounding; an op that states none of it is left as it is. `linear`: groups
    of operands that the result is linear in while the others are fixed, such as (0, 2), x and the bias of a
    linear layer. `homogeneous`: groups whose common positive factor also multiplies the result, although it
    is not linear in them. `moves`: every element of the results is an element of an operand, possibly at
    another index or in another element type. `counts`: the attribute that names a symbol, which gets its
    value when the op runs: the one number in the last operand. `taken`: for result n, the one axis along
    which indices change and, for each index of the result along it, the index of the operand that it is
    linear in; None where sizes are known at run time only."""

    name: str
    operands: tuple[str, ...]
    attrs: Mapping[str, AttrSpec]
    infer: Callable[[Sequence[TensorType], Attrs], Sequence[TensorType]]
    meaning: Callable[..., Array | tuple[Array, ...]]
    axes: Callable[[Sequence[TensorType], Attrs], Sequence[Sequence[AxisRole]]]
    cost: Callable[[Sequence[TensorType], Attrs], object] | None = None
    expr: Callable[..., object] | None = None
    state: bool = False
    doc: str = ""
    linear: tuple[tuple[int, ...], ...] = ()
    homogeneous: tuple[tuple[int, ...], ...] = ()
    moves: bool = False
    taken: Callable[[Sequence[TensorType], Attrs, int], tuple[int, Array] | None] | None = None
    gain: Gain | None = None
    counts: str = ""


OPS: dict[str, OpDef] = {}


def register_op(op: OpDef) -> OpDef:
    """Add an op to the registry. Raises OpTypeError if the name is taken."""
    if not isinstance(op, OpDef):
        raise OpTypeError(f"register_op: expected an OpDef, got {type(op).__name__}")
    if op.name in OPS:
        raise OpTypeError(f"op {op.name!r} is registered twice")
    OPS[op.name] = op
    return op


def find_op(name: str) -> OpDef:
    """The record of an op; OpTypeError names close matches."""
    import difflib

    if name not in OPS:
        near = difflib.get_close_matches(name, OPS, 3)
        raise OpTypeError(f"unknown op {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    return OPS[name]


def counted_in(ops: Iterable[Op]) -> list[str]:
    """The symbols that get their values while these ops run."""
    named = [op.attr(key) for op in ops if op.name in OPS and (key := OPS[op.name].counts)]
    return [str(size) for size in named if not isinstance(size, int)]
