"""The matrix products, of floats and integers, with vectors, batches and transposes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.compiler.small_modules.base import BF16, F32, F64, FLOATS, I32, NUMBERS, Case, case, fixed, mask, x


def grouped_mm_fallback(a: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """transformers' own operator, of weights stored as they are and transposed."""
    import transformers.integrations.moe  # noqa: F401

    product = torch.ops.transformers.grouped_mm_fallback
    return torch.cat([product(a, w, ends), product(a, w.mT.contiguous().mT, ends)])


A, B, C = x(4, 6), x(6, 5), x(2, 3, 4, 6)
Q, K, V = x(2, 4, 5, 8), x(2, 4, 7, 8, seed=1), x(2, 4, 7, 8, seed=2)
G = x(2, 2, 7, 8, seed=1)

#: where the rows of three experts end, of seven rows
ENDS = fixed(2, 2, 6, dtype=I32)

CASES: dict[str, Case] = {
    "mm": case(torch.mm, A, B, of=NUMBERS),
    "mm of transposes": case(lambda a, b: (a.T.mm(a), b.mm(b.T), b.T @ a.T), A, B, of=NUMBERS),
    "bmm": case(torch.bmm, x(3, 4, 6), x(3, 6, 5), of=NUMBERS),
    "matmul": case(lambda c, b: (c @ b, c @ c.mT), C, B, of=NUMBERS),
    "matmul broadcast": case(torch.matmul, x(2, 1, 4, 6), x(3, 6, 5), of=FLOATS),
    "mv": case(lambda a, b: (a.mv(b[:, 0]), a @ b[:, 1], b[:, 0] @ b), A, B, of=NUMBERS),
    "dot": case(lambda a: (a[0].dot(a[1]), torch.outer(a[0], a[1]), a[0].inner(a[1])), A, of=NUMBERS),
    "addmm": case(
        lambda a, b, c: (torch.addmm(c, a, b), torch.addmm(c, a, b, beta=2, alpha=3)), A, B, x(5), of=NUMBERS
    ),
    "baddbmm": case(torch.baddbmm, x(3, 4, 5), x(3, 4, 6), x(3, 6, 5), of=NUMBERS),
    "addmv": case(lambda a, b: torch.addmv(a[:, 0], a, b[:, 0]), A, B, of=NUMBERS),
    "addbmm": case(torch.addbmm, x(4, 5), x(3, 4, 6), x(3, 6, 5), of=FLOATS),
    "linear": case(lambda c, w, b: (F.linear(c, w, b), F.linear(c, w)), C, x(5, 6), x(5)),
    "linear and a transpose": case(
        lambda a, w: (F.linear(a.mT, w).mT + a, F.linear(a.mT, w) * a.mT), x(2, 5, 4), x(5, 5)
    ),
    "bilinear": case(F.bilinear, A, x(4, 3), x(5, 6, 3), x(5), of=(F32,), refused="aten._trilinear.default"),
    "einsum": case(
        lambda a, b: (torch.einsum("ij,jk->ki", a, b), torch.einsum("ij,ij->i", a, a)), A, B, of=FLOATS
    ),
    "kron": case(torch.kron, x(2, 3), x(3, 2), of=NUMBERS),
    "cross": case(lambda a, b: torch.linalg.cross(a, b), x(4, 3), x(4, 3, seed=1), of=NUMBERS),
    "tensordot": case(lambda c: torch.tensordot(c, c, dims=([1, 3], [1, 3])), C, of=FLOATS),
    "chain_matmul": case(lambda a, b: torch.linalg.multi_dot([a, b, b.T]), A, B, of=FLOATS),
    "cdist": case(lambda a, b: torch.cdist(a, b), x(2, 4, 6), x(2, 5, 6), of=(F32, F64), loose=10),
    "_cdist_forward": case(
        lambda a, b: tuple(
            torch.ops.aten._cdist_forward(a, b, p, None) for p in (0.0, 1.0, 2.0, 3.0, float("inf"))
        ),
        x(2, 4, 6),
        x(2, 5, 6),
        of=(F32, F64),
    ),
    "_pdist_forward": case(
        lambda a: tuple(torch.ops.aten._pdist_forward(a, p) for p in (1.0, 2.0, 3.0, float("inf"))),
        x(5, 6),
        of=(F32, F64),
    ),
    "cosine_similarity": case(F.cosine_similarity, A, x(4, 6, seed=1), of=FLOATS),
    "scaled_dot_product_attention": case(F.scaled_dot_product_attention, Q, K, V, of=FLOATS),
    "scaled_dot_product_attention causal": case(
        lambda q: F.scaled_dot_product_attention(q, q * 2, q + 1, is_causal=True), Q, of=FLOATS
    ),
    "scaled_dot_product_attention masked": case(
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m), Q, K, V, mask(5, 7), of=FLOATS
    ),
    "scaled_dot_product_attention biased": case(
        lambda q, k, v, b: F.scaled_dot_product_attention(q, k, v, b, scale=0.3),
        Q,
        K,
        V,
        x(2, 1, 5, 7),
        of=FLOATS,
    ),
    "scaled_dot_product_attention grouped": case(
        lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True), Q, G, of=FLOATS
    ),
    "_grouped_mm": case(
        lambda a, w, ends: torch._grouped_mm(a, w, offs=ends)[:6], x(7, 16), x(3, 16, 8), ENDS, of=(BF16,)
    ),
    "_grouped_mm of batches": case(
        lambda a, w: torch._grouped_mm(a, w), x(3, 8, 16), x(3, 16, 8), of=(BF16,),
        refused="aten._grouped_mm.default",
    ),
    "grouped_mm_fallback": case(grouped_mm_fallback, x(7, 6), x(3, 6, 5), ENDS, of=(F32,)),
}  # fmt: skip
