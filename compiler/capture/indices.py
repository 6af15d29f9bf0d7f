"""Data-dependent indices: their known ranges, and the results that report out-of-bounds ones to the runtime.

In: an index and the axis that it reads. Out: nothing where it cannot lie outside; else scalars among the
graph's results: how far the indices reach beyond the axis at either end. Kernels read zeros there: PyTorch
raises, and so does the runtime.
"""

from __future__ import annotations

import numpy as np

from tilewright.capture.known_values import not_negative
from tilewright.capture.making import Making
from tilewright.capture.symbols import Dim
from tilewright.ir.graph.core import Inline, Op
from tilewright.ir.numbers import STORED
from tilewright.ir.types import INTEGERS, as_dim

_SAME = ("reshape", "expand", "transpose", "slice", "flip", "roll", "repeat")
_PLACES = ("argmax", "argmin", "topk", "sort")


def check(
    c: Making, ids: str, table: str, axis: int, negative: bool = False, size: Dim | None = None
) -> None:
    """Every index lies within the axis of `table` (or within `size` places); `negative`: it may count from
    the end."""
    ids = ids if c.dtype(ids) == "i64" else c.index(ids)
    size = c.shape(table)[axis] if size is None else size
    least: Dim = as_dim(-size) if negative else 0
    key = (ids, least, size)
    if not c.checks.wanted or key in c.checks.seen or _inside(c, ids, size):
        return
    c.checks.seen.add(key)
    flat, dtype = c.reshape(ids, [_count(c, ids)]), c.dtype(ids)
    what = _name(c, table) if table else "the classes"
    about = (_origin(c, ids), _text(least), _text(size), what, axis, c.loc.text if c.loc else "")
    ends = [("beyond", c.op("sub", flat, c.number(as_dim(size - 1), dtype)), "max_reduce")]
    if not not_negative(c, ids):
        gap = c.op("add", flat, c.number(size, dtype)) if negative else flat
        ends.append(("before", gap, "min_reduce"))
    for kind, gap, reduce in ends:
        worst = c.op(reduce, c.cast(gap, "f64" if dtype == "i64" else "f32"), axes=(0,), keepdims=False)
        c.checks.found.append((f"check_{len(c.checks.found)}.{kind}", worst, about))


def _count(c: Making, ids: str) -> Dim:
    out: Dim = 1
    for d in c.shape(ids):
        out = out * d
    return as_dim(out)


def _text(d: Dim) -> int | str:
    return d if isinstance(d, int) else str(d)


def _name(c: Making, table: str) -> str:
    """What the model calls the tensor that is read; its shape where it is none of its own."""
    if table[0] == "@" or any(f"%{v.name}" == table for v in c.b.inputs):
        return table[1:]
    return f"a tensor of shape {[_text(d) for d in c.shape(table)]}"


def _origin(c: Making, ids: str) -> str:
    """The input that the index is, but for its shape; "" for one that is computed."""
    op = c.producer(ids)
    while op is not None and op.name in (*_SAME, "cast", "gather"):
        ids, op = op.operands[0], c.producer(op.operands[0])
    return ids[1:] if op is None and ids[0] == "%" else ""


# ------------------------------------------------------------------ what is known
def _inside(c: Making, ids: str, size: Dim) -> bool:
    """Whether an index is made so that it lies within 0 … size - 1."""
    op = c.producer(ids)
    # one picked outside is 0, which lies inside
    while op is not None and (
        op.name in (*_SAME, "gather") or op.name == "cast" and c.dtype(op.operands[0]) in INTEGERS
    ):
        ids, op = op.operands[0], c.producer(op.operands[0])
    if op is None:
        return size != 0 and ids[0] == "@" and isinstance(size, int) and _constant_inside(c, ids[1:], size)
    if op.name in _PLACES:
        x = op.operands[0]
        return bool(c.shape(x)[int(str(op.attr("axis")))] == size)
    if op.name == "iota":
        return _counts_inside(op, size)
    if op.name in ("const", "full") and isinstance(size, int):
        value = op.attr("value")
        return isinstance(value, int) and 0 <= value < size
    if op.name == "clamp" and isinstance(size, int):
        lo, hi = op.attr("lo"), op.attr("hi")
        return isinstance(lo, int) and isinstance(hi, int) and 0 <= lo <= hi < size
    return False


def _counts_inside(op: Op, size: Dim) -> bool:
    start, step, n = op.attr("start"), op.attr("step"), op.attr("size")
    if start == 0 and step == 1 and n == size:
        return True
    if not (
        isinstance(start, int) and isinstance(step, int) and isinstance(n, int) and isinstance(size, int)
    ):
        return False
    ends = (start, start + step * (n - 1))
    return n == 0 or 0 <= min(ends) <= max(ends) < size


def _constant_inside(c: Making, name: str, size: int) -> bool:
    w = c.b.weights[name]
    if not isinstance(w.source, Inline) or w.type.dtype not in INTEGERS:
        return False
    values = np.frombuffer(w.source.data, STORED[w.type.dtype])
    return values.size == 0 or bool(values.min() >= 0 and values.max() < size)
