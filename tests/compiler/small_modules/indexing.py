"""Elements picked and replaced by indices: gather, index, scatter in every reduction, masks."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.compiler.small_modules.base import ALL, F32, F64, NUMBERS, Case, case, fixed, ids, mask, x

A, V = x(5, 4, 6), x(5, 6)
I, J, K = ids(5, 3), ids(4, 3, low=-4), ids(6, 2, 3)
E, T = ids(5, 3, 4, 6), x(3, 4, 6, seed=1)


FEW, ENDS = fixed(3, 0, 1), fixed(1, -1, 2)


def reduced(how: str, include: bool = True):  # type: ignore[no-untyped-def]
    return lambda a, i, s: a.scatter_reduce(0, i, s, how, include_self=include)


CASES: dict[str, Case] = {
    "embedding": case(lambda a, i: F.embedding(i, a), V, ids(5, 2, 3)),
    "embedding with padding": case(lambda a, i: F.embedding(i, a, padding_idx=1), V, ids(5, 2, 3)),
    "index_select": case(lambda a, i: (a.index_select(0, i), a.index_select(1, i % 4)), A, I, of=ALL),
    "gather": case(lambda a, i: (a.gather(0, i), a.gather(2, i)), A, E, of=ALL),
    "gather of one axis": case(lambda a, i: a[0, 0].gather(0, i), A, I, of=ALL),
    "take_along_dim": case(
        lambda a: torch.take_along_dim(a, a.argsort(dim=1, stable=True), 1), V, of=NUMBERS
    ),
    "index": case(lambda a, i, j: (a[i], a[:, j], a[..., i]), A, I, J, of=ALL),
    "index by two tensors": case(lambda a, i, j: (a[i, j], a[:, j, i], a[i[:, None], j]), A, I, J, of=ALL),
    "index apart": case(lambda a, i, j, k: (a[i, :, i], a[k[0], :, k]), A, I, J, ids(5, 2, 3), of=ALL),
    "index by a list": case(lambda a: (a[[0, 2]], a[:, [1, -1]], a[torch.tensor([[0], [1]])]), A, of=ALL),
    "index by three tensors": case(lambda a, i, j: a[i, j, i], A, I, J, of=ALL),
    "index by a mask": case(lambda a, m: a[m], V, mask(5, 6), of=(F32,), refused="data"),
    "take": case(lambda a, i: torch.take(a, i), A, I, of=NUMBERS),
    "slice_scatter": case(lambda a: torch.slice_scatter(a, a[:2] * 2, 0, 1, 3), A, of=NUMBERS),
    "slice_scatter of steps": case(
        lambda a: torch.slice_scatter(a, a[..., :3] * 2, 2, 0, 6, 2), A, of=NUMBERS
    ),
    "select_scatter": case(lambda a: torch.select_scatter(a, a[0] * 2, 0, -1), A, of=NUMBERS),
    "scatter": case(lambda a, i, s: (a.scatter(0, i, s), a.scatter(2, i, s)), A, E, T, of=ALL),
    "scatter of a number": case(lambda a, i: a.scatter(1, i % 4, 2), A, E, of=NUMBERS),
    "scatter_add": case(
        lambda a, i, s: (a.scatter_add(0, i, s), a.scatter_add(2, i, s)), A, E, T, of=NUMBERS
    ),
    "scatter reduce=add": case(lambda a, i, s: a.scatter(0, i, s, reduce="add"), A, E, T, of=NUMBERS),
    "scatter reduce=multiply": case(
        lambda a, i, s: a.scatter(0, i, s, reduce="multiply"), A, E, T, of=NUMBERS
    ),
    **{
        f"scatter_reduce {n}": case(reduced(n), A, E, T, of=NUMBERS)
        for n in ("sum", "prod", "mean", "amax", "amin")
    },
    **{
        f"scatter_reduce {n} without self": case(reduced(n, False), A, E, T, of=NUMBERS)
        for n in ("sum", "prod", "mean", "amax", "amin")
    },
    "index_add": case(
        lambda a, i: (a.index_add(0, i, a[:3]), a.index_add(1, i % 4, a[:, :3], alpha=2)), A, I, of=NUMBERS
    ),
    "index_copy": case(lambda a: a.index_copy(1, torch.tensor([3, 0]), a[:, :2] * 2), A, of=NUMBERS),
    "index_fill": case(lambda a, i: a.index_fill(0, i, 2), A, I, of=NUMBERS),
    "index_put": case(lambda a, i, v: a.index_put((i,), v), A, FEW, x(3, 4, 6), of=ALL),
    "index_put accumulated": case(lambda a, i, v: a.index_put((i,), v, True), A, I, x(3, 4, 6), of=NUMBERS),
    "index_put of two axes": case(lambda a, i, j: a.index_put((i, j), a[0, 0] * 2), A, FEW, ENDS, of=NUMBERS),
    "index_put of an inner axis": case(
        lambda a: torch.ops.aten.index_put(a, [None, torch.tensor([2, 0])], a[:, :2] * 3), A, of=NUMBERS
    ),
    "index_put apart": case(
        lambda a, i: torch.ops.aten.index_put(a, [i, None, i], a[0, :4, 0] * 2), A, FEW, of=NUMBERS
    ),
    "index_put by a mask": case(lambda a, m: a.index_put((m,), a.new_full((), 2)), A, mask(5, 4), of=ALL),
    "assignment": case(lambda a: _assigned(a), A, of=NUMBERS),
    "masked_scatter": case(lambda a, m, s: a.masked_scatter(m, s), A, mask(5, 4, 6), x(140), of=ALL),
    "masked_fill_": case(lambda a, m: a.clone().masked_fill_(m, 1), A, mask(4, 6), of=NUMBERS),
    "one_hot": case(lambda a, i: F.one_hot(i, 7), A, K, of=(F32,)),
    "_embedding_bag": case(
        lambda a, i: F.embedding_bag(i, a, torch.tensor([0, 2, 2, 5]), mode="sum"),
        V,
        ids(5, 8),
        of=(F32, F64),
    ),
    "_embedding_bag mean": case(
        lambda a, i: F.embedding_bag(i, a, torch.tensor([0, 2, 2, 5]), mode="mean"),
        V,
        ids(5, 8),
        of=(F32, F64),
    ),
    "_embedding_bag max": case(
        lambda a, i: F.embedding_bag(i, a, torch.tensor([0, 2, 2, 5]), mode="max"),
        V,
        ids(5, 8),
        of=(F32, F64),
    ),
    "_embedding_bag weighted": case(
        lambda a, i, w: F.embedding_bag(i, a, torch.tensor([0, 2, 5]), mode="sum", per_sample_weights=w),
        V,
        ids(5, 8),
        x(8),
        of=(F32, F64),
    ),
    "_embedding_bag of rows": case(
        lambda a, i: F.embedding_bag(i, a, mode="mean", padding_idx=1), V, ids(5, 3, 4), of=(F32, F64)
    ),
    "bucketize": case(
        lambda a: torch.bucketize(a, torch.tensor([-1.0, 0.0, 1.0])),
        V,
        of=(F32,),
        refused="aten.bucketize.Tensor",
    ),
}


def _assigned(a: torch.Tensor) -> torch.Tensor:
    """Assignments to parts, as a module writes them."""
    b = a.clone()
    b[0] = 1
    b[:, 1:3] = b[:, :2] * 2
    b[..., ::2] += 1
    b[:, 0, 0] = 5
    b[b > 3] = 0
    return b
