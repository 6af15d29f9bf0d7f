"""Pointwise ops: expressions over the scalar primitives of Tile IR.

One expression defines both: the NumPy semantics are the expression evaluated on arrays, a kernel is the same
expression evaluated on tiles. Operands broadcast as in NumPy. Expressions are written to be accurate near
zero and free of overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.ir.numbers import HELD, hold
from tilewright.ir.ops.base import Array, Attrs, AttrSpec, OpDef, OpTypeError, register_op
from tilewright.ir.ops.common import (
    Roles,
    Types,
    broadcast_roles,
    broadcast_shapes,
    product,
    require,
    same_dtype,
)
from tilewright.ir.tile.core import TileType
from tilewright.ir.tile.ops import PRIMITIVES, TILE_OPS
from tilewright.ir.types import FLOATS, TensorType

#: the element types that each kind of operand may have
KINDS: dict[str, tuple[str, ...]] = {
    "float": FLOATS, "bool": ("bool",), "int": tuple(d for d in HELD if d not in FLOATS and d != "bool"),
}  # fmt: skip
KINDS["number"] = KINDS["float"] + KINDS["int"]
KINDS["bits"] = KINDS["int"] + ("bool",)
KINDS["any"] = KINDS["number"] + ("bool",)
_NAMES = {np.dtype(held): name for name, held in reversed(HELD.items()) if name not in ("bf16", "f16")}


class NumpyPrims:
    """Scalar primitives on NumPy arrays. Constants get `dtype`, and float32 arrays are treated as values of
    it."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def __getattr__(self, name: str) -> Callable[..., Array]:
        if name not in PRIMITIVES:
            raise AttributeError(f"{name!r} is not a scalar primitive; known: {', '.join(PRIMITIVES)}")
        op = TILE_OPS[name]

        def apply(*args: Array) -> Array:
            arrays = np.broadcast_arrays(*[np.asarray(a) for a in args])
            types = [TileType(self._name(a), a.shape) for a in arrays]
            return op.meaning(arrays, {}, op.infer(types, {}))

        return apply

    def const(self, value: float, dtype: str | None = None) -> Array:
        return np.asarray(value, HELD[dtype or self.dtype])

    def cast(self, x: Array, dtype: str) -> Array:
        return hold(x, dtype)

    def _name(self, a: Array) -> str:
        return self.dtype if a.dtype == HELD[self.dtype] else _NAMES[a.dtype]


def pointwise(
    name: str, arity: int, expr: Callable[..., Any], kinds: str = "float", result: str = "",
    attrs: Mapping[str, AttrSpec] | None = None, doc: str = "", **facts: Any,
) -> OpDef:  # fmt: skip
    """Register `name` as `expr(p, x, y, …, **attrs)`. `kinds`: float, int, number, bool, bits, any; `result`:
    its element type (that of the operands unless said); `facts`: fields of its record that rewrites rely
    on."""

    def infer(types: Types, at: Attrs) -> Sequence[TensorType]:
        dtype = same_dtype(name, types)
        require(dtype in KINDS[kinds], name, f"operands of kind {kinds}", list(types))
        return [TensorType(result or dtype, broadcast_shapes(name, [t.shape for t in types]))]

    return register_op(pointwise_record(name, arity, expr, infer, attrs or {}, doc, **facts))


def pointwise_record(
    name: str, arity: int, expr: Callable[..., Any], infer: Callable[[Types, Attrs], Sequence[TensorType]],
    attrs: Mapping[str, AttrSpec], doc: str = "", **facts: Any,
) -> OpDef:  # fmt: skip
    def meaning(args: Sequence[Array], at: Attrs, results: Types) -> Array:
        value = next((a for a in reversed(args)), np.zeros((), np.float32))
        dtype = results[0].dtype if value.dtype == HELD[results[0].dtype] else _NAMES[value.dtype]
        out = np.asarray(expr(NumpyPrims(dtype), *args, **at))
        shape = np.broadcast_shapes(*(a.shape for a in args))
        return np.array(np.broadcast_to(out, shape))

    def axes(types: Types, at: Attrs) -> Roles:
        return broadcast_roles(types, max(t.rank for t in types))

    def cost(types: Types, at: Attrs) -> object:
        return product(broadcast_shapes(name, [t.shape for t in types]))

    operands = tuple("abcdefgh"[:arity]) if arity > 1 else ("x",)
    return OpDef(name, operands, attrs, infer, meaning, axes, cost, expr, doc=doc, **facts)


