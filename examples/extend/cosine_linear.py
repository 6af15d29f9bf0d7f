"""A user-defined contraction in one file, a linear layer with rows of length 1: x[m] . w[n] / |w[n]|.

The first record says what the op computes, the second how it becomes a kernel; the last line tells capture
which PyTorch operator it is. The weight is encoded by recipes as any linear layer's is, because the record
names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tilewright.capture.context import TABLE
from tilewright.ir.graph.core import Op
from tilewright.ir.ops.base import Array, Attrs, OpDef, register_op
from tilewright.ir.ops.common import Roles, Types, dense, product, require, rounded, same_dim, wide
from tilewright.ir.tile.core import Span
from tilewright.ir.types import TensorType, as_dim
from tilewright.passes.lower.dims import CannotEmit, affine_dim
from tilewright.passes.lower.job import Built, Job
from tilewright.passes.lower.record import Form, Lowering, Matrix, register_lowering

ROWS, COLS, DEPTH = 4, 16, 16


# --- what it computes
def infer(types: Types, at: Attrs) -> Sequence[TensorType]:
    x, w = types
    fits = x.rank == 2 and w.rank == 2 and same_dim(x.shape[1], w.shape[1])
    require(fits, "cosine_linear", "x [M, K] and w [N, K]", list(types))
    return [dense(x, shape=(x.shape[0], w.shape[0]))]


def meaning(args: Sequence[Array], at: Attrs, results: Types) -> Array:
    x, w = wide(args[0]), wide(args[1])
    return rounded(x @ w.T / np.sqrt((w * w).sum(1)), results[0])


def axes(types: Types, at: Attrs) -> Roles:
    return [[("keep", 0), ("reduce",)], [("keep", 1), ("reduce",)]]


def cost(types: Types, at: Attrs) -> object:
    return as_dim(2 * product(types[0].shape) * types[1].shape[0])


register_op(OpDef("cosine_linear", ("x", "w"), {}, infer, meaning, axes, cost))


# --- how it becomes a kernel
def template(job: Job, op: Op) -> list[Built]:
    """One tile of 4 rows and 16 columns per instance; squares are summed beside the products."""
    x, w = op.operands
    n, k = job.matrix(w)
    if k % DEPTH:
        raise CannotEmit(f"cosine_linear of rows of {k}: expected a multiple of {DEPTH}")
    e = job.emitter("cosine_linear")
    i, j = e.b.grid("i", affine_dim(job.shape(x)[0]), ROWS), e.b.grid("j", n, COLS)
    zeros = [e.b.const(0, "f32", (ROWS, COLS)), e.b.const(0, "f32", (COLS, 1))]
    with e.loop("k", 0, k, DEPTH, zeros) as loop:
        rows = e.emit(x, (Span(i, ROWS), Span(loop.var, DEPTH)))
        columns = e.emit(w, (Span(j, COLS), Span(loop.var, DEPTH)))
        squares = e.b.reduce("add", columns * columns, 1)
        loop.yield_(e.b.dot(loop.carried[0], rows, columns), loop.carried[1] + squares)
    products, squares = loop.results
    y = products * e.b.op("rsqrt", e.b.reshape(squares, 1, COLS))
    job.store_results(e, op, (Span(i, ROWS), Span(j, COLS)), y)
    return [job.finish(e)]


register_lowering(
    Lowering("cosine_linear", Form.CONTRACTION, template=template, whole=(0,), matrix=Matrix(), epilogue=True)
)


# --- the PyTorch operator, and the line that imports it
@torch.library.custom_op("user::cosine_linear", mutates_args=())
def cosine_linear(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x @ (w / w.norm(dim=1, keepdim=True)).T


@cosine_linear.register_fake
def _shape(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], w.shape[0])


def _import(c: Any, x: str, w: str, **more: Any) -> Any:
    return c.op("cosine_linear", x, w)


TABLE["user.cosine_linear"] = _import
