"""Building a transformers model without its tensors: parameters are shapes that claim to be on the CPU, buffers are real.

In: a config. Out: the model in float32, eval mode. Parameters and what a checkpoint stores beside them are fake tensors, so that
a model's own code may mix them with constants it makes on the CPU. Knows nothing of graphs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from tilewright.capture.experts import register_experts


def build_model(config: Any, attention: str) -> Any:
    """The model from a private copy of the config, with `attention` as its attention implementation."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation=attention, experts_implementation=register_experts(), dtype=torch.float32
        )
    model.eval()
    _pretend(model)
    return model


def _pretend(model: nn.Module) -> None:
    """Replace parameters and persistent buffers by fake CPU tensors; what is shared stays shared."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    made: dict[int, Any] = {}
    with mode:
        for module in model.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    new = made.get(id(p))
                    if new is None:
                        new = made[id(p)] = nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="cpu"), requires_grad=False)
                    module._parameters[name] = new
            for name, b in module._buffers.items():
                if b is not None and name not in module._non_persistent_buffers_set:
                    module._buffers[name] = torch.empty(b.shape, dtype=b.dtype, device="cpu")