def _prim(name: str, arity: int, kinds: str, result: str = "") -> OpDef:
    linear = _LINEAR.get(name, ())
    return pointwise(name, arity, lambda p, *xs: getattr(p, name)(*xs), kinds, result, linear=linear)


#: the groups of operands in which primitives are linear
_LINEAR: dict[str, tuple[tuple[int, ...], ...]] = {
    "add": ((0, 1),), "sub": ((0, 1),), "mul": ((0,), (1,)), "div": ((0,),), "neg": ((0,),),
    "fma": ((0, 2), (1, 2)),
}  # fmt: skip
for _n in ("add", "sub", "mul", "div", "min", "max"):
    _prim(_n, 2, "number")
for _n in ("lt", "le", "eq", "ne"):
    _prim(_n, 2, "any" if _n in ("eq", "ne") else "number", "bool")
for _n in ("and", "or", "xor"):
    _prim(_n, 2, "bits")
for _n in ("shl", "shr"):
    _prim(_n, 2, "int")
for _n in ("exp", "log", "sqrt", "rsqrt", "sin", "cos", "erf", "floor", "round"):
    _prim(_n, 1, "float")
for _n in ("neg", "abs"):
    _prim(_n, 1, "number")
_prim("not", 1, "bits")
_prim("rem", 2, "number")
_prim("fma", 3, "number")
pointwise("gt", 2, lambda p, a, b: p.lt(b, a), "number", "bool")
pointwise("ge", 2, lambda p, a, b: p.le(b, a), "number", "bool")


# ------------------------------------------------------------------ activations
def _sigmoid(p: Any, x: Any) -> Any:
    return p.div(p.const(1.0), p.add(p.const(1.0), p.exp(p.neg(x))))


def _silu(p: Any, x: Any) -> Any:
    return p.div(x, p.add(p.const(1.0), p.exp(p.neg(x))))


#: tanh's Taylor series from its highest power down: to x^11, and to x^23 for f64
_TANH = (-1382 / 155925, 62 / 2835, -17 / 315, 2 / 15, -1 / 3, 1.0)
_TANH_F64 = (
    -3.927832388331683e-05, 9.691537956929451e-05, -0.00023912911424355248, 0.000590027440945586,
    -0.0014558343870513183,
    0.003592128036572481, *_TANH,
)  # fmt: skip


def _tanh(p: Any, x: Any) -> Any:
    """Below 0.3 the odd Taylor polynomial (relative error 2e-9; of f64 2e-16); above, (1 - e) / (1 + e) with
    e = exp(-2|x|)."""
    a = p.abs(x)
    e = p.exp(p.mul(p.const(-2.0), a))
    big = p.div(p.sub(p.const(1.0), e), p.add(p.const(1.0), e))
    signed = p.select(p.lt(x, p.const(0.0)), p.neg(big), big)
    first, *rest = _TANH_F64 if p.dtype == "f64" else _TANH
    x2, poly = p.mul(x, x), p.const(first)
    for c in rest:
        poly = p.fma(poly, x2, p.const(c))
    return p.select(p.lt(a, p.const(0.3)), p.mul(x, poly), signed)


def _gelu(p: Any, x: Any) -> Any:
    return p.mul(p.mul(p.const(0.5), x), p.add(p.const(1.0), p.erf(p.mul(x, p.const(math.sqrt(0.5))))))


