"""Shape ops, which only move elements: reshape, transpose, expand, slice, split, concat, pad, flip, roll."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tilewright.ir.numbers import HELD
from tilewright.ir.ops.base import Array, Attrs, AttrSpec, AxisRole, OpDef, OpTypeError, register_op
from tilewright.ir.ops.common import (
    Roles,
    Types,
    axis_attr,
    check_axis,
    dense,
    get_dims,
    get_int,
    get_ints,
    int_attr,
    mix_axes,
    product,
    replace_at,
    require,
    same_dim,
    same_dtype,
    same_shape,
    shape_of,
    shape_text,
)  # fmt: skip
from tilewright.ir.types import TensorType, as_dim

if TYPE_CHECKING:
    import sympy


def _no_cost(types: Types, at: Attrs) -> object:
    return 0


#: rules of ops whose results hold elements of their one operand
X = ((0,),)


# ------------------------------------------------------------------ reshape
def _infer_reshape(types: Types, at: Attrs) -> Sequence[TensorType]:
    shape = get_dims(at, "shape")
    if not same_dim(product(types[0].shape), product(shape)):
        raise OpTypeError(
            f"reshape: {shape_text(types[0].shape)} does not hold as many elements as {shape_text(shape)}"
        )
    return [dense(types[0], shape=shape)]


def _axes_reshape(types: Types, at: Attrs) -> Roles:
    """An axis is kept where the elements before it and its own size agree on both sides; the axes of a merged
    or split run mix into the first result axis of that run."""
    old, new = types[0].shape, get_dims(at, "shape")
    roles: list[AxisRole] = []
    for group_old, group_new in reshape_groups(old, new):
        if len(group_old) == len(group_new) == 1:
            roles.append(("keep", group_new[0]))
        else:
            roles.extend([("mix", group_new[0] if group_new else max(len(new) - 1, 0))] * len(group_old))
    return [roles]


def reshape_groups(
    old: Sequence[int | sympy.Expr], new: Sequence[int | sympy.Expr]
) -> list[tuple[list[int], list[int]]]:
    """Runs of axes of the operand and of the result that hold the same elements, as short as can be proved:
    [([0], [0]), ([1, 2], [1])]."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        if i < len(old) and j < len(new) and same_dim(old[i], new[j]):
            groups.append(([i], [j]))
            i, j = i + 1, j + 1
            continue
        a, b = _shortest_match(old[i:], new[j:])
        groups.append((list(range(i, i + a)), list(range(j, j + b))))
        i, j = i + a, j + b
    return groups


def _shortest_match(old: Sequence[int | sympy.Expr], new: Sequence[int | sympy.Expr]) -> tuple[int, int]:
    left = [product(old[:a]) for a in range(len(old) + 1)]
    right = [product(new[:b]) for b in range(len(new) + 1)]
    for total in range(1, len(old) + len(new) + 1):
        for a in range(max(0, total - len(new)), min(total, len(old)) + 1):
            if same_dim(left[a], right[total - a]) and (a and total - a or left[a] == 1):
                return a, total - a
    return len(old), len(new)


