"""Graph IR ops in float32 on PyTorch, to run a graph over many samples, forward and backward.

Calibration needs the numbers that a deployed model sees, not the reference interpreter's float64 sums.

In: an op, its attributes with dimensions as integers, its operands. Out: its results, or None where the
reference semantics has to be asked. Pointwise ops are their own expressions on tensors; contractions, norms,
attention and moves have a form in the tables below, which a file outside the package can add to. An op
without a form runs by its reference semantics, and no gradient flows through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.ir.graph.core import Op
from tilewright.ir.ops.base import Array, find_op
from tilewright.passes.lower.record import matrix_of

Tensors = Sequence[Any]
#: scalar primitives that PyTorch calls by another name, and those that it calls the same
_NAMES = {"min": "minimum", "max": "maximum"}
_SAME = (
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "abs",
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "sin",
    "cos",
    "erf",
    "floor",
    "round",
)
_FLOATS = ("f32", "bf16", "f16")


def run_fast(
    op: Op, at: Mapping[str, Any], args: Sequence[Array], as_narrow: Callable[[int], Any] = lambda n: None
) -> Array | None:
    """The result of an op all of whose operands are held as float32. `as_narrow(n)`: operand n as a bf16
    tensor, where products of that are faster and nothing is lost."""
    import torch

    matrix, record = matrix_of(op), find_op(op.name)
    if op.name in NARROW and matrix is not None and (narrow := as_narrow(matrix.operand)) is not None:
        return NARROW[op.name](narrow, args)
    if op.name in ON_ARRAYS:
        return ON_ARRAYS[op.name](*args)
    if record.moves and record.expr is None:
        return None  # the interpreter has views at no cost
    if any(a.dtype != np.float32 for a in args):
        return None
    out = on_tensors(op, at, [torch.from_numpy(np.asarray(a, order="C")) for a in args])
    return None if out is None else np.asarray(out[0].numpy(), order="C")


def as_bf16(x: Array) -> Any:
    """A tensor of the same values in bf16, or None if there is none."""
    import torch

    if x.dtype != np.float32 or (x.view(np.uint32) & np.uint32(0xFFFF)).any():
        return None
    return torch.from_numpy(np.ascontiguousarray(x)).bfloat16()


def narrow_linear(w: Any, args: Sequence[Array]) -> Array:
    """x [.., K] rounded to bf16, times w [N, K] in bf16; a bias behind w is added."""
    import torch

    x, _, *bias = args
    y = (
        torch.nn.functional.linear(torch.from_numpy(np.ascontiguousarray(x, np.float32)).bfloat16(), w)
        .float()
        .numpy()
    )
    out: Array = y + bias[0] if bias else y
    return out


def grouped_linear(x: Array, w: Array, ids: Array, bias: Array | None = None) -> Array:
    """x [T, K] or [T, A, K] times the matrices [N, K] of each token's experts ids [T, A]: [T, A, N]."""
    import torch

    out = np.zeros((*ids.shape, w.shape[1]), np.float32)
    for e in np.unique(ids):
        rows = torch.from_numpy(routed_rows(x, ids, int(e)))
        y = (rows @ torch.from_numpy(np.ascontiguousarray(w[e], np.float32)).T).numpy()
        out[ids == e] = y if bias is None else y + bias[e]
    return out


def routed_rows(x: Array, ids: Array, e: int) -> Array:
    """The rows of x that expert e reads."""
    tokens, places = np.nonzero(ids == e)
    return np.ascontiguousarray(x[tokens] if x.ndim == 2 else x[tokens, places], np.float32)


def on_tensors(op: Op, at: Mapping[str, Any], args: Tensors) -> Tensors | None:
    """The results of an op of float32 tensors; a gradient flows through them."""
    known, expr = FORMS.get(op.name), find_op(op.name).expr
    if known is None and expr is None or any(r.type.dtype not in _FLOATS for r in op.results):
        return None
    try:
        out = known(at, args) if known else expr(TorchPrims(), *args, **at) if expr else None
    except _Unknown:
        return None
    return None if out is None else tuple(out) if isinstance(out, tuple | list) else (out,)


