"""PyTorch's shape operators: views, permutations, slices, joins, flips and rolls.

In: tensors, sizes that may be symbolic. Out: move ops. Shapes of results are the ones PyTorch inferred, so a
`-1` never arises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tilewright.capture.context import Capture, aten
from tilewright.capture.indices import check
from tilewright.capture.symbols import Dim
from tilewright.ir.types import as_dim

END = 2**62


@aten(
    "view",
    "_unsafe_view",
    "reshape",
    "unsqueeze",
    "squeeze",
    "flatten",
    "unflatten",
    "_reshape_alias",
    "view_copy",
)
def reshape(c: Capture, x: str, *_: Any, **__: Any) -> str:
    """Views that keep the order of elements; `view.dtype` is another thing."""
    if str(c.node.target).endswith("view.dtype"):
        raise c.no("reinterpreting a tensor's bits as another type", "cast instead")
    return c.reshape(x, c.result().shape)


@aten("expand", "expand_copy", "broadcast_to", "expand_as")
def expand(c: Capture, x: str, *_: Any, **__: Any) -> str:
    return c.expand(x, c.result().shape)


@aten("permute", "permute_copy")
def permute(c: Capture, x: str, dims: Sequence[int]) -> str:
    return c.transpose(x, [c.axis(x, d) for d in dims])


@aten("transpose.int")
def transpose(c: Capture, x: str, a: int, b: int) -> str:
    perm = list(range(c.rank(x)))
    a, b = c.axis(x, a), c.axis(x, b)
    perm[a], perm[b] = perm[b], perm[a]
    return c.transpose(x, perm)


@aten("t", "numpy_T", "mT")
def t(c: Capture, x: str) -> str:
    return x if c.rank(x) < 2 else transpose(c, x, -2, -1)


# ------------------------------------------------------------------ parts
def cut(c: Capture, x: str, axis: int, start: Dim, stop: Dim, step: int = 1) -> str:
    """x[start:stop:step] along an axis, bounds within it."""
    if start == 0 and stop == c.shape(x)[axis] and step == 1:
        return x
    return c.op("slice", x, axis=axis, start=start, stop=stop, step=step)


def begin_of(size: Dim, at: Dim) -> Dim:
    """An end of a slice counted from the front and moved into the axis where both are known."""
    if not isinstance(at, int):
        return at
    if at < 0:
        at = as_dim(size + at)
        return max(at, 0) if isinstance(at, int) else at
    return min(at, size) if isinstance(size, int) else at


@aten("slice.Tensor", "slice_copy")
def slice_(c: Capture, x: str, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> str:
    """A symbolic axis cut at a known place: PyTorch's result shape says where the cut really falls."""
    axis = c.axis(x, dim)
    size = c.shape(x)[axis]
    begin = begin_of(size, 0 if start is None else start)
    length = c.result().shape[axis]
    stop = (
        as_dim(begin + length)
        if step == 1
        else begin_of(size, size if end is None or end == END * 2 - 1 else end)
    )
    if step != 1 and isinstance(stop, int) and not isinstance(size, int) and stop > 1 << 31:
        stop = size
    return cut(c, x, axis, begin, stop, step)


@aten("select.int", "select_copy")
def select(c: Capture, x: str, dim: int, index: Any) -> str:
    axis = c.axis(x, dim)
    size = c.shape(x)[axis]
    if isinstance(index, str):  # a tensor's only element
        check(c, index, x, axis, negative=True)
        index = c.index(index)
        below = c.op("lt", index, c.const(0, "i32"))
        listed = c.reshape(c.op("select", below, c.op("add", index, c.number(size)), index), (1,))
        return c.reshape(c.op("gather", x, listed, axis=axis), c.result().shape)
    if isinstance(index, int):
        c.at_least(size, -index if index < 0 else index + 1)
    at = as_dim(size + index) if isinstance(index, int) and index < 0 else index
    part = cut(c, x, axis, at, as_dim(at + 1))
    return c.reshape(part, c.result().shape)


