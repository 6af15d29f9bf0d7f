"""Axes of size 0 and 1, and tensors without axes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tests.compiler.small_modules.base import FLOATS, NUMBERS, Case, case, x

NONE, ROW, ONE, POINT = x(0, 4), x(1, 4), x(1, 1, 1), x()

CASES: dict[str, Case] = {
    "add of nothing": case(lambda a: (a + 1, a * a, -a), NONE, of=NUMBERS),
    "sum of nothing": case(
        lambda a: (a.sum(), a.sum(0), a.sum(1), a.prod(0), a.any(0), a.all()), NONE, of=NUMBERS
    ),
    "mean of nothing": case(lambda a: (a.mean(), a.mean(0), a.mean(1)), NONE),
    "var of one": case(lambda a: (a.var(0), a.var(0, correction=0)), ROW),
    "_softmax of nothing": case(lambda a: (a.softmax(0), a.softmax(1), F.layer_norm(a, (4,))), NONE),
    "_softmax of one": case(
        lambda a: (a.softmax(0), a.log_softmax(0), F.layer_norm(a, (1,))), ONE, of=FLOATS[:2]
    ),
    "cat with nothing": case(lambda a, b: torch.cat([a, b]), NONE, x(2, 4), of=NUMBERS),
    "cumsum of nothing": case(lambda a: (a.cumsum(0), a.cumsum(1), a.cumprod(1)), NONE, of=NUMBERS),
    "sort of nothing": case(
        lambda a: (*a.sort(dim=0, stable=True), *a.sort(dim=1, stable=True)), NONE, of=NUMBERS
    ),
    "sort of one": case(lambda a: (*a.sort(0), *a.topk(1, 0), a.argmax(0)), ROW, of=NUMBERS),
    "matmul of nothing": case(lambda a, b: (a @ b.T, a.T @ a, b @ a.T), NONE, x(3, 4), of=FLOATS),
    "view of nothing": case(
        lambda a: (a.reshape(4, 0), a.mT, a[:, :2], a.expand(3, 0, 4), a.flip(1)), NONE, of=NUMBERS
    ),
    "constant_pad_nd of nothing": case(lambda a: F.pad(a, (1, 0, 1, 0), value=2), NONE, of=NUMBERS),
    "index_select of nothing": case(
        lambda a: a.index_select(0, torch.zeros(0, dtype=torch.long)), ROW, of=NUMBERS
    ),
    "gather of nothing": case(lambda a: a.gather(1, torch.zeros(1, 0, dtype=torch.long)), ROW, of=NUMBERS),
    "scatter of nothing": case(
        lambda a: a.scatter(1, torch.zeros(1, 0, dtype=torch.long), a[:, :0]), ROW, of=NUMBERS
    ),
    "index_put of nothing": case(
        lambda a: a.index_put((torch.zeros(0, dtype=torch.long),), a[:0]), ROW, of=NUMBERS
    ),
    "broadcast of one": case(lambda a, b: (a + b, a * b, torch.maximum(a, b)), ROW, x(3, 1), of=NUMBERS),
    "repeat to nothing": case(lambda a: a.repeat(0, 2), ROW, of=NUMBERS),
    "split into nothing": case(lambda a: a.split([0, 4], 1), ROW, of=NUMBERS),
    "functions of a point": case(lambda a: (a + 1, a.exp(), a.sum(), a.reshape(1), a.expand(2)), POINT),
    "reductions of a point": case(
        lambda a: (a.amax(), a.argmax(), a.cumsum(0), a.softmax(0), a.std(correction=0)), POINT
    ),
    "order of a point": case(lambda a: (a.sort(), a.topk(1), a.flip(0)), POINT, of=NUMBERS),
    "indices of a point": case(
        lambda a: (a[None], a.index_select(0, torch.tensor([0])), a.gather(0, torch.tensor(0))),
        POINT,
        of=NUMBERS,
    ),
    "scatter of a point": case(lambda a: a.scatter(0, torch.tensor(0), a * 2), POINT, of=NUMBERS),
    "ones": case(
        lambda a: (a.sum((0, 1, 2)), a.transpose(0, 2) + 1, a.squeeze(), a.roll(1, 0)), ONE, of=NUMBERS
    ),
    "max_pool2d of one": case(lambda a: (F.max_pool2d(a, 1), F.avg_pool2d(a, 1)), ONE),
}