def _reshape(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    return args[0].reshape(shape_of(results[0]))


register_op(
    OpDef(
        "reshape",
        ("x",),
        {"shape": AttrSpec("dims")},
        _infer_reshape,
        _reshape,
        _axes_reshape,
        _no_cost,
        linear=X,
        moves=True,
    )
)


# ------------------------------------------------------------------ transpose, expand
def _infer_transpose(types: Types, at: Attrs) -> Sequence[TensorType]:
    perm = get_ints(at, "perm")
    require(
        sorted(perm) == list(range(types[0].rank)),
        "transpose",
        f"a permutation of {types[0].rank} axes",
        f"{perm}",
    )
    return [dense(types[0], shape=tuple(types[0].shape[p] for p in perm))]


def _axes_transpose(types: Types, at: Attrs) -> Roles:
    perm = get_ints(at, "perm")
    return [[("keep", perm.index(d)) for d in range(types[0].rank)]]


register_op(OpDef(
    "transpose", ("x",), {"perm": AttrSpec("axes")}, _infer_transpose, lambda a, at,
    r: a[0].transpose(get_ints(at, "perm")),
    _axes_transpose, _no_cost, linear=X, moves=True,
))  # fmt: skip


def _infer_expand(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, shape = types[0], get_dims(at, "shape")
    first = len(shape) - x.rank
    ok = first >= 0 and all(a == 1 or same_dim(a, b) for a, b in zip(x.shape, shape[first:], strict=True))
    require(ok, "expand", f"a shape to which {shape_text(x.shape)} broadcasts", shape_text(shape))
    return [dense(x, shape=shape)]


def _axes_expand(types: Types, at: Attrs) -> Roles:
    shape = get_dims(at, "shape")
    first = len(shape) - types[0].rank
    stretched = [types[0].shape[d] == 1 and shape[first + d] != 1 for d in range(types[0].rank)]
    return [[("broadcast" if s else "keep", first + d) for d, s in enumerate(stretched)]]


register_op(
    OpDef(
        "expand",
        ("x",),
        {"shape": AttrSpec("dims")},
        _infer_expand,
        lambda a, at, r: np.array(np.broadcast_to(a[0], shape_of(r[0]))),
        _axes_expand,
        _no_cost,
        linear=X,
        moves=True,
    )
)


# ------------------------------------------------------------------ slice, split, concat
def _infer_slice(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, axis, step = types[0], check_axis("slice", get_int(at, "axis"), types[0]), get_int(at, "step")
    start, stop = as_dim(at["start"]), as_dim(at["stop"])
    require(step >= 1, "slice", "a positive step", f"step {step}")
    for bound in (start, stop):
        inside = (
            not isinstance(bound, int)
            or bound >= 0
            and not (isinstance(x.shape[axis], int) and bound > x.shape[axis])
        )
        require(inside, "slice", f"0 <= start <= stop <= {x.shape[axis]}", f"{start} and {stop}")
    length = as_dim(stop - start)
    require(not isinstance(length, int) or length >= 0, "slice", "start <= stop", f"{start} and {stop}")
    if step > 1:
        length = _ceil_div(length, step)
    return [dense(x, shape=replace_at(x.shape, axis, length))]


def _ceil_div(n: int | sympy.Expr, step: int) -> int | sympy.Expr:
    if isinstance(n, int):
        return -(-n // step)
    import sympy

    return as_dim(sympy.ceiling(n / step))


def _slice(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    index = [slice(None)] * args[0].ndim
    index[get_int(at, "axis")] = slice(get_int(at, "start"), get_int(at, "stop"), get_int(at, "step"))
    return args[0][tuple(index)]


def _axes_along(types: Types, at: Attrs) -> Roles:
    return [mix_axes(t, [get_int(at, "axis")]) for t in types]


def _taken_slice(types: Types, at: Attrs, result: int) -> tuple[int, Array] | None:
    bounds = at["start"], at["stop"]
    if not all(isinstance(b, int) for b in bounds):
        return None
    return get_int(at, "axis"), np.arange(get_int(at, "start"), get_int(at, "stop"), get_int(at, "step"))


register_op(OpDef(
    "slice", ("x",), {"axis": axis_attr(), "start": AttrSpec("dim", 0), "stop": AttrSpec("dim"),
    "step": int_attr(1)},
    _infer_slice, _slice, _axes_along, _no_cost, linear=X, moves=True, taken=_taken_slice,
))  # fmt: skip


def _infer_split(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, axis, sizes = types[0], check_axis("split", get_int(at, "axis"), types[0]), get_dims(at, "sizes")
    total = as_dim(sum(sizes))
    require(
        same_dim(total, x.shape[axis]), "split", f"sizes that sum to {x.shape[axis]}", f"{shape_text(sizes)}"
    )
    return [dense(x, shape=replace_at(x.shape, axis, s)) for s in sizes]


def _split(args: Sequence[Array], at: Attrs, results: Types) -> tuple[Array, ...]:
    cuts = np.cumsum(get_ints(at, "sizes"))[:-1]
    return tuple(np.split(args[0], cuts, get_int(at, "axis")))


def _taken_split(types: Types, at: Attrs, result: int) -> tuple[int, Array] | None:
    sizes = get_dims(at, "sizes")
    if not all(isinstance(n, int) for n in sizes[: result + 1]):
        return None
    return get_int(at, "axis"), np.arange(sum(sizes[:result]), sum(sizes[: result + 1]))


register_op(
    OpDef(
        "split",
        ("x",),
        {"axis": axis_attr(), "sizes": AttrSpec("dims")},
        _infer_split,
        _split,
        _axes_along,
        _no_cost,
        linear=X,
        moves=True,
        taken=_taken_split,
    )
)


def _infer_concat(types: Types, at: Attrs) -> Sequence[TensorType]:
    first, axis = types[0], check_axis("concat", get_int(at, "axis"), types[0])
    dtype = same_dtype("concat", types)
    for t in types[1:]:
        fits = t.rank == first.rank and same_shape(
            replace_at(t.shape, axis, 0), replace_at(first.shape, axis, 0)
        )
        require(fits, "concat", f"shapes that are equal except on axis {axis}", list(types))
    return [
        dense(
            first, dtype=dtype, shape=replace_at(first.shape, axis, as_dim(sum(t.shape[axis] for t in types)))
        )
    ]


register_op(
    OpDef(
        "concat",
        ("x", "xs*"),
        {"axis": axis_attr()},
        _infer_concat,
        lambda a, at, r: np.concatenate(a, get_int(at, "axis")),
        _axes_along,
        _no_cost,
        moves=True,
    )
)


# ------------------------------------------------------------------ pad, flip, roll, repeat
def _infer_pad(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, pads = types[0], get_dims(at, "pads")
    require(
        len(pads) == 2 * x.rank,
        "pad",
        f"{2 * x.rank} amounts (before and after, axis by axis)",
        f"{len(pads)}",
    )
    require(
        all(not isinstance(p, int) or p >= 0 for p in pads), "pad", "amounts of 0 or more", shape_text(pads)
    )
    return [dense(x, shape=tuple(as_dim(d + pads[2 * n] + pads[2 * n + 1]) for n, d in enumerate(x.shape)))]


def _pad(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    pads = get_ints(at, "pads")
    pairs = list(zip(pads[0::2], pads[1::2], strict=True))
    return np.pad(args[0], pairs, constant_values=np.asarray(at["value"], HELD[results[0].dtype]))


def _axes_pad(types: Types, at: Attrs) -> Roles:
    pads = get_dims(at, "pads")
    return [mix_axes(types[0], [d for d in range(types[0].rank) if pads[2 * d] != 0 or pads[2 * d + 1] != 0])]


register_op(
    OpDef(
        "pad",
        ("x",),
        {"pads": AttrSpec("dims"), "value": AttrSpec("scalar", 0)},
        _infer_pad,
        _pad,
        _axes_pad,
        _no_cost,
    )
)


def _infer_flip(types: Types, at: Attrs) -> Sequence[TensorType]:
    for axis in get_ints(at, "axes"):
        check_axis("flip", axis, types[0])
    return [dense(types[0])]


def _axes_listed(types: Types, at: Attrs) -> Roles:
    return [mix_axes(types[0], get_ints(at, "axes"))]


register_op(
    OpDef(
        "flip",
        ("x",),
        {"axes": AttrSpec("axes")},
        _infer_flip,
        lambda a, at, r: np.flip(a[0], get_ints(at, "axes")),
        _axes_listed,
        _no_cost,
        linear=X,
        moves=True,
    )
)


def _infer_roll(types: Types, at: Attrs) -> Sequence[TensorType]:
    require(
        len(get_ints(at, "shifts")) == len(get_ints(at, "axes")), "roll", "one shift for each axis", dict(at)
    )
    return _infer_flip(types, at)


register_op(OpDef(
    "roll", ("x",), {"shifts": AttrSpec("ints"), "axes": AttrSpec("axes")}, _infer_roll,
    lambda a, at, r: np.roll(a[0], get_ints(at, "shifts"), get_ints(at, "axes")), _axes_listed, _no_cost,
    linear=X, moves=True,
))  # fmt: skip


def _infer_repeat(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, repeats = types[0], get_ints(at, "repeats")
    require(
        len(repeats) == x.rank and all(n >= 0 for n in repeats), "repeat", f"{x.rank} counts", f"{repeats}"
    )
    return [dense(x, shape=tuple(as_dim(d * n) for d, n in zip(x.shape, repeats, strict=True)))]


register_op(OpDef(
    "repeat", ("x",), {"repeats": AttrSpec("ints")}, _infer_repeat, lambda a, at,
    r: np.tile(a[0], get_ints(at, "repeats")),
    lambda types, at: [mix_axes(types[0], [d for d, n in enumerate(get_ints(at, "repeats")) if n != 1])],
    _no_cost, linear=X, moves=True,
    doc="tiles each axis",
))  # fmt: skip
