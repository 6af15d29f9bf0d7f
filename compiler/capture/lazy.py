"""Stored tensors and their transformations on the way into a module, as expressions; nothing is read.

In: entries of safetensors headers. Out: `Lazy` values, combined like arrays. Independent of models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.errors import RefusedError
from tilewright.ir.graph.core import Apply, Stored, WeightExpr, walk_expr
from tilewright.ir.types import TensorType

#: dtypes of checkpoints that are kept as stored; all are f32 to the graph
KEPT = ("bf16", "f16")


@dataclass(frozen=True)
class Lazy:
    """A tensor as an expression over stored ones. `dtype`: that of the stored tensors (f32 if they
    differ)."""

    expr: WeightExpr
    shape: tuple[int, ...]
    dtype: str

    def reshape(self, *shape: int) -> Lazy:
        if shape == self.shape:
            return self
        if math.prod(shape) != math.prod(self.shape):
            raise RefusedError(f"cannot reshape {list(self.shape)} to {list(shape)}", origin(self.expr))
        return Lazy(Apply("reshape", (self.expr,), (("shape", shape),)), shape, self.dtype)

    def transpose(self, *perm: int) -> Lazy:
        shape = tuple(self.shape[p] for p in perm)
        return Lazy(Apply("transpose", (self.expr,), (("perm", perm),)), shape, self.dtype)

    def swap(self, a: int, b: int) -> Lazy:
        perm = list(range(len(self.shape)))
        perm[a], perm[b] = perm[b], perm[a]
        return self.transpose(*perm)

    def slice(self, axis: int, start: int, stop: int, step: int = 1) -> Lazy:
        axis %= len(self.shape)
        size = len(range(*slice(start, stop, step).indices(self.shape[axis])))
        attrs: tuple[tuple[str, object], ...] = (("axis", axis), ("start", start), ("stop", stop))
        attrs = (*attrs[:2], ("step", step), attrs[2]) if step != 1 else attrs
        shape = (*self.shape[:axis], size, *self.shape[axis + 1 :])
        return Lazy(Apply("slice", (self.expr,), attrs), shape, self.dtype)

    def chunks(self, count: int, axis: int) -> list[Lazy]:
        """Equal parts along an axis, as torch.chunk cuts them."""
        size = self.shape[axis]
        step = -(-size // count)
        return [self.slice(axis, n, min(n + step, size)) for n in range(0, size, step)]

    def type(self) -> TensorType:
        """What the graph sees: f32, encoded as stored; integers as they are."""
        if self.dtype in KEPT:
            return TensorType("f32", self.shape, parse_encoding(self.dtype))
        return TensorType("f32" if self.dtype == "f64" else self.dtype, self.shape)


def stored(file: str, key: str, shape: Sequence[int], dtype: str) -> Lazy:
    return Lazy(Stored(file, key), tuple(shape), dtype)


def concat(parts: Sequence[Lazy], axis: int) -> Lazy:
    """Joined along an axis; RefusedError names the tensors if the others disagree."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].shape
    axis %= len(first)
    for p in parts[1:]:
        if len(p.shape) != len(first) or any(
            a != b for n, (a, b) in enumerate(zip(p.shape, first, strict=True)) if n != axis
        ):
            message = f"cannot concatenate {list(p.shape)} to {list(first)} along axis {axis}"
            raise RefusedError(
                message, origin(p.expr), "the checkpoint is incomplete or mixes different models"
            )
    shape = (*first[:axis], sum(p.shape[axis] for p in parts), *first[axis + 1 :])
    return Lazy(Apply("concat", tuple(p.expr for p in parts), (("axis", axis),)), shape, _common(parts))


def stack(parts: Sequence[Lazy], axis: int) -> Lazy:
    """Stacked along a new axis; RefusedError names a tensor of another shape."""
    first = parts[0].shape
    for p in parts[1:]:
        if p.shape != first:
            message = f"cannot stack {list(p.shape)} with {list(first)}"
            raise RefusedError(
                message, origin(p.expr), "the checkpoint is incomplete or mixes different models"
            )
    shape = (*first[:axis], len(parts), *first[axis:])
    return Lazy(Apply("stack", tuple(p.expr for p in parts), (("axis", axis),)), shape, _common(parts))


def _common(parts: Sequence[Lazy]) -> str:
    kinds = {p.dtype for p in parts}
    return kinds.pop() if len(kinds) == 1 else "f32"


def origin(e: WeightExpr) -> str:
    """The files and keys an expression reads, for messages (the first two)."""
    names = [f"{s.file}: {s.key}" for s in walk_expr(e) if isinstance(s, Stored)]
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
