"""Rule for attention in plain form: matmul, scale, mask, softmax, matmul, with repeated KV heads seen through.

In: the matmul with the values. Out: an `attend` on [B, S, H, D], causal or windowed where the mask says so by position.
"""

from __future__ import annotations

from tilewright.ir.graph import Op
from tilewright.passes.rewrite import Rewrite


def attention(r: Rewrite, at: Op) -> str | None:
    return None
