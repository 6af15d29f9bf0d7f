"""Sample operands of every op: what tests of meaning, inference and axes run on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tilewright.ir.ops import OPS
from tilewright.ir.ops.build import infer
from tilewright.ir.types import TensorType

Array = NDArray[np.generic]
_NAMES = {"float32": "f32", "int32": "i32", "bool": "bool"}


@dataclass(frozen=True)
class Sample:
    """One call. `torch`: the same on PyTorch tensors, if PyTorch has it."""

    op: str
    args: tuple[Array, ...]
    attrs: dict[str, object] = field(default_factory=dict)
    torch: Callable[..., object] | None = None
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op} {self.note}".strip()

    @property
    def types(self) -> list[TensorType]:
        return [TensorType(_NAMES[a.dtype.name], a.shape) for a in self.args]


def run(op: str, args: Sequence[Array], attrs: dict[str, object]) -> tuple[Array, ...]:
    """The op's meaning on arrays, attributes completed."""
    from tilewright.ir.ops.build import complete_attrs

    types = [TensorType(_NAMES[a.dtype.name], a.shape) for a in args]
    full = complete_attrs(OPS[op], types, attrs)
    with np.errstate(all="ignore"):
        out = OPS[op].meaning(list(args), full, infer(op, types, attrs))
    return out if isinstance(out, tuple) else (out,)


def f(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def ints(*values: object) -> Array:
    return np.array(values, np.int32)


def samples() -> list[Sample]:
    """Every registered op at least once."""
    import torch
    from torch.nn import functional as F

    x = f(3, 4, 5) * 3
    out = [Sample(n, (x,), {}, fn) for n, fn in {
        "exp": torch.exp, "sin": torch.sin, "cos": torch.cos, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
        "erf": torch.erf,
        "floor": torch.floor, "round": torch.round, "neg": torch.neg, "abs": torch.abs, "relu": torch.relu,
        "silu": F.silu,
        "gelu": F.gelu, "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"), "softplus": F.softplus,
        "quick_gelu": lambda t: t * torch.sigmoid(1.702 * t), "relu2": lambda t: torch.relu(t) ** 2,
    }.items()]  # fmt: skip
    out += [Sample(n, (np.abs(x) + 0.01,), {}, getattr(torch, n)) for n in ("log", "sqrt", "rsqrt")]
    out += [Sample(n, (x,), {}, getattr(torch, n)) for n in ("tan", "atan", "sinh", "cosh", "asinh")]
    unit = np.linspace(-1, 1, 65, dtype=np.float32)
    out += [Sample(n, (unit,), {}, getattr(torch, n)) for n in ("asin", "acos", "atanh")]
    out += [Sample("acosh", (np.abs(x) + 1,), {}, torch.acosh)]
    signs = np.array([0.0, -0.0, 1.0, -1.0, 3.0, -np.inf, np.inf, np.nan], np.float32)
    out += [Sample("atan2", (signs[:, None], signs), {}, torch.atan2)]
    out += [Sample("logit", ((1 / (1 + np.exp(-x))).astype(np.float32),), {}, torch.logit)]
    pair = (f(3, 4, 5, seed=1), f(4, 1, seed=2))
    names = {"max": "maximum", "min": "minimum"}
    out += [
        Sample(n, pair, {}, getattr(torch, names.get(n, n)))
        for n in ("add", "sub", "mul", "div", "max", "min", "lt", "le", "gt", "ge", "eq", "ne")
    ]
    powers = (
        np.array([-2.0, -1.5, 0.0, 0.5, 2.0, 3.0], np.float32)[:, None],
        np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 3.0], np.float32),
    )
    out += [Sample("pow", powers, {}, torch.pow), Sample("fma", (*pair, f(5)), {}, lambda a, b, c: a * b + c)]
    whole = (ints([7, -7, 9]), ints([2, 2, -4]))
    out += [
        Sample("rem", whole, {}, torch.fmod),
        Sample("div", whole, {}, lambda a, b: torch.div(a, b, rounding_mode="trunc"), "integers"),
    ]
    out += [Sample(n, (whole[0], ints([0, 1, 40])), {}, fn) for n, fn in
            (("shl", torch.bitwise_left_shift), ("shr", torch.bitwise_right_shift))]  # fmt: skip
    out += [Sample(n, whole, {}, getattr(torch, f"bitwise_{n}")) for n in ("and", "or", "xor")] + [
        Sample("not", whole[:1], {}, torch.bitwise_not)
    ]
    out += [
        Sample("select", (x > 0, *(f(3, 4, 5), f(1, 5))), {}, torch.where),
        Sample("cast", (x,), {"dtype": "i32"}, lambda t: torch.round(t).int()),
    ]
    out += [Sample("clamp", (x,), {"lo": -1.0, "hi": None}, lambda t: torch.clamp(t, min=-1.0))]
    return (
        out
        + _contractions()
        + _normalise()
        + _reductions()
        + _moves()
        + _indexing()
        + _makers()
        + _attention()
        + _tokens()
        + _packed()
    )


