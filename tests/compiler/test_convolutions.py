"""Convolutions and pools against eager PyTorch: every option, odd sizes, groups; nets that are built of them.

The cases are compiled as one module, with results named after them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

import tilewright as tw
from tests.compiler.test_plain_sweep import r
from tilewright.capture import capture_module
from tilewright.ir.errors import UnsupportedError
from tilewright.passes.driver import run_passes
from tilewright.passes.pipelines import PLAIN, pipeline_text

Case = tuple[nn.Module | Callable[..., Any], tuple[torch.Tensor, ...]]

CASES: dict[str, Case] = {
    "3x3": (nn.Conv2d(16, 32, 3, padding=1), (r(2, 16, 9, 14),)),
    "1x1": (nn.Conv2d(12, 20, 1), (r(2, 12, 5, 7),)),
    "1x1 strided": (nn.Conv2d(16, 16, 1, stride=2), (r(1, 16, 6, 8),)),
    "uneven": (nn.Conv2d(5, 7, (3, 2), padding=(1, 0), bias=False), (r(1, 5, 9, 11),)),
    "stem": (nn.Conv2d(3, 16, 7, stride=2, padding=3), (r(1, 3, 18, 20),)),
    "strided, odd": (nn.Conv2d(8, 16, 3, stride=2, padding=1), (r(1, 8, 7, 9),)),
    "stride 3": (nn.Conv2d(4, 5, 2, stride=(1, 3)), (r(1, 4, 5, 9),)),
    "patches": (nn.Conv2d(3, 8, 4, stride=4), (r(2, 3, 9, 8),)),
    "dilated": (nn.Conv2d(8, 8, 3, padding=2, dilation=2), (r(1, 8, 9, 10),)),
    "dilated, strided": (nn.Conv2d(8, 8, 3, padding=(3, 0), dilation=3, stride=2), (r(1, 8, 10, 12),)),
    "same": (nn.Conv2d(4, 4, (4, 3), padding="same"), (r(1, 4, 6, 7),)),
    "one pixel": (nn.Conv2d(6, 8, 3, padding=1), (r(1, 6, 1, 1),)),
    "one channel": (nn.Conv2d(1, 1, 5, padding=2), (r(1, 1, 6, 13),)),
    "no batch": (nn.Conv2d(4, 6, 3), (r(4, 7, 7),)),
    "two groups": (nn.Conv2d(8, 32, 3, padding=1, groups=2), (r(1, 8, 5, 6),)),
    "narrow groups": (nn.Conv2d(32, 64, 3, padding=1, groups=8), (r(1, 32, 5, 6),)),
    "odd groups": (nn.Conv2d(9, 15, 3, groups=3), (r(1, 9, 5, 6),)),
    "depthwise": (nn.Conv2d(24, 24, 3, padding=1, groups=24), (r(2, 24, 6, 7),)),
    "depthwise, strided": (nn.Conv2d(20, 20, 5, padding=2, groups=20, stride=2), (r(1, 20, 8, 10),)),
    "depthwise, odd": (nn.Conv2d(3, 3, 3, padding=1, groups=3, stride=2), (r(1, 3, 7, 9),)),
    "two outputs per channel": (nn.Conv2d(9, 18, 3, groups=9), (r(1, 9, 6, 7),)),
    "1d": (nn.Conv1d(8, 12, 5, padding=2, stride=2), (r(2, 8, 20),)),
    "3d": (nn.Conv3d(4, 8, (3, 2, 3), padding=(1, 0, 1)), (r(1, 4, 4, 5, 6),)),
    "given kernels": (lambda x, w, b: F.conv2d(x, w, b, padding=1), (r(2, 8, 5, 6), r(5, 8, 3, 3), r(5))),
    "given kernels, groups": (lambda x, w: F.conv2d(x, w, groups=2), (r(1, 8, 5, 6), r(6, 4, 3, 3))),
    "given kernels, depthwise": (lambda x, w: F.conv1d(x, w, groups=6), (r(1, 6, 9), r(6, 1, 3))),
    "doubles": (nn.Conv2d(4, 8, 3).double(), (r(1, 4, 5, 6).double(),)),
    "bf16": (nn.Conv2d(8, 8, 3, padding=1).bfloat16(), (r(1, 8, 5, 6).bfloat16(),)),
    "f16": (nn.Conv2d(3, 8, 3, padding=1, stride=2).half(), (r(1, 3, 6, 6).half(),)),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2), (r(1, 4, 3, 5),)),
    "transposed, overlapping": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (r(2, 4, 3, 5),)
    ),
    "transposed, wide": (nn.ConvTranspose2d(4, 6, 5, stride=(3, 1), padding=(0, 2)), (r(1, 4, 3, 5),)),
    "transposed, groups": (nn.ConvTranspose2d(4, 8, 4, stride=2, padding=1, groups=2), (r(1, 4, 3, 5),)),
    "transposed, dilated": (nn.ConvTranspose1d(4, 8, 3, dilation=2, padding=1), (r(1, 4, 7),)),
    "largest": (nn.MaxPool2d(3, 2, 1), (r(2, 20, 8, 9),)),
    "largest, dilated": (nn.MaxPool2d(2, 1, dilation=2), (r(2, 3, 8, 9),)),
    "largest, to the end": (nn.MaxPool2d(3, 2, ceil_mode=True), (r(1, 20, 8, 9),)),
    "largest with NaN": (nn.MaxPool1d(2), (r(1, 2, 8).masked_fill(r(1, 2, 8) > 1, torch.nan),)),
    "mean": (nn.AvgPool2d(2), (r(2, 18, 6, 8),)),
    "mean without padding": (nn.AvgPool2d(3, 1, 1, count_include_pad=False), (r(2, 4, 6, 7),)),
    "mean, to the end": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (r(1, 4, 7, 8),)),
    "mean of neighbours": (nn.AvgPool1d(3, 2, 1), (r(4, 9),)),
    "mean of all": (nn.AdaptiveAvgPool2d(1), (r(2, 5, 6, 7),)),
    "of a slice": (lambda x: F.max_pool2d(x[:, 1:5, :, 2:].relu(), 2), (r(1, 8, 6, 8),)),
    "integers": (lambda x: F.max_pool2d(x, 2), ((r(1, 4, 6, 6) * 9).int(),)),
}  # fmt: skip


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.ModuleList([m for m, _ in CASES.values() if isinstance(m, nn.Module)])

    def forward(self, inputs: dict[str, tuple[torch.Tensor, ...]]) -> dict[str, torch.Tensor]:
        return {name: m(*inputs[name]) for name, (m, _) in CASES.items()}


def close(got: Any, want: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest number; NaN in the same places."""
    a, b = (torch.as_tensor(np.asarray(x.float() if isinstance(x, torch.Tensor) else x)) for x in (got, want))
    assert a.shape == b.shape
    np.testing.assert_array_equal(a.isnan(), b.isnan())
    a, b = a.nan_to_num(), b.nan_to_num()
    assert (a - b).abs().max() <= tolerance * b.abs().max(), float((a - b).abs().max() / b.abs().max())


