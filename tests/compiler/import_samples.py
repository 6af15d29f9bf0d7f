"""Small PyTorch functions with inputs, on which the importer's table is tested operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Sample:
    """`fn` on `args`; the first axis of the first argument is dynamic too if `batch`."""

    name: str
    fn: Callable[..., object]
    args: tuple[Tensor, ...]
    batch: bool = True

    def __str__(self) -> str:
        return self.name


def f(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 7 * sum(shape)))


def i(*shape: int, lo: int = 0, hi: int = 5, seed: int = 0) -> Tensor:
    return torch.randint(lo, hi, shape, generator=torch.Generator().manual_seed(seed))


def samples() -> list[Sample]:
    return [
        *_functions(),
        *_arithmetic(),
        *_moves(),
        *_indexing(),
        *_reductions(),
        *_contractions(),
        *_pools(),
        *_makers(),
        *_norms(),
    ]


def _functions() -> list[Sample]:
    x = f(3, 4, 5) * 2
    plain = {
        n: getattr(torch, n)
        for n in (
            "exp",
            "sin",
            "cos",
            "tanh",
            "sigmoid",
            "erf",
            "floor",
            "ceil",
            "round",
            "trunc",
            "neg",
            "abs",
            "relu",
            "sign",
            "expm1",
            "square",
            "isnan",
            "isinf",
            "isfinite",
            "reciprocal",
            "exp2",
            "logical_not",
            "frac",
        )
    }
    plain |= {
        n: getattr(F, n)
        for n in (
            "silu",
            "gelu",
            "softplus",
            "leaky_relu",
            "elu",
            "hardtanh",
            "hardsigmoid",
            "hardswish",
            "mish",
            "relu6",
            "selu",
            "logsigmoid",
            "softsign",
            "tanhshrink",
            "celu",
            "glu_rows",
        )
        if hasattr(F, n)
    }
    out = [Sample(n, fn, (x,)) for n, fn in plain.items()]
    out += [
        Sample(n, getattr(torch, n), (x.abs() + 0.1,))
        for n in ("log", "log2", "log10", "log1p", "sqrt", "rsqrt")
    ]
    return out + [
        Sample("gelu tanh", lambda x: F.gelu(x, approximate="tanh"), (x,)),
        Sample("glu", lambda x: F.glu(x, 1), (x,)),
        Sample("softplus beta", lambda x: F.softplus(x, 2.0, 1.0), (x,)),
        Sample("dropout", lambda x: F.dropout(x, 0.5, training=False) + x.clone().detach(), (x,)),
        Sample("clamp", lambda x: x.clamp(-1, 0.5) + x.clamp(min=0.0) + x.clamp(max=1), (x,)),
        Sample("clamp tensor", lambda x, lo: torch.clamp(x, min=lo), (x, f(5))),
        Sample("masked_fill", lambda x: x.masked_fill(x > 0, float("-inf")).softmax(-1), (x,)),
        Sample("where", lambda x: torch.where(x > 0, x, 0.0) + torch.where(x > 1, 1, 2), (x,)),
        Sample("nan_to_num", lambda x: torch.nan_to_num(torch.log(x)), (x,)),
        Sample("in place", lambda x: (x * 1).add_(1).mul_(2), (x,)),
    ]


def _arithmetic() -> list[Sample]:
    x, y, n, m = f(3, 4, 5), f(4, 1, seed=1), i(3, 4, lo=-7, hi=8), i(3, 4, lo=1, hi=4, seed=1)
    return [
        Sample("add alpha", lambda a, b: torch.add(a, b, alpha=2) - torch.sub(a, 1, alpha=3), (x, y)),
        Sample("rsub", lambda a: 1 - a, (x,)),
        Sample("mul div", lambda a, b: a * b / (b.abs() + 1) / 3, (x, y)),
        Sample("maximum", lambda a, b: torch.maximum(a, b) + torch.minimum(a, b) + torch.max(a, b), (x, y)),
        Sample("integers", lambda a, b: a * b + 3 - a, (n, m)),
        Sample("true division", lambda a, b: a / b, (n, m)),
        Sample("floor division", lambda a, b: (a // b) + a // 3 + (a // -2), (n, m)),
        Sample("remainder", lambda a, b: a % b + torch.fmod(a, b), (n, m)),
        Sample("float remainder", lambda a: a % 0.7 + torch.fmod(a, 0.7) + a // 0.7, (x,)),
        Sample(
            "div modes",
            lambda a: torch.div(a, 0.3, rounding_mode="trunc") + torch.div(a, 0.3, rounding_mode="floor"),
            (x,),
        ),
        Sample("pow", lambda a: a**2 + a.abs() ** 0.5 + (a.abs() + 1) ** -1.5 + a**3, (x,)),
        Sample("pow integers", lambda a: a**3, (n,)),
        Sample("pow base", lambda a: 2.0**a, (x,)),
        Sample("mixed types", lambda a, b: a * b + b * 0.5 + (b > 1), (f(3, 4), m)),
        Sample("compare", lambda a, b: (a < b) | (a >= 0.5) & ~(a == b) ^ (a != 1), (x, y)),
        Sample("compare mixed", lambda a, b: torch.stack([a < b, a > 0.5, a <= 1, b >= a]), (n, m)),
        Sample(
            "logical",
            lambda a, b: torch.logical_and(a, b) | torch.logical_or(a, b) | torch.logical_xor(a, b),
            (n, m),
        ),
        Sample("bits", lambda a, b: (a & b) + (a | b) + (a ^ b) + ~a, (n, m)),
        Sample(
            "bool sums",
            lambda a: (a > 0).sum(1) + (a > 0).cumsum(0)[:, 0] + (a > 1).float().mean(),
            (x[:, 0],),
        ),
        Sample("casts", lambda a: a.int() + a.long() + a.bool() + a.half().float().int(), (f(3, 4) * 5,)),
        Sample(
            "lerp",
            lambda a, b: torch.lerp(a, b, 0.3) + torch.addcmul(a, a, b) + torch.addcdiv(a, a, b + 10),
            (x, y),
        ),
        Sample("shape as number", lambda a: a * a.shape[0] + a.shape[0] * 2, (x,)),
    ]


def _moves() -> list[Sample]:
    x = f(4, 6, 3)
    return [
        Sample(
            "views",
            lambda x: x.reshape(x.shape[0], 3, 2, 3).flatten(1).view(-1, 2, 9).unsqueeze(1).squeeze(1),
            (x,),
        ),
        Sample("merge batch", lambda x: x.view(-1, 3) + x.flatten(0, 1), (x,)),
        Sample("permute", lambda x: x.permute(2, 0, 1) + x.transpose(0, 1).transpose(0, 2), (x,)),
        Sample(
            "expand",
            lambda x: (
                x[:, :1].expand(-1, 6, -1) + x[:, :1].expand_as(x) + torch.broadcast_to(x[:, :1], x.shape)
            ),
            (x,),
        ),
        Sample("slices", lambda x: x[:, 1:5:2] + x[:, -3:-1] + x[:, :100][:, :2], (x,)),
        Sample("batch slices", lambda x: x[1:] - x[:-1], (x,)),
        Sample("select", lambda x: x[:, 0] + x[:, -1] + x[0, 1], (x,)),
        Sample("select last of batch", lambda x: x[-1], (x,)),
        Sample(
            "split",
            lambda x: (
                torch.cat(x.split(2, 1)[::-1], 1)
                + torch.cat(x.chunk(3, 1), 1)
                + torch.cat(x.split([1, 5], 1), 1)
            ),
            (x,),
        ),
        Sample("unbind", lambda x: x.unbind(1)[2] + torch.stack(x.unbind(2), 1)[:, 0, :3], (x,)),
        Sample("cat", lambda x: torch.cat([x, x * 2, x[:, :1]], 1), (x,)),
        Sample("cat of types", lambda x, n: torch.cat([x, n], 1), (f(3, 2), i(3, 2))),
        Sample("stack", lambda x: torch.stack([x, -x], -1) + torch.stack([x, x], 3), (x,)),
        Sample("repeat", lambda x: x.repeat(1, 2, 3) + x.tile(2, 3), (x,)),
        Sample("repeat batch", lambda x: x[:1].repeat(x.shape[0], 1, 1) + x, (x,)),
        Sample(
            "repeat_interleave", lambda x: x.repeat_interleave(2, 1) + x.repeat_interleave(2, dim=-2), (x,)
        ),
        Sample("pad", lambda x: F.pad(x, (1, 2, 0, 3), value=0.5), (x,)),
        Sample("pad negative", lambda x: F.pad(x, (-1, 1)), (x,)),
        Sample("flip roll", lambda x: x.flip(1, 2) + x.roll(1, 1) + x.roll((1, -2), (1, 2)), (x,)),
        Sample("roll flat", lambda x: x.roll(2), (x,), batch=False),
        Sample("movedim", lambda x: x.movedim(0, 2) + x.swapaxes(0, 1).movedim(1, -1), (x,)),
        Sample("unflatten", lambda x: x.unflatten(1, (2, 3)).sum(2), (x,)),
        Sample("diff", lambda x: x.diff(dim=1), (x,)),
        Sample("assign slice", _assign, (x,)),
        Sample("pixel shuffle", lambda x: F.pixel_shuffle(x, 2), (f(2, 8, 3, 3),)),
        Sample("einsum", lambda x: torch.einsum("bij,bkj->bik", x, x), (x,)),
    ]


def _assign(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1:3] = 0.5
    y[:, 0] = y[:, -1]
    return y


def _indexing() -> list[Sample]:
    x, table = f(4, 6, 3), f(9, 5)
    ids, rows, wide = i(4, 2, hi=9), i(3, lo=-6, hi=6), i(4, 2, 3, hi=6)
    return [
        Sample("embedding", lambda n, w: F.embedding(n, w) + F.embedding(n, w, padding_idx=0), (ids, table)),
        Sample("index", lambda x, n: x[:, n], (x, rows)),
        Sample("index two", lambda x, a, b: x[:, a, b], (x, i(5, hi=6), i(5, hi=3, seed=1))),
        Sample("index grid", lambda x: x[torch.arange(4)[:, None], torch.arange(6)[None]], (x,), batch=False),
        Sample(
            "index whole grid", lambda x: x[torch.arange(x.shape[0])[:, None, None], torch.arange(6)], (x,)
        ),
        Sample(
            "index grid the other way", lambda x: x[torch.arange(x.shape[0]), torch.arange(6)[:, None]], (x,)
        ),
        Sample(
            "gather one row",
            lambda x, n: x[0, :, 0].gather(0, n) + x[:1, :, :1].gather(1, n[None, :, None]).sum(),
            (x, i(2, hi=6)),
        ),
        Sample("last token", lambda x, n: x[torch.arange(x.shape[0]), n], (x, i(4, hi=6)), batch=False),
        Sample(
            "index_select",
            lambda x, n: x.index_select(1, n) + torch.take_along_dim(x, n[None, :, None], 1),
            (x, i(2, hi=6)),
        ),
        Sample("gather", lambda x, n: x.gather(1, n), (x, wide), batch=False),
        Sample(
            "scatter",
            lambda x, n: x.scatter(1, n, 1.5),
            (x, torch.arange(6).expand(4, 6).unsqueeze(-1).expand(4, 6, 3)),
            batch=False,
        ),
        Sample(
            "scatter src",
            lambda x, n: x.scatter(1, n[:, :1], x * 2) + x.scatter_add(1, n[:, :1], x * 3),
            (x, wide),
            batch=False,
        ),
        Sample(
            "index_put", lambda x, v: x.index_put((torch.tensor([2, 0]),), v), (x, f(2, 6, 3)), batch=False
        ),
        Sample("one_hot", lambda n: F.one_hot(n, 9), (ids,)),
        Sample("topk", lambda x: torch.topk(x, 2, 1), (x,)),
        Sample("topk smallest", lambda x: torch.topk(x, 2, 1, largest=False), (x,)),
        Sample("sort", lambda x: torch.sort(x, 1, descending=True), (x,)),
        Sample("argsort", lambda x: torch.argsort(x, 1), (x,)),
        Sample("argmax", lambda x: torch.stack([x.argmax(1), x.argmin(1, keepdim=True).squeeze(1)]), (x,)),
        Sample("argmax of all", lambda x: x.argmax(), (x,)),
        Sample("max with place", lambda x: (x.max(1), x.min(2, keepdim=True)), (x,)),
    ]


def _reductions() -> list[Sample]:
    x = f(4, 6, 3)
    return [
        Sample("sum", lambda x: x.sum() + x.sum(1, keepdim=True) + x.sum((1, 2), keepdim=True), (x,)),
        Sample("mean", lambda x: x.mean() + x.mean(-1, keepdim=True), (x,)),
        Sample("amax", lambda x: x.amax(1, keepdim=True) + x.amin((0, 1)) + x.max() - x.min(), (x,)),
        Sample("prod", lambda x: x.prod(1), (x,)),
        Sample("var", lambda x: x.var(1) + x.var(1, unbiased=False) + torch.var(x, 1, correction=2), (x,)),
        Sample("std", lambda x: x.std(-1, keepdim=True) + x, (x,)),
        Sample("var_mean", lambda x: torch.var_mean(x, (1, 2)), (x,)),
        Sample(
            "norm",
            lambda x: x.norm(dim=-1) + torch.linalg.vector_norm(x, 1, -1) + F.normalize(x, dim=-1)[:, :, 0],
            (x,),
        ),
        Sample("logsumexp", lambda x: x.logsumexp(1), (x,)),
        Sample("any all", lambda x: (x > 1).any(1) ^ (x > -1).all(1) ^ (x > 2).any(), (x,)),
        Sample("cumsum", lambda x: x.cumsum(1) + x.cumprod(-1), (x,)),
        Sample("cosine", lambda x: F.cosine_similarity(x, x.flip(1), dim=-1), (x,)),
    ]


def _contractions() -> list[Sample]:
    x, w = f(4, 6, 8), f(5, 8)
    mask = (torch.arange(6)[None, None, None] < torch.tensor([6, 3, 0, 1])[:, None, None, None]).expand(
        4, 1, 6, 6
    )
    q, k = f(4, 2, 6, 8), f(4, 2, 6, 8, seed=1)
    sdpa = F.scaled_dot_product_attention
    return [
        Sample(
            "linear over merged axes",
            lambda x, w: F.linear(x.view(-1, 8), w).view(x.shape[0], 6, 5) + F.linear(x.view(-1, 8), w).sum(),
            (x, w),
        ),
        Sample("linear", lambda x, w: F.linear(x, w) + F.linear(x, w, w[:, 0]), (x, w)),
        Sample("matmul", lambda x, w: x @ w.t() + torch.matmul(x, w.mT), (x, w)),
        Sample("matmul vectors", lambda x, w: (x @ w[0]) + (w[0] @ w[1]) + (w[0] @ x.mT), (x, w)),
        Sample("matmul broadcast", lambda x, w: x[:, None] @ w[None].mT, (x, w[None])),
        Sample(
            "bmm", lambda x: torch.bmm(x, x.mT) + torch.baddbmm(x[:, :, :6], x, x.mT, beta=0.5, alpha=2), (x,)
        ),
        Sample("mm", lambda x, w: torch.mm(x, w.t()) + torch.addmm(w[:, 0], x, w.t(), beta=2), (x[0], w)),
        Sample("outer", lambda x: torch.outer(x, x), (x[0, 0],)),
        Sample("conv1d", lambda x, w: F.conv1d(x, w, padding=1), (x, f(3, 6, 3))),
        Sample(
            "conv2d",
            lambda x, w, b: F.conv2d(x, w, b, (2, 1), (1, 0), (1, 2), 2),
            (f(2, 4, 7, 6), f(6, 2, 3, 2), f(6)),
        ),
        Sample("conv2d same", lambda x, w: F.conv2d(x, w, padding="same"), (f(2, 4, 7, 6), f(6, 4, 3, 3))),
        Sample("conv3d", lambda x, w: F.conv3d(x, w), (f(2, 2, 4, 4, 4), f(3, 2, 2, 2, 2))),
        Sample("sdpa", lambda q, k: sdpa(q, k, k), (q, k)),
        Sample("sdpa causal", lambda q, k: sdpa(q, k, k, is_causal=True, scale=0.3), (q, k)),
        Sample("sdpa mask", lambda q, k, m: sdpa(q, k, k, m), (q, k, mask)),
        Sample("sdpa bias", lambda q, k, m: sdpa(q, k, k, m), (q, k, f(2, 6, 6))),
        Sample(
            "sdpa groups", lambda q, k: sdpa(q, k[:, :1], k[:, :1], is_causal=True, enable_gqa=True), (q, k)
        ),
    ]


def _pools() -> list[Sample]:
    x, line = f(2, 3, 8, 6), f(2, 3, 9)
    return [
        Sample(
            "max_pool2d",
            lambda x: (
                F.max_pool2d(x, 3, 2, 1)
                + F.max_pool2d(x, (2, 4), stride=(2, 1), dilation=(2, 1))[:, :, :1, :1]
            ),
            (x,),
        ),
        Sample("max_pool1d", lambda x: F.max_pool1d(x, 2), (line,)),
        Sample("avg_pool2d", lambda x: F.avg_pool2d(x, 2) + F.avg_pool2d(x, 3, 2, 1)[:, :, :4, :3], (x,)),
        Sample("avg_pool1d", lambda x: F.avg_pool1d(x, 3, 1, 1), (line,)),
        Sample("adaptive", lambda x: F.adaptive_avg_pool2d(x, 1) + F.adaptive_avg_pool2d(x, (4, 2)), (x,)),
        Sample("adaptive line", lambda x: F.adaptive_avg_pool1d(x, 1) + F.adaptive_avg_pool1d(x, 3), (line,)),
    ]


def _makers() -> list[Sample]:
    x = f(4, 5)
    return [
        Sample(
            "arange", lambda x: x + torch.arange(5) + torch.arange(1, 11, 2) + torch.arange(5.0) * 0.1, (x,)
        ),
        Sample(
            "arange of batch",
            lambda x: x.t() * torch.arange(x.shape[0]) + torch.arange(1, x.shape[0] + 1),
            (x,),
        ),
        Sample(
            "fill",
            lambda x: (
                torch.full_like(x, 2.5)
                + torch.zeros_like(x)
                + torch.ones(5)
                + x.new_zeros(5)
                + torch.full((5,), 3)
            ),
            (x,),
        ),
        Sample("eye", lambda x: x @ torch.eye(5), (x,)),
        Sample("linspace", lambda x: x + torch.linspace(0, 1, 5), (x,)),
        Sample(
            "triangles",
            lambda x: x.tril() + x.triu(1) + torch.ones(4, 5, dtype=torch.bool).tril(-1),
            (x,),
            batch=False,
        ),
        Sample(
            "causal mask",
            lambda x: torch.full((x.shape[0], x.shape[0]), float("-inf")).triu(1).softmax(-1),
            (x,),
        ),
        Sample("constant", lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]) + torch.tensor(2), (x,)),
        Sample(
            "meshgrid",
            lambda x: torch.meshgrid(torch.arange(3), torch.arange(2), indexing="ij")[0] + x[0, 0],
            (x,),
        ),
    ]


def _norms() -> list[Sample]:
    x, w, b = f(4, 6, 8), f(8), f(8, seed=1)
    mean, spread = f(6), f(6).abs() + 0.5
    return [
        Sample("softmax", lambda x: x.softmax(1) + x.log_softmax(-1) + F.softmin(x, 1), (x,)),
        Sample("softmax of integers", lambda x: x.softmax(-1, dtype=torch.float32), (i(3, 4),)),
        Sample(
            "layer_norm",
            lambda x, w, b: F.layer_norm(x, (8,), w, b) + F.layer_norm(x, (6, 8)) + F.layer_norm(x, (8,), w),
            (x, w, b),
        ),
        Sample("rms_norm", lambda x, w: F.rms_norm(x, (8,), w, 1e-5) + F.rms_norm(x, (8,)), (x, w)),
        Sample(
            "group_norm", lambda x, w, b: F.group_norm(x, 2, w[:6], b[:6]) + F.group_norm(x, 3), (x, w, b)
        ),
        Sample(
            "batch_norm",
            lambda x, m, s: F.batch_norm(x, m, s) + F.batch_norm(x, m, s, m, s, eps=1e-3),
            (x, mean, spread),
        ),
        Sample("instance_norm", lambda x: F.instance_norm(x), (x,), batch=False),
    ]
