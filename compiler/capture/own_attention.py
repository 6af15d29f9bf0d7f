"""Models that do not use transformers' attention interface: their own code, mapped to the same op.

In: a model built for `sdpa` or `eager`. Out: while open, PyTorch's own attention and the `_attn` method of
older models give `tilewright::attend`, and masks are descriptions. A model with neither seam meets a
description where it wants a tensor, and fails loudly. Independent of graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch

from tilewright.capture.attention import MaskSpec, heads_first, mask_function

#: implementations a model may be built for here
BUILT_FOR = ("sdpa", "eager")


@contextmanager
def own_attention_as_op(model: Any) -> Iterator[None]:
    """Lead the model's own attention to the op, and its masks to descriptions."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    original = torch.nn.functional.scaled_dot_product_attention
    patched = [m for m in model.modules() if hasattr(m, "_attn") and hasattr(m, "scale_attn")]
    try:
        for name in BUILT_FOR:
            ALL_MASK_ATTENTION_FUNCTIONS[name] = mask_function
        torch.nn.functional.scaled_dot_product_attention = _sdpa
        for m in patched:
            m._attn = MethodType(_attn, m)
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
        for name in BUILT_FOR:
            del ALL_MASK_ATTENTION_FUNCTIONS[name]
        for m in patched:
            del m._attn


def _sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attn_mask: MaskSpec | torch.Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """PyTorch's attention, [B, H, S, D] throughout."""
    spec = attn_mask if isinstance(attn_mask, MaskSpec) else MaskSpec(bool(is_causal))
    size = float(query.shape[-1] ** -0.5 if scale is None else scale)
    return heads_first(query, key, value, attn_mask, spec, size).transpose(1, 2)


def _attn(
    self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None
) -> tuple[Any, None]:
    """The `_attn` of GPT-J and similar models, [B, H, S, D] throughout."""
    if not isinstance(attention_mask, MaskSpec):
        raise TypeError(f"expected a described mask, got {type(attention_mask).__name__}")
    return heads_first(query, key, value, None, attention_mask, 1.0 / float(self.scale_attn)).transpose(
        1, 2
    ), None
