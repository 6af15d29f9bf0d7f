"""PyTorch's reductions, running sums, ordering, softmax and normalisations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from tilewright.capture.aten_contract import safe_softmax
from tilewright.capture.context import Capture, aten
from tilewright.ir.types import as_dim


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
    if ord == 2:
        return c.op("sqrt", c.op("sum", c.op("mul", x, x), axes=over, keepdims=keepdim))
    if ord not in (1, float("inf")):
        raise c.no(f"a norm of order {ord}", "use 1, 2 or infinity")
    return c.op("sum" if ord == 1 else "max_reduce", c.op("abs", x), axes=over, keepdims=keepdim)


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


# ------------------------------------------------------------------ softmax and normalisations
@aten("_safe_softmax")
def rows_or_zeros(c: Capture, x: str, dim: int, *_: Any, **__: Any) -> str:
    x = c.cast(x, c.result().dtype)
    return safe_softmax(c, x, c.axis(x, dim))


@aten("softmax.int", "_softmax", "special_softmax")
def softmax(c: Capture, x: str, dim: int, *_: Any, **__: Any) -> str:
    x = c.cast(x, c.result().dtype)
    return c.op("softmax", x, axis=c.axis(x, dim)) if c.rank(x) else c.op("exp", c.op("sub", x, x))


@aten("log_softmax.int", "_log_softmax", "special_log_softmax")
def log_softmax(c: Capture, x: str, dim: int, *_: Any, **__: Any) -> str:
    x = c.cast(x, c.result().dtype)
    return c.op("log_softmax", x, axis=c.axis(x, dim)) if c.rank(x) else c.op("sub", x, x)


@aten("layer_norm")
def layer_norm(
    c: Capture, x: str, shape: Sequence[int], w: str | None = None, b: str | None = None, eps: float = 1e-5,
    cudnn: bool = True,
) -> str:  # fmt: skip
    axis = c.rank(x) - len(shape)
    if w is None and b is None:
        return c.op("layer_norm", x, eps=eps, axis=axis)
    if w is None:
        return c.op("add", c.op("layer_norm", x, eps=eps, axis=axis), b or "")
    return c.op("layer_norm", x, w, *([b] if b else []), eps=eps, axis=axis)


@aten("native_layer_norm")
def native_layer_norm(
    c: Capture, x: str, shape: Sequence[int], w: str | None, b: str | None, eps: float,
) -> tuple[str | None, ...]:  # fmt: skip
    """Its mean and deviation serve the backward pass only."""
    return layer_norm(c, x, shape, w, b, eps), None, None


@aten("rms_norm")
def rms_norm(c: Capture, x: str, shape: Sequence[int], w: str | None = None, eps: float | None = None) -> str:
    small = torch.finfo(c.node.meta["val"].dtype).eps if eps is None else eps
    return c.op("rms_norm", x, *([w] if w else []), eps=small, axis=c.rank(x) - len(shape))


@aten("group_norm")
def group_norm(
    c: Capture, x: str, groups: int, w: str | None = None, b: str | None = None, eps: float = 1e-5,
    cudnn: bool = True,
) -> str:  # fmt: skip
    return c.op("group_norm", x, *[p for p in (w, b) if p], groups=groups, eps=eps)


@aten("instance_norm")
def instance_norm(
    c: Capture, x: str, w: str | None, b: str | None, mean: str | None, spread: str | None, *rest: Any
) -> str:
    """Each channel of each example by its own figures, or all by the running ones."""
    if not rest[0]:
        assert mean and spread
        return str(batch_norm(c, x, w, b, mean, spread, False, rest[1], rest[2]))
    return c.op("group_norm", x, *[p for p in (w, b) if p], groups=c.shape(x)[1], eps=rest[2])


@aten("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(c: Capture, x: str, w: str | None, b: str | None, mean: str, spread: str, *rest: Any) -> Any:
    """In evaluation a product and a sum per channel, of the running figures."""
    eps = rest[-1] if not isinstance(rest[-1], bool) else rest[-2]
    training = next((r for r in rest if isinstance(r, bool)), False)
    if training:
        raise c.no("batch normalisation in training", "call model.eval() first")
    factor = c.op("rsqrt", c.op("add", spread, c.const(eps, c.dtype(spread))))
    factor = c.op("mul", factor, w) if w else factor
    offset = c.op("neg", c.op("mul", mean, factor))
    offset = c.op("add", offset, b) if b else offset
    column = (c.shape(mean)[0], *[1] * (c.rank(x) - 2))
    y = c.op("add", c.op("mul", x, c.reshape(factor, column)), c.reshape(offset, column))
    return (y, None, None) if isinstance(c.node.meta["val"], list | tuple) else y