def _contractions() -> list[Sample]:
    import torch
    from torch.nn import functional as F

    ids, sorted_ids = ints([0, 2], [1, 1], [2, 3]), ints([0], [0], [0], [2], [2], [1], [3])
    w, bias = f(3, 6, 5), f(3, 6, seed=4)
    conv = {"window": (3, 2), "stride": (2, 1), "padding": (1, 1, 0, 0), "dilation": (1, 2), "groups": 2}
    by_channel = {"window": (3,), "stride": (1,), "padding": (1, 1), "dilation": (1,)}
    pool = {"window": (3, 2), "stride": (2, 2), "padding": (1, 1, 0, 1), "dilation": (1, 1)}

    def convolve(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        kernels = w.view(6, 3, 2, 2).permute(0, 3, 1, 2)
        return F.conv2d(x.permute(0, 3, 1, 2), kernels, b, (2, 1), (1, 0), (1, 2), 2).permute(0, 2, 3, 1)

    def depthwise(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x.mT, w[:, None], padding=1, groups=4).mT

    def pooled(x: torch.Tensor, value: float) -> torch.Tensor:
        return F.pad(x.permute(0, 3, 1, 2), (0, 1, 1, 1), value=value)

    def largest(x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(pooled(x, -torch.inf), (3, 2), 2).permute(0, 2, 3, 1)

    def summed(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(pooled(x, 0.0), (3, 2), 2, divisor_override=1).permute(0, 2, 3, 1)

    def grouped(x: torch.Tensor, w: torch.Tensor, e: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x = x[:, None].expand(-1, e.shape[1], -1) if x.ndim == 2 else x
        known = e.long().clamp(max=len(w) - 1)
        y = torch.einsum("tak,tank->tan", x, w[known]) + b[known]
        return y * (e < len(w))[..., None]

    def lstm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        """Step by step, the initial states first."""
        h, c = states
        out = [torch.stack([h, c])]
        for t in x:
            i, f, g, o = (t + h @ w + b).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(torch.stack([h, c]))
        return torch.stack(out)

    def gru(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """From the last step to the first."""
        out = [h]
        for t in x.flip(0):
            (xr, xz, xn), (hr, hz, hn) = t.chunk(3, -1), (h @ w + b).chunk(3, -1)
            n = (xn + (xr + hr).sigmoid() * hn).tanh()
            h = n + (xz + hz).sigmoid() * (h - n)
            out.insert(0, h)
        return torch.stack(out)[:, None]

    return [
        Sample("linear", (f(2, 3, 5), f(4, 5), f(4)), {}, F.linear),
        Sample("matmul", (f(2, 1, 3, 4), f(5, 4, 6)), {}, torch.matmul),
        Sample(
            "matmul",
            (f(2, 4, 3), f(2, 6, 4)),
            {"transpose_a": True, "transpose_b": True},
            lambda a, b: a.mT @ b.mT,
            "transposed",
        ),
        Sample("grouped_linear", (f(3, 5), w, ids, bias), {}, grouped),
        Sample("grouped_linear", (f(3, 2, 5), w, ids, bias), {}, grouped, "per choice"),
        Sample("grouped_linear", (f(7, 5), w, sorted_ids, bias), {}, grouped, "sorted"),
        Sample(
            "conv",
            (f(2, 7, 6, 4), f(6, 12), f(6)),
            conv,
            convolve,
        ),
        Sample("recurrent", (f(4, 3, 20), f(5, 20), f(20), f(3, 5), f(3, 5, seed=1)), {}, lstm),
        Sample(
            "recurrent",
            (f(3, 1, 18), f(6, 18), f(18), f(1, 6)),
            {"kind": "gru", "reverse": True},
            gru,
            "backwards",
        ),
        Sample("conv", (f(2, 5, 4), f(4, 3)), {**by_channel, "groups": 4}, depthwise, "depthwise"),
        Sample("max_pool", (f(2, 7, 6, 3),), pool, largest),
        Sample("sum_pool", (f(2, 7, 6, 3),), pool, summed),
    ]


_HADAMARD = [[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]


def _normalise() -> list[Sample]:
    import torch
    from torch.nn import functional as F

    x, w, b = f(2, 3, 8), f(8, seed=1), f(8, seed=2)
    return [
        Sample("rms_norm", (x, w), {"eps": 1e-5}, lambda x, w: F.rms_norm(x, (8,), w, 1e-5)),
        Sample(
            "rms_norm",
            (x, w),
            {"eps": 1e-5, "offset": 1.0},
            lambda x, w: F.rms_norm(x, (8,), 1 + w, 1e-5),
            "offset",
        ),
        Sample("layer_norm", (x, w, b), {"eps": 1e-5}, lambda x, w, b: F.layer_norm(x, (8,), w, b, 1e-5)),
        Sample(
            "group_norm",
            (f(2, 6, 4), f(6), f(6)),
            {"groups": 3, "eps": 1e-5},
            lambda x, w, b: F.group_norm(x, 3, w, b, 1e-5),
        ),
        Sample("softmax", (x,), {"axis": 1}, lambda x: torch.softmax(x, 1)),
        Sample("log_softmax", (x,), {"axis": -1}, lambda x: torch.log_softmax(x, -1)),
        Sample(
            "fwht",
            (x,),
            {"block": 4},
            lambda x: (x.reshape(2, 3, 2, 4) @ torch.tensor(_HADAMARD)).reshape(2, 3, 8) / 2,
        ),
    ]


def _reductions() -> list[Sample]:
    import torch

    x, dims = f(2, 3, 4), {"axes": [0, 2], "keepdims": True}
    pair = {"dim": (0, 2), "keepdim": True}
    out = [
        Sample("sum", (x,), dims, lambda t: torch.sum(t, **pair)),
        Sample("mean", (x,), dims, lambda t: torch.mean(t, **pair)),
        Sample("max_reduce", (x,), dims, lambda t: torch.amax(t, **pair)),
        Sample("min_reduce", (x,), dims, lambda t: torch.amin(t, **pair)),
        Sample("logsumexp", (x,), dims, lambda t: torch.logsumexp(t, **pair)),
        Sample("var", (x,), dims, lambda t: torch.var(t, **pair)),
        Sample("prod", (x,), {"axes": [1]}, lambda t: torch.prod(t, 1)),
        Sample("any", (x > 1,), {"axes": [1]}, lambda t: torch.any(t, 1)),
        Sample("all", (x > -1,), {"axes": [1]}, lambda t: torch.all(t, 1)),
        Sample("cumsum", (x,), {"axis": 1}, lambda t: torch.cumsum(t, 1)),
        Sample("cumprod", (x,), {"axis": 1}, lambda t: torch.cumprod(t, 1)),
    ]
    arg = {"argmax": torch.argmax, "argmin": torch.argmin}
    rough = f(3, 5, 70)  # ties, NaN, and rows that hold nothing better than the worst
    rough[0], rough[1, 2, 40:] = np.round(rough[0]), np.nan
    rough[2, 1], rough[2, 3, 7] = -np.inf, np.inf
    for n, fn in arg.items():
        out.append(Sample(n, (x,), {"axis": 2}, partial(fn, dim=2)))
        out.append(Sample(n, (rough,), {"axis": 2}, partial(fn, dim=2), "rough"))
        out.append(
            Sample(n, (rough,), {"axis": 1, "keepdims": True}, partial(fn, dim=1, keepdim=True), "across")
        )
        out.append(Sample(n, (ints(3, -7, 3, -7),), {"axis": 0}, partial(fn, dim=0), "integers"))
    return out


def _moves() -> list[Sample]:
    import torch
    from torch.nn import functional as F

    x = f(2, 6, 4)
    return [
        Sample("reshape", (x,), {"shape": [2, 3, 8]}, lambda t: t.reshape(2, 3, 8)),
        Sample("reshape", (x,), {"shape": [2, 3, 2, 4]}, lambda t: t.reshape(2, 3, 2, 4), "split"),
        Sample("transpose", (x,), {"perm": [2, 0, 1]}, lambda t: t.permute(2, 0, 1)),
        Sample("expand", (f(6, 1),), {"shape": [2, 6, 4]}, lambda t: t.expand(2, 6, 4)),
        Sample("slice", (x,), {"axis": 1, "start": 1, "stop": 6, "step": 2}, lambda t: t[:, 1:6:2]),
        Sample(
            "slice", (x,), {"axis": 2, "start": 1, "stop": 4, "step": 2}, lambda t: t[:, :, 1:4:2], "lanes"
        ),
        Sample(
            "slice",
            (-f(100) > 0,),
            {"axis": 0, "start": 2, "stop": 100, "step": 3},
            lambda t: t[2::3],
            "vector",
        ),
        Sample("split", (x,), {"axis": 1, "sizes": [1, 3, 2]}, lambda t: t.split([1, 3, 2], 1)),
        Sample("concat", (x, f(2, 1, 4)), {"axis": 1}, lambda a, b: torch.cat([a, b], 1)),
        Sample(
            "pad",
            (x,),
            {"pads": [0, 0, 1, 2, 3, 0], "value": 7.0},
            lambda t: F.pad(t, (3, 0, 1, 2), value=7.0),
        ),
        Sample("flip", (x,), {"axes": [0, 2]}, lambda t: t.flip(0, 2)),
        Sample("roll", (x,), {"shifts": [1, -2], "axes": [0, 1]}, lambda t: t.roll((1, -2), (0, 1))),
        Sample("repeat", (x,), {"repeats": [1, 2, 3]}, lambda t: t.repeat(1, 2, 3)),
    ]


def _indexing() -> list[Sample]:
    import torch

    x, tied = f(4, 3, 5), np.array([[1, 3, 3, 0, 3], [2, 2, 2, 2, 1]], np.float32)
    ids = ints([[0, 2, 1], [1, 1, 2]])[0]
    long = np.round(f(2, 1100) * 9).astype(np.float32)  # ties, and NaN at places of its own
    long[0, ::97], long[1, 5] = np.nan, -np.inf
    halves = long[:, :128].reshape(2, 2, 64)
    origins = np.argsort(halves, kind="stable") + np.array([[0], [64]])
    runs = np.sort(halves, kind="stable").reshape(2, 128), origins.reshape(2, 128).astype(np.int32)
    far = np.arange(240, dtype=np.int32).reshape(2, 40, 3) * 7 % 33
    place = np.array([[[0, 3, 1, 2, 0]]], np.int32).repeat(3, 1)
    return [
        Sample("gather", (x, ids), {"axis": 1}, lambda t, i: t[:, i.long()]),
        Sample("gather", (x, np.array(2, np.int32)), {"axis": 0}, lambda t, i: t[i.long()], "one"),
        Sample("gather_elements", (x, place), {"axis": 0}, lambda t, i: t.gather(0, i.long())),
        Sample("scatter", (x, place, f(1, 3, 5)), {"axis": 0}, lambda t, i, s: t.scatter(0, i.long(), s)),
        Sample(
            "scatter",
            (x, place, f(1, 3, 5)),
            {"axis": 0, "reduce": "add"},
            lambda t, i, s: t.scatter_add(0, i.long(), s),
            "add",
        ),
        Sample(
            "scatter",
            (x, place[:, :2, :3], f(1, 2, 3)),
            {"axis": 0, "reduce": "add"},
            lambda t, i, s: t.scatter_add(0, i.long(), s),
            "corner",
        ),
        *[
            Sample(
                "scatter",
                (x, place, f(1, 3, 5)),
                {"axis": 0, "reduce": how},
                lambda t, i, s, name=name: t.scatter_reduce(0, i.long(), s, name),
                how,
            )
            for how, name in (("mul", "prod"), ("max", "amax"), ("min", "amin"))
        ],
        Sample(
            "scatter",
            (x, place[:, :1, :], f(1, 1, 5)),
            {"axis": 2},
            lambda t, i, s: t.scatter(2, i.long(), s),
            "lanes",
        ),
        Sample(
            "scatter",
            (f(3, 90, 4), far, f(2, 40, 3)),
            {"axis": 1},
            lambda t, i, s: t.scatter(1, i.long(), s),
            "long axis",
        ),
        Sample(
            "scatter",
            (f(3, 90, 4), far, f(2, 40, 3)),
            {"axis": 1, "reduce": "add"},
            lambda t, i, s: t.scatter_add(1, i.long(), s),
            "added to a long axis",
        ),
        Sample(
            "index_put",
            (x, ints([3, 0], [2, 1])[0], f(5)),
            {},
            lambda t, i, v: t.index_put((i.long(),), v),
            "table",
        ),
        Sample("index_put", (x, ints(3, 0), f(2, 3, 5)), {}, lambda t, i, v: t.index_put((i.long(),), v)),
        Sample(
            "index_put",
            (x, ints(1, 1), f(2, 3, 5)),
            {"accumulate": True},
            lambda t, i, v: t.index_put((i.long(),), v, True),
            "add",
        ),
        Sample("select_rows", (x, ints(3, 3, 0)), {}, lambda t, i: t[i.long()]),
        Sample("topk", (f(3, 6),), {"k": 2}, lambda t: torch.topk(t, 2)),
        Sample(
            "topk",
            (f(3, 6),),
            {"k": 2, "largest": False},
            lambda t: torch.topk(t, 2, largest=False),
            "smallest",
        ),
        Sample(
            "topk",
            (tied,),
            {"k": 4},
            lambda t: torch.sort(t, descending=True, stable=True).values[:, :4],
            "ties",
        ),
        Sample("sort", (tied,), {"descending": True}, lambda t: torch.sort(t, descending=True, stable=True)),
        Sample("sort", (tied,), {}, lambda t: torch.sort(t, stable=True), "ascending"),
        *[
            Sample(
                "sort",
                (long,),
                {"descending": down},
                lambda t, down=down: torch.sort(t, descending=down, stable=True),
                f"long {down}",
            )
            for down in (False, True)
        ],
        Sample(
            "merge_runs",
            (*runs,),
            {"width": 64},
            lambda t, i: torch.sort(torch.from_numpy(long)[:, :128], stable=True),
        ),
    ]


def _makers() -> list[Sample]:
    import torch

    return [
        Sample("const", (), {"value": 3, "dtype": "i32"}, lambda: torch.tensor(3, dtype=torch.int32)),
        Sample("full", (), {"value": 0.5, "shape": [2, 3]}, lambda: torch.full((2, 3), 0.5)),
        Sample(
            "iota", (), {"size": 5, "start": 2, "step": 3}, lambda: torch.arange(2, 17, 3, dtype=torch.int32)
        ),
        Sample("encode", (f(4, 32),), {"encoding": "bf16"}, lambda t: t.bfloat16().float()),
        Sample("decode", (f(4, 32),), {}, lambda t: t),
    ]


def _attention() -> list[Sample]:
    from torch.nn import functional as F

    q, k, v = f(2, 6, 4, 8), f(2, 6, 2, 8, seed=1), f(2, 6, 2, 5, seed=2)
    base: dict[str, object] = {"heads": 4, "kv_heads": 2, "scale": 0.4}
    flat = tuple(a.reshape(12, *a.shape[2:]) for a in (q, k, v))
    seq, pos = np.repeat(np.arange(2, dtype=np.int32), 6), np.tile(np.arange(6, dtype=np.int32), 2)

    def sdpa(q, k, v, mask=None):  # type: ignore[no-untyped-def]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        causal = mask is None
        return F.scaled_dot_product_attention(
            q, k, v, mask, 0.0, causal, scale=0.4, enable_gqa=True
        ).transpose(1, 2)

    def full(q, k, v):  # type: ignore[no-untyped-def]
        return sdpa(q, k, v, q.new_zeros(6, 6))

    padding = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], bool)
    half = f(2, 6, 3, seed=3)
    return [
        Sample("attend", (q, k, v), {**base, "causal": True}, sdpa, "causal"),
        Sample("attend", (q, k, v), base, full, "full"),
        Sample("attend", (q, k, v, f(1, 4, 6, 6)), {**base, "bias": "tensor"}, sdpa, "bias"),
        Sample(
            "attend",
            (q, k, v, padding),
            {**base, "mask": "padding"},
            lambda q, k, v, m: sdpa(q, k, v, m[:, None, None]),
            "padding",
        ),
        Sample(
            "attend",
            (*flat, seq, pos),
            {**base, "causal": True, "flat": True},
            lambda q, k, v, s, p: sdpa(*(t.reshape(2, 6, *t.shape[1:]) for t in (q, k, v))).reshape(12, 4, 5),
            "flat",
        ),
        Sample(
            "sequence_length",
            (ints([0, 1, 2, 3], [7, 4, 5, 6]),),
            {},
            lambda p: (p.amax(1, keepdim=True) + 1).expand(p.shape),
        ),
        Sample("rope", (f(2, 6, 4, 8), np.cos(half), np.sin(half)), {"dim": 6}, None),
    ]


def _packed() -> list[Sample]:
    """Sequences of 2, 3, 0 and 1 rows."""
    import torch
    from torch.nn import functional as F

    seq, starts = ints(0, 0, 1, 1, 1, 3), ints(0, 2, 5, 5, 6)
    q, k, v = f(6, 4, 8), f(6, 2, 8, seed=1), f(6, 2, 5, seed=2)

    def attended(q, k, v, seq, starts):  # type: ignore[no-untyped-def]
        q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
        same = seq[:, None] == seq
        y = F.scaled_dot_product_attention(q, k, v, same, scale=0.4, enable_gqa=True)
        return y[0].transpose(0, 1)

    def placed(x: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return torch.where(slots[..., None] < 0, 0, x[slots.long().clamp(min=0)])

    base: dict[str, object] = {"heads": 4, "kv_heads": 2, "scale": 0.4}
    return [
        Sample("leading_rows", (ints(5, 3, 4), ints(2)), {"size": 2}, lambda x, n: x[:2]),
        Sample("place_rows", (f(4, 5), ints([0, -1, 3], [2, 2, -1])), {}, placed),
        Sample("attend_packed", (q, k, v, seq, starts), base, attended),
        Sample("attend_packed", (q, k, v, seq, starts), {**base, "softcap": 0.5}, note="capped"),
    ]


def _tokens() -> list[Sample]:
    import torch

    def taken(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return x[torch.arange(len(x))[:, None], ids.long()]

    score, keys, x = f(2, 9), f(2, 9, 4), f(2, 9, 3, seed=3)
    ids = ints([0, 3, 8], [1, 2, 5])
    slots = ints([0, 1, 1, 2, 3, 2, 0, 1, 3], [3, 0, 1, 2, 2, 2, 1, 0, 0])
    return [
        Sample("assign_tokens", (score,), {"mode": "gather", "count": 5, "protect": 1}),
        Sample("assign_tokens", (score,), {"mode": "gather", "count": 5, "fuse": True}, note="fused"),
        Sample("assign_tokens", (keys,), {"mode": "merge", "count": 7, "protect": 1}, note="merge"),
        Sample(
            "assign_tokens",
            (keys,),
            {"mode": "cluster", "count": 5, "protect": 1, "segments": 3, "rounds": 2},
            note="cluster",
        ),
        Sample("take_tokens", (x, ids), {}, taken),
        Sample("take_tokens", (f(2, 9, 20) > 0, ids), {}, taken, "bools"),
        Sample("take_tokens", (score, ids), {}, lambda t, i: t.gather(1, i.long()), "numbers"),
        Sample("merge_tokens", (x, slots), {"count": 3}),
        Sample("merge_tokens", (x, slots, np.abs(score)), {"count": 3}, note="weighted"),
        Sample("merge_tokens", (score, slots), {"count": 3, "mean": False}, note="sum"),
        Sample("restore_tokens", (f(2, 3, 3), slots, x), {}),
    ]