def _gelu_tanh(p: Any, x: Any) -> Any:
    """x (1 + tanh u) / 2 = x / (1 + exp(-2u)), which needs no tanh and does not cancel."""
    inner = p.fma(p.mul(x, p.mul(x, x)), p.const(0.044715), x)
    return p.div(x, p.add(p.const(1.0), p.exp(p.mul(p.const(-2 * math.sqrt(2 / math.pi)), inner))))


def _softplus(p: Any, x: Any) -> Any:
    """max(x, 0) + log1p(exp(-|x|)); log1p(e) = log(u) e / (u - 1) with u = 1 + e, exact; where u rounds to 1
    it is e."""
    e = p.exp(p.neg(p.abs(x)))
    u = p.add(p.const(1.0), e)
    tiny = p.eq(u, p.const(1.0))
    gap = p.select(tiny, p.const(1.0), p.sub(u, p.const(1.0)))
    log1p = p.select(tiny, e, p.div(p.mul(p.log(u), e), gap))
    return p.add(p.max(x, p.const(0.0)), log1p)


def _pow(p: Any, a: Any, b: Any) -> Any:
    """exp(b log|a|), negated for a negative base with an odd exponent; NaN for a fractional one; 1 for an
    exponent of 0."""
    zero = p.const(0.0)
    size = p.exp(p.mul(b, p.log(p.abs(a))))
    odd = p.ne(p.mul(p.floor(p.mul(b, p.const(0.5))), p.const(2.0)), b)
    signed = p.select(odd, p.neg(size), size)
    whole = p.eq(p.floor(b), b)
    negative = p.select(whole, signed, p.div(zero, zero))
    return p.select(p.eq(b, zero), p.const(1.0), p.select(p.lt(a, zero), negative, size))


pointwise("sigmoid", 1, _sigmoid)
pointwise("silu", 1, _silu)
pointwise("tanh", 1, _tanh)
pointwise("gelu", 1, _gelu)
pointwise("gelu_tanh", 1, _gelu_tanh)
pointwise("quick_gelu", 1, lambda p, x: p.div(x, p.add(p.const(1.0), p.exp(p.mul(p.const(-1.702), x)))))
pointwise("relu", 1, lambda p, x: p.max(x, p.const(0.0)), homogeneous=((0,),))
pointwise("relu2", 1, lambda p, x: p.mul(p.max(x, p.const(0.0)), p.max(x, p.const(0.0))))
pointwise("softplus", 1, _softplus)
pointwise("logit", 1, lambda p, x: p.log(p.div(x, p.sub(p.const(1.0), x))))
pointwise("pow", 2, _pow)


# ------------------------------------------------------------------ with attributes or mixed element types
def _clamp(p: Any, x: Any, lo: float | None, hi: float | None) -> Any:
    x = x if lo is None else p.max(x, p.const(lo))
    return x if hi is None else p.min(x, p.const(hi))


pointwise(
    "clamp", 1, _clamp, "number", attrs={"lo": AttrSpec("scalar?", None), "hi": AttrSpec("scalar?", None)}
)


def _infer_select(types: Types, at: Attrs) -> Sequence[TensorType]:
    require(types[0].dtype == "bool", "select", "a bool condition", types[0])
    dtype = same_dtype("select", types[1:])
    return [TensorType(dtype, broadcast_shapes("select", [t.shape for t in types]))]


def _infer_cast(types: Types, at: Attrs) -> Sequence[TensorType]:
    dtype = str(at["dtype"])
    if dtype not in KINDS["any"] or dtype[0] == "u" and dtype not in ("u8", "u16", "u32"):
        raise OpTypeError(f"cast: {dtype} is not an element type of values")
    return [TensorType(dtype, types[0].shape)]


register_op(
    pointwise_record("select", 3, lambda p, c, a, b: p.select(c, a, b), _infer_select, {}, linear=((1, 2),))
)
register_op(
    pointwise_record(
        "cast",
        1,
        lambda p, x, dtype: p.cast(x, dtype),
        _infer_cast,
        {"dtype": AttrSpec("dtype")},
        linear=((0,),),
        moves=True,
    )
)