def _pieces(c: Capture, x: str, axis: int) -> tuple[str, ...]:
    """Cut as PyTorch did: the sizes are those of its results."""
    sizes = tuple(c.result(n).shape[axis] for n in range(len(c.node.meta["val"])))
    return (x,) if len(sizes) == 1 else c.multi("split", len(sizes), x, axis=axis, sizes=sizes)


@aten(
    "split",
    "split_with_sizes",
    "chunk",
    "unsafe_split",
    "unsafe_chunk",
    "unsafe_split_with_sizes",
    "split_with_sizes_copy",
)
def split(c: Capture, x: str, sizes: Any, dim: int = 0) -> tuple[str, ...]:
    return _pieces(c, x, c.axis(x, dim))


@aten("unbind")
def unbind(c: Capture, x: str, dim: int = 0) -> tuple[str, ...]:
    axis, count = c.axis(x, dim), len(c.node.meta["val"])
    parts = (x,) if count == 1 else c.multi("split", count, x, axis=axis, sizes=(1,) * count)
    return tuple(c.reshape(p, c.result(n).shape) for n, p in enumerate(parts))


# ------------------------------------------------------------------ joins
@aten("cat", "concat", "concatenate")
def cat(c: Capture, xs: Sequence[str], dim: int = 0) -> str:
    out = c.result()
    parts = [c.cast(x, out.dtype) for x in xs if c.rank(x) == out.rank]
    return parts[0] if len(parts) == 1 else c.op("concat", *parts, axis=dim % out.rank)


@aten("stack")
def stack(c: Capture, xs: Sequence[str], dim: int = 0) -> str:
    out = c.result()
    axis = dim % out.rank
    one = (*out.shape[:axis], 1, *out.shape[axis + 1 :])
    parts = [c.reshape(c.cast(x, out.dtype), one) for x in xs]
    return parts[0] if len(parts) == 1 else c.op("concat", *parts, axis=axis)


@aten("repeat", "tile")
def repeat(c: Capture, x: str, repeats: Sequence[Any]) -> str:
    """Copies side by side; symbolic counts are stretched over new axes of one."""
    out = c.result().shape
    counts = [1] * (len(out) - len(repeats)) + list(repeats)
    x = c.reshape(x, (1,) * (len(out) - c.rank(x)) + c.shape(x))
    if all(isinstance(n, int) for n in counts):
        return x if all(n == 1 for n in counts) else c.op("repeat", x, repeats=tuple(counts))
    sizes = c.shape(x)
    spread = c.expand(
        c.reshape(x, [d for s in sizes for d in (1, s)]),
        [d for n, s in zip(counts, sizes, strict=True) for d in (n, s)],
    )
    return c.reshape(spread, out)


@aten("repeat_interleave.self_int")
def repeat_interleave(
    c: Capture, x: str, repeats: int, dim: int | None = None, *, output_size: Any = None
) -> str:
    """Each element `repeats` times in a row: a new axis of that length behind it."""
    flat = c.reshape(x, [as_dim(count(c.shape(x)))]) if dim is None else x
    axis = 0 if dim is None else c.axis(x, dim)
    shape = list(c.shape(flat))
    before, after = shape[: axis + 1], shape[axis + 1 :]
    wide = c.expand(c.reshape(flat, [*before, 1, *after]), [*before, repeats, *after])
    return c.reshape(wide, c.result().shape)


def count(shape: Sequence[Dim]) -> Dim:
    out: Dim = 1
    for d in shape:
        out = out * d
    return out


@aten("flip")
def flip(c: Capture, x: str, dims: Sequence[int]) -> str:
    return c.op("flip", x, axes=c.axes(x, dims)) if dims and c.rank(x) else x


@aten("roll")
def roll(c: Capture, x: str, shifts: Any, dims: Sequence[int] = ()) -> str:
    moves = [shifts] if isinstance(shifts, int) else list(shifts)
    if dims:
        return c.op("roll", x, shifts=tuple(moves), axes=c.axes(x, dims))
    flat = c.reshape(x, [as_dim(count(c.shape(x)))])
    return c.reshape(c.op("roll", flat, shifts=tuple(moves), axes=(0,)), c.shape(x))
