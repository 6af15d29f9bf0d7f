"""Reductions and running sums: float sums accumulate in float64 and round once, integer sums wrap around.

argmax and argmin give i32; of equal values the first index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.ir.ops.base import Array, Attrs, AttrSpec, AxisRole, OpDef, register_op
from tilewright.ir.ops.common import (
    BOOL,
    Roles,
    Types,
    axis_attr,
    check_axis,
    dense,
    get_int,
    get_ints,
    int_attr,
    product,
    require,
    require_float,
    wide,
    wrapped,
)  # fmt: skip
from tilewright.ir.types import TensorType

_AXES: dict[str, AttrSpec] = {"axes": AttrSpec("axes"), "keepdims": BOOL}


def _over(at: Attrs) -> tuple[int, ...]:
    return get_ints(at, "axes") if "axes" in at else (get_int(at, "axis"),)


def _infer(name: str, result: str, kind: str) -> Callable[[Types, Attrs], Sequence[TensorType]]:
    def infer(types: Types, at: Attrs) -> Sequence[TensorType]:
        x, over = types[0], _over(at)
        if kind == "float":
            require_float(name, x)
        require(
            (x.dtype == "bool") == (kind == "bool"),
            name,
            "a bool operand" if kind == "bool" else "numbers",
            x,
        )
        for axis in over:
            check_axis(name, axis, x)
        require(len(set(over)) == len(over), name, "distinct axes", over)
        kept = [1 if d in over else s for d, s in enumerate(x.shape) if d not in over or at["keepdims"]]
        return [dense(x, shape=tuple(kept), dtype=result or x.dtype)]

    return infer


def _axes(types: Types, at: Attrs) -> Roles:
    over, place, roles = _over(at), 0, list[AxisRole]()
    for d in range(types[0].rank):
        if d in over:
            roles.append(("reduce",))
            place += bool(at["keepdims"])
        else:
            roles.append(("keep", place))
            place += 1
    return [roles]


def _cost(types: Types, at: Attrs) -> object:
    return product(types[0].shape)


def reduction(
    name: str,
    fn: Callable[..., Any],
    kind: str = "number",
    result: str = "",
    attrs: dict[str, AttrSpec] | None = None,
    linear: tuple[tuple[int, ...], ...] = (),
) -> OpDef:
    """Register reduction `name`, computed by `fn(x, axis, keepdims, …)` with x as float64, int64 or bool,
    over one axis or several."""

    def meaning(args: Sequence[Array], at: Attrs, results: Types) -> Array:
        extra = {k: v for k, v in at.items() if k not in ("axes", "axis", "keepdims")}
        x = args[0] if args[0].dtype == np.bool_ else wide(args[0])
        over: Any = at["axis"] if "axis" in at else _over(at)
        return wrapped(fn(x, axis=over, keepdims=bool(at["keepdims"]), **extra), results[0])

    infer = _infer(name, result, kind)
    return register_op(OpDef(name, ("x",), attrs or _AXES, infer, meaning, _axes, _cost, linear=linear))


def _logsumexp(x: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    top = x.max(axis=axis, keepdims=True, initial=-np.inf)
    top = np.where(np.isinf(top), 0.0, top)
    out: Array = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top
    return out if keepdims else out.squeeze(axis)


def _var(x: Array, axis: tuple[int, ...], keepdims: bool, correction: int) -> Array:
    return np.asarray(x.var(axis=axis, keepdims=keepdims, ddof=correction))


reduction("sum", np.sum, linear=((0,),))
reduction("mean", np.mean, "float", linear=((0,),))
reduction("max_reduce", np.max)
reduction("min_reduce", np.min)
reduction("prod", np.prod)
reduction("any", np.any, "bool", "bool")
reduction("all", np.all, "bool", "bool")
reduction("logsumexp", _logsumexp, "float")
reduction("var", _var, "float", attrs={**_AXES, "correction": int_attr(1)})
_ARG: dict[str, AttrSpec] = {"axis": axis_attr(), "keepdims": BOOL}
reduction("argmax", np.argmax, result="i32", attrs=_ARG)
reduction("argmin", np.argmin, result="i32", attrs=_ARG)


# ------------------------------------------------------------------ running
def _running(name: str, fn: Callable[..., Any]) -> OpDef:
    def infer(types: Types, at: Attrs) -> Sequence[TensorType]:
        require(types[0].dtype != "bool", name, "numbers", types[0])
        check_axis(name, get_int(at, "axis"), types[0])
        return [dense(types[0])]

    def meaning(args: Sequence[Array], at: Attrs, results: Types) -> Array:
        return wrapped(fn(wide(args[0]), axis=get_int(at, "axis")), results[0])

    def axes(types: Types, at: Attrs) -> Roles:
        return [[("causal" if d == at["axis"] else "keep", d) for d in range(types[0].rank)]]

    return register_op(OpDef(name, ("x",), {"axis": axis_attr()}, infer, meaning, axes, _cost))


_running("cumsum", np.cumsum)
_running("cumprod", np.cumprod)
