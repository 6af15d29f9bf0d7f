"""PyTorch's contractions: linear, matrix products of every rank, and attention in plain ops.

In: tensors. Out: `linear` where the second factor is a stored matrix (transposed once, as a weight),
`matmul` otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tilewright.capture.aten_pointwise import LOWEST
from tilewright.capture.context import Capture, aten
from tilewright.capture.known_values import finite
from tilewright.capture.windows import reads
from tilewright.ir.graph.core import Apply
from tilewright.ir.types import FLOATS, TensorType, as_dim


@aten("linear")
def linear(c: Capture, x: str, w: str, bias: str | None = None) -> str:
    """Leading axes that were merged into one just before are left apart: the product does not see them."""
    if c.dtype(x) != "f32":
        product = _plain_product(c, x, w, transposed=True)
        return c.op("add", product, bias) if bias else product
    made = c.producer(x)
    if made is not None and made.name == "reshape" and c.rank(made.operands[0]) > c.rank(x) > 1:
        source = made.operands[0]
        if c.shape(source)[-1] == c.shape(x)[-1]:
            x = source
    return c.reshape(c.op("linear", x, w, *([bias] if bias else [])), c.result().shape)


# ------------------------------------------------------------------ products
def as_linear_weight(c: Capture, w: str) -> str | None:
    """The operand [N, K] of `linear` that means x @ w [K, N]: w's stored matrix transposed, or what a
    transpose read."""
    if c.rank(w) != 2:
        return None
    made = c.producer(w)
    if made is not None and made.name == "transpose" and made.operands[0][0] == "@":
        return made.operands[0]
    if w[0] != "@":
        return None
    stored = c.b.weights[w[1:]]
    k, n = stored.type.shape
    turned = TensorType(stored.type.dtype, (n, k), stored.type.encoding)
    return c.b.weight(f"{stored.name}.T", turned, Apply("transpose", (stored.source,), (("perm", (1, 0)),)))


@aten("matmul", "mm", "bmm", "linalg_matmul")
def matmul(c: Capture, a: str, b: str) -> str:
    """Vectors become matrices of one row or column, and lose it again in the result."""
    if c.rank(a) == 0 or c.rank(b) == 0:
        raise c.no("a product with a zero-dimensional tensor", "use *")
    if c.dtype(a) != "f32":
        left, right = _matrices(c, a, b)
        return c.reshape(_plain_product(c, left, right), c.result().shape)
    weight = as_linear_weight(c, b)
    if weight is not None:
        return linear(c, a, weight)
    return c.reshape(c.op("matmul", *_matrices(c, a, b)), c.result().shape)


def _matrices(c: Capture, a: str, b: str) -> tuple[str, str]:
    left = c.reshape(a, (1, *c.shape(a))) if c.rank(a) == 1 else a
    return left, c.reshape(b, (*c.shape(b), 1)) if c.rank(b) == 1 else b


def _plain_product(c: Capture, a: str, b: str, transposed: bool = False) -> str:
    """Of doubles, which no recipe narrows, `matmul`; of integers a sum of products."""
    if c.dtype(a) in FLOATS:
        wide = a if c.rank(a) > 1 else c.reshape(a, (1, *c.shape(a)))
        return c.reshape(c.op("matmul", wide, b, transpose_b=transposed), c.result().shape)
    n = c.rank(b)
    b = b if transposed else c.transpose(b, (*range(n - 2), n - 1, n - 2))
    left = c.reshape(a, (*c.shape(a)[:-1], 1, c.shape(a)[-1]))
    right = c.reshape(b, (*c.shape(b)[:-2], 1, *c.shape(b)[-2:]))
    products = c.op("mul", left, right)
    return c.op("sum", products, axes=(c.rank(products) - 1,))


aten("mv", "dot")(matmul)


@aten("addmm", "baddbmm")
def addmm(c: Capture, bias: str, a: str, b: str, *, beta: Any = 1, alpha: Any = 1) -> str:
    weight = as_linear_weight(c, b) if c.dtype(a) == "f32" else None
    if weight is not None and beta == alpha == 1 and c.shape(bias) == c.shape(weight)[:1]:
        return linear(c, a, weight, bias)
    product = matmul(c, a, b)
    dtype = c.dtype(product)
    product = product if alpha == 1 else c.op("mul", product, c.operand(alpha, dtype))
    return c.op("add", product, bias if beta == 1 else c.op("mul", bias, c.operand(beta, dtype)))


@aten("addbmm")
def addbmm(c: Capture, bias: str, a: str, b: str, *, beta: Any = 1, alpha: Any = 1) -> str:
    """The products of a batch, added."""
    (batch, m, k), n = c.shape(a), c.shape(b)[2]
    wide = c.reshape(c.transpose(a, (1, 0, 2)), (m, as_dim(batch * k)))
    return addmm(c, bias, wide, c.reshape(b, (as_dim(batch * k), n)), beta=beta, alpha=alpha)


# ------------------------------------------------------------------ attention
@aten("scaled_dot_product_attention")
def attention(
    c: Capture, q: str, k: str, v: str, attn_mask: str | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *,
    scale: float | None = None, enable_gqa: bool = False,
) -> str:  # fmt: skip
    """softmax(scale q k^T + mask) v in plain ops; a query that may attend to nothing gives zero, as in
    PyTorch."""
    if enable_gqa:
        k, v = (_repeat_heads(c, t, c.shape(q)[-3]) for t in (k, v))
    s = _scores(c, q, k, scale)
    keep = _causal(c, s) if is_causal else attn_mask if attn_mask and c.dtype(attn_mask) == "bool" else None
    if keep is None:
        s = c.op("add", s, attn_mask) if attn_mask else s
        unsafe = attn_mask is not None and not finite(c, attn_mask)
        p = safe_softmax(c, s, c.rank(s) - 1) if unsafe else c.op("softmax", s, axis=c.rank(s) - 1)
    else:
        p = c.op("softmax", c.op("select", keep, s, c.const(LOWEST, c.dtype(s))), axis=c.rank(s) - 1)
        p = p if is_causal else c.op("select", keep, p, c.const(0.0, c.dtype(s)))
    return c.op("matmul", p, v)


def _factor(c: Capture, q: str, scale: float | None) -> float:
    width = c.shape(q)[-1]
    if scale is None and not isinstance(width, int):
        raise c.no("attention over heads of unknown width", "pass scale=")
    return scale if scale is not None else float(int(width)) ** -0.5


def _scores(c: Capture, q: str, k: str, scale: float | None) -> str:
    """scale q k^T."""
    return c.op("mul", c.op("matmul", q, k, transpose_b=True), c.const(_factor(c, q, scale), c.dtype(q)))


@aten("_scaled_dot_product_flash_attention_for_cpu")
def attention_with_sums(
    c: Capture, q: str, k: str, v: str, dropout_p: float = 0.0, is_causal: bool = False, *,
    attn_mask: str | None = None, scale: float | None = None,
) -> tuple[str, str | None]:  # fmt: skip
    """Attention, and where a backward pass reads it the logarithm of each row's sum of exponentials."""
    k, v = (_repeat_heads(c, t, c.shape(q)[-3]) for t in (k, v))
    y = attention(c, q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
    if not reads(c, 1):
        return y, None
    s = _masked(c, _scores(c, q, k, scale), attn_mask, is_causal)
    axis = c.rank(s) - 1
    top = c.op("max_reduce", s, axes=(axis,), keepdims=True)
    total = c.op("sum", c.op("exp", c.op("sub", s, top)), axes=(axis,), keepdims=True)
    return y, c.reshape(c.op("add", top, c.op("log", total)), c.shape(s)[:-1])


@aten("_scaled_dot_product_flash_attention_for_cpu_backward")
def attention_backward(
    c: Capture, grad: str, q: str, k: str, v: str, out: str, sums: str, dropout_p: float, is_causal: bool, *,
    attn_mask: str | None = None, scale: float | None = None,
) -> tuple[str, str, str]:  # fmt: skip
    """Gradients of queries, keys and values, from the rows' sums that the forward pass left."""
    few = c.shape(k)[-3]
    k, v = (_repeat_heads(c, t, c.shape(q)[-3]) for t in (k, v))
    s = _masked(c, _scores(c, q, k, scale), attn_mask, is_causal)
    rows = c.reshape(sums, (*c.shape(sums), 1))
    p = c.op("exp", c.op("sub", s, rows))
    of_p = c.op("matmul", grad, v, transpose_b=True)
    through = c.op("sum", c.op("mul", grad, out), axes=(c.rank(out) - 1,), keepdims=True)
    of_s = c.op("mul", c.op("mul", p, c.op("sub", of_p, through)), c.const(_factor(c, q, scale), c.dtype(q)))
    swap = (*range(c.rank(s) - 2), c.rank(s) - 1, c.rank(s) - 2)
    of_k, of_v = c.op("matmul", c.transpose(of_s, swap), q), c.op("matmul", c.transpose(p, swap), grad)
    return c.op("matmul", of_s, k), _sum_heads(c, of_k, few), _sum_heads(c, of_v, few)


def _sum_heads(c: Capture, x: str, heads: Any) -> str:
    """[..., H, S, D] -> [..., heads, S, D]: the inverse of `_repeat_heads` for gradients."""
    *lead, have, s, d = c.shape(x)
    if have == heads:
        return x
    apart = c.reshape(x, (*lead, heads, have // heads, s, d))
    return c.op("sum", apart, axes=(len(lead) + 1,))


def _masked(c: Capture, s: str, mask: str | None, causal: bool) -> str:
    """Scores with the mask added, or lowest where it hides."""
    keep = _causal(c, s) if causal else mask if mask and c.dtype(mask) == "bool" else None
    if keep is not None:
        return c.op("select", keep, s, c.const(LOWEST, c.dtype(s)))
    return c.op("add", s, mask) if mask else s


def safe_softmax(c: Capture, x: str, axis: int) -> str:
    """Softmax whose rows of nothing but -inf are zeros, as PyTorch's attention has it; a row of lowest
    numbers stays uniform."""
    top = c.op("max_reduce", x, axes=(axis,), keepdims=True)
    nothing = c.op("eq", top, c.const(-math.inf, c.dtype(x)))
    return c.op("select", nothing, c.const(0.0, c.dtype(x)), c.op("softmax", x, axis=axis))


def _repeat_heads(c: Capture, x: str, heads: Any) -> str:
    """[..., HK, S, D] -> [..., H, S, D], each head `H / HK` times in a row."""
    *lead, have, s, d = c.shape(x)
    if have == heads:
        return x
    stretched = c.op("expand", c.reshape(x, (*lead, have, 1, s, d)), shape=(*lead, have, heads // have, s, d))
    return c.reshape(stretched, (*lead, heads, s, d))


def _causal(c: Capture, s: str) -> str:
    """[Q, K]: key position <= query position, both from 0."""
    return positions_compare(c, "le", c.shape(s)[-2:])


def positions_compare(c: Capture, op: str, shape: Sequence[Any], offset: int = 0) -> str:
    """[rows, columns] bool: column `op` row + offset."""
    rows, columns = shape
    row = c.reshape(c.op("iota", size=rows, start=offset), (rows, 1))
    return c.op(op, c.reshape(c.op("iota", size=columns), (1, columns)), row)
