"""Attention of Hugging Face models as one op: the attention and mask functions that transformers calls.

In: the arguments transformers gives an attention function. Out: a `tilewright::attend` node in the exported
program, which the importer turns into the graph's `attend`. A mask is a description (`MaskSpec`), not a
tensor: a model that computes with it breaks loudly instead of losing its causality. Independent of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tilewright.ir.errors import UnsupportedError

NAME = "tilewright"


@dataclass(frozen=True)
class MaskSpec:
    """Which keys a query sees, by position alone: those before it (`causal`), the last `window` of them (0:
    all)."""

    causal: bool
    window: int = 0


# ------------------------------------------------------------------ the op
def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None, bias: torch.Tensor | None,
    mask: torch.Tensor | None, scale: float, causal: bool, window: int, softcap: float,
) -> torch.Tensor:  # fmt: skip
    """softmax(scale q k^T …) v on [B, S, H, D]; only a placeholder for export, it computes nothing."""
    raise RuntimeError("tilewright::attend represents attention in an exported program and cannot be run")


def _attend_shape(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None, bias: torch.Tensor | None,
    mask: torch.Tensor | None, scale: float, causal: bool, window: int, softcap: float,
) -> torch.Tensor:  # fmt: skip
    return q.new_empty((*q.shape[:3], v.shape[3]))


attend = torch.library.custom_op("tilewright::attend", _attend, mutates_args=())
attend.register_fake(_attend_shape)


# ------------------------------------------------------------------ what transformers calls
#: arguments that say nothing about what attention computes
_NOISE = {
    "dropout", "position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states",
    "return_dict",
    "is_causal", "deterministic", "head_mask", "past_key_values", "num_items_in_batch",
    "output_router_logits", "token_type_ids",
    "layer_idx", "target_dtype", "implementation",
}  # fmt: skip


def attention_function(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: MaskSpec | torch.Tensor | None, scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None, position_bias: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """query, key, value [B, H, S, D] -> [B, S, H, DV], as transformers' own attention functions. The mask
    alone decides which keys are seen, as in their eager form, so `sliding_window` is not read."""
    unknown = sorted(k for k, v in kwargs.items() if v is not None and v is not False and k not in _NOISE)
    if unknown:
        raise UnsupportedError(f"attention with {', '.join(unknown)}", type(module).__name__)
    spec = _mask_of(module, attention_mask, kwargs.get("is_causal"))
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    return heads_first(
        query, key, value, attention_mask, spec, scale, float(softcap or 0.0), s_aux, position_bias
    ), None


def heads_first(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: object, spec: MaskSpec, scale: float,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None, bias: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The op on [B, H, S, D] values, with a mask that may also be a tensor (boolean, or added to scores) ->
    [B, S, H, DV]."""
    tensor = mask if isinstance(mask, torch.Tensor) else None
    if tensor is not None and tensor.dtype != torch.bool:
        tensor, bias = None, tensor if bias is None else tensor + bias
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    out: torch.Tensor = attend(q, k, v, sinks, bias, tensor, scale, spec.causal, spec.window, softcap)
    return out


def _mask_of(module: torch.nn.Module, mask: object, is_causal: bool | None) -> MaskSpec:
    if isinstance(mask, MaskSpec):
        return mask
    if isinstance(mask, torch.Tensor):
        return MaskSpec(False)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if mask is None and not causal:
        return MaskSpec(False)
    raise UnsupportedError(f"causal attention with the mask {type(mask).__name__}", type(module).__name__)


def mask_function(*args: Any, mask_function: Callable[..., Any], **kwargs: Any) -> MaskSpec | torch.Tensor:
    """A description where the mask depends on positions alone, transformers' boolean [B, 1, Q, K]
    otherwise."""
    spec = describe_mask(mask_function)
    if spec is not None:
        return spec
    from transformers.masking_utils import sdpa_mask

    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    made: torch.Tensor = sdpa_mask(*args, mask_function=mask_function, **{**kwargs, **skips})
    return made


def describe_mask(function: Callable[..., Any]) -> MaskSpec | None:
    """What a mask function of transformers says, if it is an *and* of causal, bidirectional and
    sliding-window parts."""
    causal, window = False, 0
    for part in _parts(function):
        name = part.__qualname__
        if name == "causal_mask_function":
            causal = True
        elif name == "sliding_window_overlay.<locals>.inner_mask":
            size = _captured(part, "sliding_window")
            if not isinstance(size, int) or size <= 0:
                return None
            window = min(window, size) if window else size
        elif name != "bidirectional_mask_function":
            return None
    return MaskSpec(causal, window) if causal or not window else None


def _parts(function: Callable[..., Any]) -> Iterator[Any]:
    if getattr(function, "__qualname__", "") == "and_masks.<locals>.and_mask":
        for part in _captured(function, "mask_functions"):
            yield from _parts(part)
    else:
        yield function


def _captured(function: Any, name: str) -> Any:
    """The value a closure holds under a name (None if it holds none)."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    return cells[name].cell_contents if name in cells else None


def register_attention() -> str:
    """Make both known to transformers; the name to ask for as `attn_implementation`."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention_function)
    AttentionMaskInterface.register(NAME, mask_function)
    return NAME
