"""Mixtures of experts without loops: every token's chosen experts as grouped linear maps.

In: the arguments transformers gives an experts function. Out: `tilewright::grouped_linear` nodes around the
model's own gate, which the importer turns into `grouped_linear`. Independent of files.
"""

from __future__ import annotations

from typing import Any

import torch

NAME = "tilewright"


def _grouped_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    ids: torch.Tensor,
    bias: torch.Tensor | None,
    transposed: bool,
    interleaved: bool,
) -> torch.Tensor:
    """x [T, K] or [T, A, K], weight [E, N, K] ([E, K, N] if transposed), ids [T, A] -> [T, A, N].
    `interleaved`: rows of the weight are taken even ones first. Only a placeholder for export, it computes
    nothing."""
    raise RuntimeError(
        "tilewright::grouped_linear represents experts in an exported program and cannot be run"
    )


def _grouped_shape(
    x: torch.Tensor,
    weight: torch.Tensor,
    ids: torch.Tensor,
    bias: torch.Tensor | None,
    transposed: bool,
    interleaved: bool,
) -> torch.Tensor:
    return x.new_empty((*ids.shape, weight.shape[2 if transposed else 1]))


grouped_linear = torch.library.custom_op("tilewright::grouped_linear", _grouped_linear, mutates_args=())
grouped_linear.register_fake(_grouped_shape)


class Halves:
    """Gate and up values that the model believes to be interleaved: `[..., ::2]` and `[..., 1::2]` are its
    two halves."""

    def __init__(self, joined: torch.Tensor) -> None:
        self.even, self.odd = joined.chunk(2, dim=-1)

    def __getitem__(self, index: object) -> torch.Tensor:
        even, odd = (..., (None, None, 2)), (..., (1, None, 2))
        found: dict[Any, torch.Tensor] = {even: self.even, (..., (0, None, 2)): self.even, odd: self.odd}
        match index:
            case (a, slice(start=lo, stop=hi, step=step)) if (a, (lo, hi, step)) in found:
                return found[a, (lo, hi, step)]
        raise TypeError(
            f"experts read {index!r} of interleaved gate and up values; expected [..., ::2] or [..., 1::2]"
        )


def experts_function(
    self: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """hidden_states [T, H], top_k_index and top_k_weights [T, A] -> [T, H], as transformers' own experts
    functions."""
    flip = bool(self.is_transposed)
    if self.has_gate:
        interleaved = not self.is_concatenated
        bias = self.gate_up_proj_bias if self.has_bias else None
        joined = grouped_linear(hidden_states, self.gate_up_proj, top_k_index, bias, flip, interleaved)
        inner = self._apply_gate(Halves(joined) if interleaved else joined)
    else:
        bias = self.up_proj_bias if self.has_bias else None
        inner = self.act_fn(grouped_linear(hidden_states, self.up_proj, top_k_index, bias, flip, False))
    bias = self.down_proj_bias if self.has_bias else None
    out = grouped_linear(inner, self.down_proj, top_k_index, bias, flip, False)
    if getattr(self, "has_post_expert_norm", False):
        out = self.post_expert_norm(out)
    return (out * top_k_weights.to(out.dtype).unsqueeze(-1)).sum(dim=1)


def register_experts() -> str:
    """Make it known to transformers; the name to ask for as `experts_implementation`."""
    from transformers.integrations.moe import ExpertsInterface

    ExpertsInterface.register(NAME, experts_function)
    return NAME