class _Unknown(Exception):
    """A primitive that is not supported here."""


class TorchPrims:
    """The scalar primitives of pointwise ops on float32 tensors."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        import torch

        if name not in _SAME and name not in _NAMES:
            raise _Unknown(name)
        return getattr(torch, _NAMES.get(name, name))  # type: ignore[no-any-return]

    def const(self, value: float, dtype: str | None = None) -> Any:
        import torch

        if dtype not in (None, "f32"):
            raise _Unknown(dtype)
        return torch.tensor(value, dtype=torch.float32)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        import torch

        return torch.addcmul(c, a, b)

    def cast(self, x: Any, dtype: str) -> Any:
        if dtype not in _FLOATS:
            raise _Unknown(dtype)
        return x


# ------------------------------------------------------------------ ops with a form of their own
def _linear(at: Mapping[str, Any], args: Tensors) -> Any:
    import torch

    return torch.nn.functional.linear(*args)


def _attend(at: Mapping[str, Any], args: Tensors) -> Any:
    """Plain causal or full attention."""
    import torch

    if len(args) > 3 or at["flat"] or at["softcap"] or at["window"] or args[0].shape[1] != args[1].shape[1]:
        return None
    q, k, v = (t.transpose(1, 2) for t in args)
    group = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(group, 1) for t in (k, v))
    y = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=bool(at["causal"]), scale=float(at["scale"])
    )
    return y.transpose(1, 2)


def _rms_norm(at: Mapping[str, Any], args: Tensors) -> Any:
    x = args[0]
    y = x * (x.square().mean(tuple(range(at["axis"], x.ndim)), keepdim=True) + at["eps"]).rsqrt()
    return y * (args[1] + at["offset"]) if len(args) == 2 else y


def _layer_norm(at: Mapping[str, Any], args: Tensors) -> Any:
    import torch

    return torch.nn.functional.layer_norm(args[0], args[0].shape[at["axis"] :], *args[1:], eps=at["eps"])


def _rope(at: Mapping[str, Any], args: Tensors) -> Any:
    import torch

    x, cos, sin = args[0], args[1].unsqueeze(-2), args[2].unsqueeze(-2)
    if at["interleaved"] or (at["dim"] or x.shape[-1]) != x.shape[-1]:
        return None
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def _concat(at: Mapping[str, Any], args: Tensors) -> Any:
    import torch

    return torch.cat(list(args), at["axis"])


def _slice(at: Mapping[str, Any], args: Tensors) -> Any:
    index = [slice(None)] * args[0].ndim
    index[at["axis"]] = slice(at["start"], at["stop"], at["step"])
    return args[0][tuple(index)]


#: forms on float32 tensors: attributes and operands to a tensor, or several; None: not for these attributes
FORMS: dict[str, Callable[[Mapping[str, Any], Tensors], Any]] = {
    "linear": _linear, "attend": _attend, "rms_norm": _rms_norm, "layer_norm": _layer_norm, "rope": _rope,
    "reshape": lambda at, args: args[0].reshape(at["shape"]), "transpose": lambda at,
    args: args[0].permute(at["perm"]),
    "expand": lambda at, args: args[0].expand(at["shape"]), "split": lambda at,
    args: args[0].split(at["sizes"], at["axis"]),
    "slice": _slice, "concat": _concat,
}  # fmt: skip

#: forms on arrays, for ops that also read integers
ON_ARRAYS: dict[str, Callable[..., Array]] = {"grouped_linear": grouped_linear}
#: forms with the matrix as a bf16 tensor
NARROW: dict[str, Callable[[Any, Sequence[Array]], Array]] = {"linear": narrow_linear}
