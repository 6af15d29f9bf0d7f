"""PyTorch's reductions, running sums and ordering."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tilewright.capture.context import Capture, aten
from tilewright.ir.types import FLOATS, as_dim


# ------------------------------------------------------------------ reductions
def _reduction(name: str, **fixed: object) -> Callable[..., str]:
    def run(c: Capture, x: str, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> str:
        x = c.cast(x, c.result().dtype)
        over = c.axes(x, dim)
        if name in ("max_reduce", "min_reduce"):
            _some(c, x, over)
        return (
            x
            if not over
            else _of_numbers(c, x, lambda y: c.op(name, y, axes=over, keepdims=keepdim, **fixed))
        )

    return run


def _some(c: Capture, x: str, axes: Sequence[int]) -> None:
    """There is no largest of nothing."""
    for d in axes:
        c.at_least(c.shape(x)[d], 1)


def _of_numbers(c: Capture, x: str, run: Callable[[str], str]) -> str:
    """Booleans are reduced as bytes."""
    return c.cast(run(c.cast(x, "u8")), "bool") if c.dtype(x) == "bool" else run(x)


for _n, _ours in (
    ("sum", "sum"), ("mean", "mean"), ("amax", "max_reduce"), ("amin", "min_reduce"),
    ("logsumexp", "logsumexp"),
    ("max.default", "max_reduce"), ("min.default", "min_reduce"),
):  # fmt: skip
    aten(_n)(_reduction(_ours))


@aten("prod.default", "prod.dim_int")
def prod(c: Capture, x: str, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> str:
    x = c.cast(x, c.result().dtype)
    return c.op("prod", x, axes=c.axes(x, dim), keepdims=keepdim) if c.rank(x) else x


def _truth(name: str) -> Callable[..., str]:
    def run(c: Capture, x: str, dim: Any = None, keepdim: bool = False) -> str:
        over, truth = c.axes(x, dim), c.cast(x, "bool")
        return c.cast(c.op(name, truth, axes=over, keepdims=keepdim) if over else truth, c.result().dtype)

    return run


aten("any")(_truth("any"))
aten("all")(_truth("all"))


@aten("var.correction", "var.dim", "var.default")
def var(
    c: Capture, x: str, *args: Any, dim: Any = None, correction: Any = None, keepdim: bool = False,
    unbiased: bool = True,
) -> str:  # fmt: skip
    """`correction` (1 if not given) is taken off the count; older forms say `unbiased`."""
    kind = str(c.node.target).rpartition(".")[2]
    names = {"correction": ["dim"], "dim": ["dim", "unbiased", "keepdim"], "default": ["unbiased"]}[kind]
    given = {"dim": dim, "unbiased": unbiased, "keepdim": keepdim, **dict(zip(names, args, strict=False))}
    if kind != "correction":
        correction = int(given["unbiased"])
    less = 1 if correction is None else correction
    if less != int(less):
        raise c.no(f"a variance with correction {less}", "use an integer")
    return c.op("var", x, axes=c.axes(x, given["dim"]), keepdims=given["keepdim"], correction=int(less))


@aten("var_mean.correction")
def var_mean(
    c: Capture, x: str, dim: Any = None, *, correction: Any = None, keepdim: bool = False
) -> tuple[str, str]:
    over = c.axes(x, dim)
    spread = c.op(
        "var", x, axes=over, keepdims=keepdim, correction=1 if correction is None else int(correction)
    )
    return spread, c.op("mean", x, axes=over, keepdims=keepdim)


def _arg(name: str) -> Callable[..., str]:
    def run(c: Capture, x: str, dim: int | None = None, keepdim: bool = False) -> str:
        x = c.cast(x, "i32") if c.dtype(x) == "bool" else x
        if not c.rank(x):
            return c.const(0, c.result().dtype)
        _some(c, x, c.axes(x, dim))
        if dim is None:
            x = c.reshape(x, [_elements(c, x)])
        out = c.op(name, x, axis=0 if dim is None else c.axis(x, dim), keepdims=keepdim and dim is not None)
        return c.cast(c.reshape(out, c.result().shape), c.result().dtype)

    return run


def _elements(c: Capture, x: str) -> Any:
    total: Any = 1
    for d in c.shape(x):
        total = total * d
    return as_dim(total)


aten("argmax")(_arg("argmax"))
aten("argmin")(_arg("argmin"))


def _with_place(value: str, place: str) -> Callable[..., tuple[str, str]]:
    def run(c: Capture, x: str, dim: int, keepdim: bool = False) -> tuple[str, str]:
        if not c.rank(x):
            return x, c.const(0, c.result(1).dtype)
        axis = c.axis(x, dim)
        _some(c, x, [axis])
        most = _of_numbers(c, x, lambda y: c.op(value, y, axes=(axis,), keepdims=keepdim))
        at = c.op(place, c.cast(x, "u8") if c.dtype(x) == "bool" else x, axis=axis, keepdims=keepdim)
        return most, c.cast(at, c.result(1).dtype)

    return run


aten("max.dim")(_with_place("max_reduce", "argmax"))
aten("min.dim")(_with_place("min_reduce", "argmin"))


@aten("linalg_vector_norm")
def vector_norm(
    c: Capture, x: str, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> str:
    x, over = c.cast(x, c.result().dtype), c.axes(x, dim)
    return norm_of(c, x, float(ord), over, keepdim)


def norm_of(c: Capture, x: str, order: float, over: Sequence[int], keepdims: bool) -> str:
    """The norm of any order; of order 0, how many elements are not 0."""
    dtype, at = c.dtype(x), {"axes": tuple(over), "keepdims": keepdims}
    if order == 2:
        return c.op("sqrt", c.op("sum", c.op("mul", x, x), **at))
    if order == 0:
        return c.op("sum", c.cast(c.op("ne", x, c.const(0, dtype)), dtype), **at)
    size = c.op("abs", x)
    if math.isinf(order):
        return c.op("max_reduce" if order > 0 else "min_reduce", size, **at)
    if order == 1:
        return c.op("sum", size, **at)
    total = c.op("sum", c.op("pow", size, c.const(order, dtype)), **at)
    return c.op("pow", total, c.const(1 / order, dtype))


# ------------------------------------------------------------------ running and ordering
def _running(name: str) -> Callable[..., str]:
    def run(c: Capture, x: str, dim: int, *, dtype: Any = None) -> str:
        x = c.cast(x, c.result().dtype)
        if c.rank(x) == 0:
            return x
        (out,) = _along_last(c, x, dim, lambda y: (c.op(name, y, axis=c.rank(y) - 1),))
        return out

    return run


def _along_last(c: Capture, x: str, dim: int, run: Callable[[str], tuple[str, ...]]) -> tuple[str, ...]:
    """Results of an op that kernels know along the last axis only."""
    perm, axis = list(range(c.rank(x))), c.axis(x, dim)
    perm[axis], perm[-1] = perm[-1], perm[axis]
    return tuple(c.transpose(y, perm) for y in run(c.transpose(x, perm)))


aten("cumsum")(_running("cumsum"))
aten("cumprod")(_running("cumprod"))


@aten("topk")
def topk(
    c: Capture, x: str, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[str, ...]:
    if not isinstance(k, int):
        raise c.no("a count that depends on shapes", "use a fixed count")
    if not c.rank(x):
        if k != 1:
            raise c.no("indexing a zero-dimensional tensor", "leave it out")
        return x, c.const(0, c.result(1).dtype)
    found = _along_last(c, x, dim, lambda y: c.multi("topk", 2, y, k=k, axis=c.rank(y) - 1, largest=largest))
    return found[0], c.cast(found[1], c.result(1).dtype)


@aten("sort", "sort.stable")
def sort(
    c: Capture, x: str, *args: Any, dim: int = -1, descending: bool = False, stable: bool | None = None
) -> tuple[str, ...]:
    dim = args[0] if args else dim
    descending = args[1] if len(args) > 1 else descending
    if not c.rank(x):
        return x, c.const(0, _places_type(c))
    values, places = c.multi("sort", 2, x, axis=c.axis(x, dim), descending=descending)
    return values, c.cast(places, _places_type(c))


def _places_type(c: Capture) -> str:
    val = c.node.meta["val"]
    return c.element((val[1] if isinstance(val, list | tuple) else val).dtype)


@aten("argsort", "argsort.stable")
def argsort(c: Capture, x: str, *args: Any, **named: Any) -> str:
    return sort(c, x, *args, **named)[1]


# ------------------------------------------------------------------ the k-th of an axis
@aten("kthvalue")
def kthvalue(c: Capture, x: str, k: int, dim: int = -1, keepdim: bool = False) -> tuple[str, str]:
    return _at_rank(c, x, dim, c.const(k - 1, "i32"), keepdim)


@aten("median.dim")
def median(c: Capture, x: str, dim: int, keepdim: bool = False) -> tuple[str, str]:
    """The lower of the middle values; the first NaN of a row that has any."""
    size = c.shape(x)[c.axis(x, dim)] if c.rank(x) else 1
    middle = c.op("shr", c.number(as_dim(size - 1)), c.const(1, "i32"))
    if c.rank(x) and c.dtype(x) in FLOATS:
        axis = c.axis(x, dim)
        numbers = c.op("sum", c.op("cast", c.op("eq", x, x), dtype="i32"), axes=(axis,), keepdims=True)
        whole = c.op("eq", numbers, c.number(size))
        middle = c.op("select", whole, middle, c.op("min", numbers, c.number(as_dim(size - 1))))
    return _at_rank(c, x, dim, middle, keepdim)


@aten("median.default")
def median_of_all(c: Capture, x: str) -> str:
    return median(c, c.reshape(x, [_elements(c, x)]), 0)[0]


def _at_rank(c: Capture, x: str, dim: int, place: str, keepdim: bool) -> tuple[str, str]:
    """Value and position of the element that stands at a place once the axis is sorted; `place` is one for
    all, or one for each row."""
    if not c.rank(x):
        return x, c.const(0, "i64")
    axis = c.axis(x, dim)
    _some(c, x, [axis])
    kept = (*c.shape(x)[:axis], 1, *c.shape(x)[axis + 1 :])
    at = c.expand(place, kept)
    found = c.multi("sort", 2, x, axis=axis, descending=False)
    values, places = (c.op("gather_elements", y, at, axis=axis) for y in found)
    shape = kept if keepdim else (*kept[:axis], *kept[axis + 1 :])
    return c.reshape(values, shape), c.cast(c.reshape(places, shape), "i64")
