"""Building ops: attributes are completed and normalised, operands counted, result types inferred.

In: an op name, operand strings, the types of its tensor operands, attributes. Out: a frozen `Op`, or
`OpTypeError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tilewright.ir.graph.core import Location, Op, Value
from tilewright.ir.ops.base import AttrSpec, OpDef, OpTypeError, find_op
from tilewright.ir.types import BITS, TensorType, as_dim

if TYPE_CHECKING:
    import sympy


def make_op(
    name: str, operands: Sequence[str], operand_types: Sequence[TensorType | None],
    attrs: Mapping[str, object],
    result_names: Sequence[str] = (), loc: Location | None = None, passes: tuple[str, ...] = (),
) -> Op:  # fmt: skip
    """An op with complete, sorted attributes and inferred results. `operand_types` has one entry per tensor
    operand (None for a state is allowed and ignored). Raises OpTypeError."""
    record = find_op(name)
    types = [t for t in operand_types if t is not None]
    check_operands(record, operands)
    full = complete_attrs(record, types, attrs)
    results = record.infer(types, full)
    if len(results) != len(result_names):
        raise OpTypeError(f"{name}: has {len(results)} results, got {len(result_names)} names")
    values = tuple(Value(n, t) for n, t in zip(result_names, results, strict=True))
    return Op(name, tuple(operands), values, tuple(sorted(full.items())), loc, passes)


def infer(
    name: str, operand_types: Sequence[TensorType], attrs: Mapping[str, object]
) -> tuple[TensorType, ...]:
    """Result types of an op on these operands; OpTypeError says what does not fit."""
    record = find_op(name)
    return tuple(record.infer(operand_types, complete_attrs(record, operand_types, attrs)))


def check_operands(record: OpDef, operands: Sequence[str]) -> None:
    """Count and kind (`%value`, `@weight`) of operands."""
    names = record.operands
    low = sum(1 for n in names if n[-1] not in "?*")
    high = math.inf if names and names[-1][-1] == "*" else len(names)
    if not low <= len(operands) <= high:
        count = f"{low}" if low == high else f"{low} to {high}" if high < math.inf else f"at least {low}"
        raise OpTypeError(f"{record.name}: takes {count} operands ({', '.join(names)}), got {len(operands)}")
    for o in operands:
        if o[:1] not in ("%", "@") or len(o) < 2:
            raise OpTypeError(f"{record.name}: operand {o!r} is neither %value nor @weight")
    if record.state and operands[0][0] != "@":
        raise OpTypeError(f"{record.name}: first operand must be a state (@name), got {operands[0]}")


def complete_attrs(
    record: OpDef, types: Sequence[TensorType], attrs: Mapping[str, object]
) -> dict[str, object]:
    """Attributes with defaults filled in, kinds checked, axes non-negative, dimensions canonical."""
    unknown = sorted(set(attrs) - set(record.attrs))
    if unknown:
        known = ", ".join(record.attrs) or "none"
        raise OpTypeError(f"{record.name}: unknown attribute {unknown[0]!r}; known: {known}")
    out: dict[str, object] = {}
    rank = types[0].rank if types else 0
    for key, spec in record.attrs.items():
        value = attrs.get(key, spec.default)
        if value is ...:
            raise OpTypeError(f"{record.name}: attribute {key!r} ({spec.kind}) is missing")
        out[key] = _normal(record.name, key, spec, value, rank)
    return out


def _normal(op: str, key: str, spec: AttrSpec, value: object, rank: int) -> object:
    kind = spec.kind.rstrip("?")
    if value is None and spec.kind.endswith("?"):
        return None
    try:
        return _KINDS[kind](value, rank)
    except (TypeError, ValueError, KeyError) as e:
        raise OpTypeError(f"{op}: attribute {key!r} must be {spec.kind}, got {value!r}") from e


def _int(v: object, rank: int) -> int:
    if isinstance(v, bool) or not hasattr(v, "__index__"):
        raise TypeError
    return int(v.__index__())


def _float(v: object, rank: int) -> float:
    if isinstance(v, bool | str):
        raise TypeError
    x = float(v)  # type: ignore[arg-type]
    return math.nan if math.isnan(x) else x  # one NaN object, so that equal ops compare equal


def _bool(v: object, rank: int) -> bool:
    if not isinstance(v, bool):
        raise TypeError
    return v


def _str(v: object, rank: int) -> str:
    if not isinstance(v, str):
        raise TypeError
    return v


def _dtype(v: object, rank: int) -> str:
    return str({d: d for d in BITS}[_str(v, rank)])


def _axis(v: object, rank: int) -> int:
    axis = _int(v, rank)
    return axis + rank if axis < 0 else axis


def _dim(v: object, rank: int) -> int | sympy.Expr:
    if isinstance(v, bool | float | str):
        raise TypeError
    return _int(v, rank) if hasattr(v, "__index__") else as_dim(v)


def _scalar(v: object, rank: int) -> object:
    if isinstance(v, bool):
        return v
    return _int(v, rank) if hasattr(v, "__index__") else _float(v, rank)


def _many(one: Callable[[object, int], object]) -> Callable[[object, int], object]:
    def kind(v: object, rank: int) -> object:
        if not isinstance(v, tuple | list):
            raise TypeError
        return tuple(one(x, rank) for x in v)

    return kind


_KINDS: dict[str, Callable[[object, int], object]] = {
    "int": _int, "float": _float, "bool": _bool, "str": _str, "dtype": _dtype, "axis": _axis, "dim": _dim,
    "scalar": _scalar, "ints": _many(_int), "dims": _many(_dim), "axes": _many(_axis),
}  # fmt: skip
