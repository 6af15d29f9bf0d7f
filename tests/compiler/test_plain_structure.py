"""Plain modules give back what the module gives: scalars as scalars, structures as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import tilewright as tw


class Of(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *args: Any) -> Any:
        return self.fn(*args)


def test_constants_without_axes() -> None:
    """`scale` is a buffer of rank 0, copied and read; the mask's filler one that tracing made."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor(3.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x > 0, x * self.scale.clone(), torch.tensor(-1e4, dtype=x.dtype)).sum()

    x = torch.randn(3, 4)
    got = tw.compile(Scaled(), example_inputs=(x,), recipe="f32")(x)
    assert isinstance(got, torch.Tensor) and got.shape == ()
    torch.testing.assert_close(got, Scaled()(x))
