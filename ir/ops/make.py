"""Ops that make tensors (const, iota, full) and ops that change how one is stored (encode, decode)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import tilewright.ir.encodings  # noqa: F401  registers the built-in encodings
from tilewright.ir.encoding import EncodingError
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.interp.kv_cache import through
from tilewright.ir.numbers import HELD, hold, int_range
from tilewright.ir.ops.base import Array, Attrs, AttrSpec, OpDef, OpTypeError, register_op
from tilewright.ir.ops.common import (
    Roles,
    Types,
    dense,
    get_dims,
    keep_axes,
    product,
    require,
    require_float,
    shape_of,
)
from tilewright.ir.types import FLOATS, TensorType, as_dim


def _no_axes(types: Types, at: Attrs) -> Roles:
    return []


def _free(types: Types, at: Attrs) -> object:
    return 0


def check_scalar(op: str, value: object, dtype: str) -> None:
    """A number that `dtype` holds: integers within range for integer types, bools for bool."""
    if dtype == "bool":
        ok = isinstance(value, bool)
    elif dtype in FLOATS:
        ok = not isinstance(value, bool)
    else:
        lo, hi = int_range(dtype)
        ok = isinstance(value, int) and not isinstance(value, bool) and lo <= value <= hi
    if not ok:
        raise OpTypeError(f"{op}: {value!r} is not a value of {dtype}")


def _infer_const(name: str) -> object:
    def infer(types: Types, at: Attrs) -> Sequence[TensorType]:
        dtype = str(at["dtype"])
        check_scalar(name, at["value"], dtype)
        return [TensorType(dtype, get_dims(at, "shape"))]

    return infer


def _fill(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    value = hold(np.asarray(at["value"], HELD[results[0].dtype]), results[0].dtype)
    return np.full(shape_of(results[0]), value)


_DTYPE = AttrSpec("dtype", "f32")
for _name, _shape in (("const", AttrSpec("dims", ())), ("full", AttrSpec("dims"))):
    register_op(OpDef(
        _name, (), {"value": AttrSpec("scalar"), "dtype": _DTYPE, "shape": _shape},
        _infer_const(_name), _fill, _no_axes, _free,  # type: ignore[arg-type]
    ))  # fmt: skip


def _infer_iota(types: Types, at: Attrs) -> Sequence[TensorType]:
    dtype = str(at["dtype"])
    for key in ("start", "step"):
        require(
            not isinstance(at[key], float) or dtype in FLOATS,
            "iota",
            f"an integer {key} for {dtype}",
            at[key],
        )
    return [TensorType(dtype, (as_dim(at["size"]),))]


def _iota(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    n = np.arange(shape_of(results[0])[0])
    return hold(np.asarray(at["start"]) + n * np.asarray(at["step"]), results[0].dtype)


register_op(
    OpDef(
        "iota",
        (),
        {
            "size": AttrSpec("dim"),
            "dtype": AttrSpec("dtype", "i32"),
            "start": AttrSpec("scalar", 0),
            "step": AttrSpec("scalar", 1),
        },
        _infer_iota,
        _iota,
        _no_axes,
        _free,
        doc="start, start + step, …",
    )
)


# ------------------------------------------------------------------ encode, decode
def _infer_encode(types: Types, at: Attrs) -> Sequence[TensorType]:
    require_float("encode", types[0])
    require(types[0].encoding is None, "encode", "a dense operand", f"one stored as {types[0].encoding}")
    try:
        encoding = parse_encoding(str(at["encoding"]))
        if all(isinstance(d, int) for d in types[0].shape):
            encoding.check(shape_of(types[0]))
    except EncodingError as e:
        raise OpTypeError(f"encode: {e}") from e
    return [types[0].with_(encoding=encoding)]


def _encode(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    """The interpreter represents an encoded value by its decoded numbers, rounding error included."""
    return hold(through(results[0].encoding, args[0]), results[0].dtype)


def _axes_encode(types: Types, at: Attrs) -> Roles:
    last = types[0].rank - 1
    return [[("mix", d) if d == last else ("keep", d) for d in range(types[0].rank)]]


def _cost_encode(types: Types, at: Attrs) -> object:
    return as_dim(3 * product(types[0].shape))


register_op(
    OpDef("encode", ("x",), {"encoding": AttrSpec("str")}, _infer_encode, _encode, _axes_encode, _cost_encode)
)
register_op(
    OpDef(
        "decode",
        ("x",),
        {},
        lambda types, at: [dense(types[0])],
        lambda a, at, r: a[0],
        lambda types, at: [keep_axes(types[0])],
        _cost_encode,
    )
)
