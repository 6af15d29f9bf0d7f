"""Builds a transformers model without its tensors: parameters are shapes, buffers are real.

In: a config. Out: the model in float32, eval mode. Parameters and what a checkpoint stores beside them are
fake tensors, so that a model's own code may mix them with constants it makes on the CPU. Independent of
graphs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tilewright.capture.experts import register_experts
from tilewright.ir.errors import UnsupportedError


def build_model(config: Any, attention: str) -> Any:
    """The model from a private copy of the config, with `attention` as its attention implementation."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config),
            attn_implementation=attention,
            experts_implementation=register_experts(),
            dtype=torch.float32,
        )
    model.eval()
    _pretend(model)
    return model


def build_class(config: Any, name: str) -> Any:
    """A model of transformers by the name of its class, or without a head where that is empty.
    UnsupportedError for a name that is none of this config's classes."""
    import transformers
    from accelerate import init_empty_weights

    wanted: Any = getattr(transformers, name, None) if name else transformers.AutoModel
    fits = isinstance(wanted, type) and (not name or getattr(wanted, "config_class", None) is type(config))
    if not fits:
        hint = "update transformers, or pass an `nn.Module` with example inputs"
        raise UnsupportedError(f"{name} is not a model of {config.model_type} in transformers", "", hint)
    made = wanted._from_config if name else wanted.from_config
    with init_empty_weights(include_buffers=False):
        model = made(copy.deepcopy(config), dtype=torch.float32)
    model.eval()
    _pretend(model)
    return model


def _pretend(model: nn.Module) -> None:
    """Replace parameters and persistent buffers by fake CPU tensors, one for each name: what is tied may
    differ under an adapter, and is found to be one by what it is stored as."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = nn.Parameter(_fake(p), requires_grad=False)
            for name, b in module._buffers.items():
                if b is not None and name not in module._non_persistent_buffers_set:
                    module._buffers[name] = _fake(b)


def _fake(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="cpu")