def test_every_case() -> None:
    inputs = {name: args for name, (_, args) in CASES.items()}
    net = Net().eval()
    compiled = tw.compile(net, example_inputs=(inputs,), recipe="f32")
    with torch.no_grad():
        got, want = compiled(inputs), net(inputs)
    for name, (_, args) in CASES.items():
        assert got[name].dtype == want[name].dtype, name
        half = args[0].dtype in (torch.bfloat16, torch.float16)
        try:
            close(got[name], want[name].detach(), 1e-2 if half else 1e-5)
        except AssertionError as e:
            raise AssertionError(f"{name}: {e}") from e


# ------------------------------------------------------------------ nets
def norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm whose figures are those of a trained one."""
    out = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for t in (out.running_mean, out.bias):
            t.normal_(std=0.3)
        for t in (out.running_var, out.weight):
            t.uniform_(0.5, 1.5)
    return out


def unit(a: int, b: int, window: int, act: nn.Module, **kw: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, window, padding=window // 2, bias=False, **kw), norm(b), act)


class Residual(nn.Module):
    """A bottleneck of ResNet, or with `groups` an inverted one of MobileNetV2."""

    def __init__(self, a: int, inner: int, b: int, stride: int, groups: int, act: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            unit(a, inner, 1, act),
            unit(inner, inner, 3, act, stride=stride, groups=groups),
            unit(inner, b, 1, nn.Identity()),
        )
        self.same = a == b and stride == 1
        self.side = unit(a, b, 1, nn.Identity(), stride=stride) if not self.same and groups == 1 else None
        self.act = act if groups == 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        if self.side is not None:
            y = y + self.side(x)
        return self.act(y + x if self.same else y)


class Squeeze(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 6, 1), nn.Conv2d(6, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.b(F.silu(self.a(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


class ConvNeXt(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.rand(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.mix(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        act = nn.SiLU()
        self.first, self.inner = unit(3, 16, 3, act), unit(16, 32, 3, act)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.last = nn.Sequential(unit(32, 16, 3, act), nn.Conv2d(16, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.first(x)
        return self.last(torch.cat([a, self.up(self.inner(F.max_pool2d(a, 2)))], 1))


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, 5)]


def resnet() -> nn.Module:
    relu = nn.ReLU()
    stem = [unit(3, 16, 7, relu, stride=2), nn.MaxPool2d(3, 2, 1)]
    body = [
        Residual(16, 8, 32, 1, 1, relu),
        Residual(32, 16, 48, 2, 1, relu),
        Residual(48, 16, 48, 1, 1, relu),
    ]
    return nn.Sequential(*stem, *body, *head(48))


def mobilenet() -> nn.Module:
    act = nn.Hardswish()
    body = [Residual(16, 24, 24, 2, 24, act), Residual(24, 48, 24, 1, 48, act), Squeeze(24)]
    return nn.Sequential(unit(3, 16, 3, act, stride=2), *body, *head(24))


def convnext() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 24, 4, stride=4), ConvNeXt(24), ConvNeXt(24), *head(24))


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet": resnet, "mobilenet": mobilenet, "convnext": convnext, "unet": UNet,
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in NETS])
def test_nets(name: str) -> None:
    torch.manual_seed(0)
    net, x = NETS[name]().eval(), torch.randn(2, 3, 32, 48)
    compiled = tw.compile(net, example_inputs=(x,), recipe="f32")
    close(compiled(x), net(x).detach())


@pytest.mark.parametrize("name", NETS)
def test_layouts_of_nets(name: str) -> None:
    """Between its ends a net is transposed nowhere, and nothing is left of its batch norms."""
    net = NETS[name]().eval()
    module, _ = capture_module(net, (torch.randn(2, 3, 32, 48),))
    fused = run_passes(module, pipeline_text(PLAIN, {"encode-weights": {"weights": "f32"}})).module
    (graph,) = fused.graphs
    turned = [op for op in graph.ops if op.name == "transpose"]
    patches = {"convnext": 1, "unet": 1}  # rows of patches; pixels laid out after the transposed convolution
    assert len(turned) == 1 + (name == "unet") + patches.get(name, 0)
    assert not any(op.name in ("rsqrt", "batch_norm") for op in graph.ops)


# ------------------------------------------------------------------ sizes known at run time
def test_dynamic_images() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.MaxPool2d(3, 1, 1)
    ).eval()
    sizes = {0: Dim("B", max=4), 2: Dim("H", min=4, max=40), 3: Dim("W", min=4, max=40)}
    compiled = tw.compile(model, example_inputs=(r(2, 4, 8, 9),), dynamic_shapes=(sizes,), recipe="f32")
    for shape in ((2, 4, 8, 9), (1, 4, 5, 40), (4, 4, 33, 7)):
        close(compiled(r(*shape)), model(r(*shape)).detach())


def test_strides_over_dynamic_axes_are_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2))
    sizes = ({2: Dim("H", min=8, max=40)},)
    with pytest.raises(UnsupportedError, match=r"conv x1: size .* is not a sum of products .* \(module 0\)"):
        tw.compile(model, example_inputs=(r(1, 3, 9, 9),), dynamic_shapes=sizes, recipe="f32")
