"""Importers of tensor constructors (arange, full, eye, …), triangles, and assertions left by tracing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.capture.aten_contract import positions_compare
from tilewright.capture.context import Capture, aten
from tilewright.capture.indices import check
from tilewright.ir.types import FLOATS


@aten("arange.default", "arange.start", "arange.start_step")
def arange(c: Capture, *bounds: Any, **_: Any) -> str:
    """The length is PyTorch's own; a start that shapes decide is added to a count from zero."""
    out = c.result()
    start = bounds[0] if len(bounds) > 1 else 0
    step = bounds[2] if len(bounds) > 2 else 1
    number = float if out.dtype in FLOATS else int
    if not isinstance(step, int | float):
        raise c.no("a step that depends on shapes", "use a fixed step")
    known = isinstance(start, int | float)
    ids = c.op(
        "iota",
        size=out.shape[0],
        dtype=out.dtype,
        start=number(start) if known else number(0),
        step=number(step),
    )
    return ids if known else c.op("add", ids, c.operand(start, out.dtype))


def _filled(c: Capture, value: Any) -> str:
    """A constant over PyTorch's result shape."""
    out = c.result()
    if isinstance(value, str) or not isinstance(value, int | float):
        return c.expand(c.operand(value, out.dtype), out.shape)
    if not out.shape:
        return c.const(value, out.dtype)
    return c.op("full", value=c.scalar(value, out.dtype), dtype=out.dtype, shape=out.shape)


@aten("full", "full_like", "new_full", "fill")
def full(c: Capture, like: Any, *args: Any, fill_value: Any = None, **_: Any) -> str:
    return _filled(c, args[-1] if args else fill_value)


@aten("zeros", "zeros_like", "new_zeros", "empty", "empty_like", "new_empty", "empty.memory_format", "zero")
def zeros(c: Capture, *_: Any, **__: Any) -> str:
    """Memory that is not yet written reads as zero here."""
    return _filled(c, 0)


@aten("ones", "ones_like", "new_ones")
def ones(c: Capture, *_: Any, **__: Any) -> str:
    return _filled(c, 1)


@aten("scalar_tensor")
def scalar_tensor(c: Capture, value: Any, **_: Any) -> str:
    return _filled(c, value)


@aten("eye", "eye.m")
def eye(c: Capture, *_: Any, **__: Any) -> str:
    out = c.result()
    return c.cast(positions_compare(c, "eq", out.shape), out.dtype)


@aten("linspace")
def linspace(c: Capture, start: Any, end: Any, steps: Any, **_: Any) -> str:
    if not all(isinstance(x, int | float) for x in (start, end, steps)) or c.result().dtype not in FLOATS:
        raise c.no("bounds or a count that depend on shapes, or integer bounds", "use torch.arange")
    step = (end - start) / (steps - 1) if steps > 1 else 0.0
    return c.op("iota", size=steps, dtype=c.result().dtype, start=float(start), step=float(step))


@aten("tril")
def tril(c: Capture, x: str, diagonal: int = 0) -> str:
    keep = positions_compare(c, "le", c.shape(x)[-2:], diagonal)
    return c.op("select", keep, x, c.const(0, c.dtype(x)))


@aten("triu")
def triu(c: Capture, x: str, diagonal: int = 0) -> str:
    keep = positions_compare(c, "ge", c.shape(x)[-2:], diagonal)
    return c.op("select", keep, x, c.const(0, c.dtype(x)))


def _triangle(places: Callable[..., Any]) -> Callable[..., str]:
    def run(c: Capture, rows: Any, columns: Any, offset: int = 0, **_: Any) -> str:
        if not isinstance(rows, int) or not isinstance(columns, int):
            raise c.no("the indices of a triangle of dynamic size", "use a fixed size")
        return c.numbers(np.stack(places(rows, offset, columns)).astype(np.int64), c.result().dtype)

    return run


aten("tril_indices")(_triangle(np.tril_indices))
aten("triu_indices")(_triangle(np.triu_indices))


@aten("one_hot")
def one_hot(c: Capture, ids: str, num_classes: int = -1) -> str:
    if num_classes < 0:
        raise c.no("a number of classes that depends on the data", "pass num_classes")
    check(c, ids, "", 0, size=num_classes)
    classes = c.op("iota", size=num_classes, dtype=c.dtype(ids))
    return c.cast(c.op("eq", c.reshape(ids, (*c.shape(ids), 1)), classes), c.result().dtype)


# ------------------------------------------------------------------ nothing at run time
@aten(
    "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range",
    "sym_constrain_range_for_size",
    "_functional_assert_async", "_assert_async.msg",
)  # fmt: skip
def assertion(c: Capture, *_: Any, **__: Any) -> None:
    """Checks of shapes and types hold by inference; checks of data are the caller's own."""
