"""Small models of images, as their papers or public implementations have them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(
    inner: int, outer: int, k: int = 1, stride: int = 1, groups: int = 1,
    act: type[nn.Module] | None = nn.ReLU6,
) -> nn.Sequential:  # fmt: skip
    """Convolution, batch norm, activation."""
    made = nn.Conv2d(inner, outer, k, stride, k // 2, groups=groups, bias=False)
    return nn.Sequential(made, nn.BatchNorm2d(outer), act() if act is not None else nn.Identity())


# ------------------------------------------------------------------ mobile nets
class Squeeze(nn.Module):
    """Channels scaled by a gate that sees the mean of all pixels."""

    def __init__(self, channels: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        inner = max(channels // 4, 4)
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.act(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """An inverted residual: widen, convolve each channel, narrow without an activation."""

    def __init__(
        self, inner: int, outer: int, k: int, stride: int, widen: int, act: type[nn.Module],
        gate: type[nn.Module] | None,
    ) -> None:  # fmt: skip
        super().__init__()
        wide = inner * widen
        parts: list[nn.Module] = [conv(inner, wide, act=act)] if widen > 1 else []
        parts.append(conv(wide, wide, k, stride, groups=wide, act=act))
        if gate is not None:
            parts.append(Squeeze(wide, nn.ReLU if gate is nn.Hardsigmoid else act, gate))
        self.body = nn.Sequential(*parts, conv(wide, outer, act=None))
        self.residual = stride == 1 and inner == outer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return x + y if self.residual else y


def mobile(act: type[nn.Module], gate: type[nn.Module] | None, k: int) -> nn.Module:
    """MobileNetV2 (ReLU6, no gates), MobileNetV3 (Hardswish, hard gates), EfficientNet (SiLU, gates)."""
    return nn.Sequential(
        conv(3, 8, 3, 2, act=act),
        Inverted(8, 8, 3, 1, 1, act, gate), Inverted(8, 12, 3, 2, 3, act, None),
        Inverted(12, 12, 3, 1, 3, act, gate), Inverted(12, 16, k, 2, 3, act, gate),
        conv(16, 40, act=act), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(40, 10),
    )  # fmt: skip


# ------------------------------------------------------------------ U-Net and a detector
def double(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(conv(inner, outer, 3, act=nn.ReLU), conv(outer, outer, 3, act=nn.ReLU))


class UNet(nn.Module):
    """Max pooling down, transposed convolutions up, the way down joined at each level."""

    def __init__(self, widths: tuple[int, ...] = (8, 12, 16)) -> None:
        super().__init__()
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.first = double(3, widths[0])
        self.down = nn.ModuleList(double(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs))
        self.join = nn.ModuleList(double(2 * a, a) for a, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.first(x)]
        for part in self.down:
            kept.append(part(F.max_pool2d(kept[-1], 2)))
        x = kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([kept.pop(), up(x)], 1))
        return self.head(x)  # type: ignore[no-any-return]


class Detector(nn.Module):
    """YOLOv8: split bottlenecks, pyramid pooling, features joined upwards, boxes as expected distances."""

    def __init__(self, classes: int = 4, bins: int = 8) -> None:
        super().__init__()
        self.stem, self.mid = conv(3, 8, 3, 2, act=nn.SiLU), conv(8, 16, 3, 2, act=nn.SiLU)
        self.split = conv(16, 16, act=nn.SiLU)
        self.bottle = nn.Sequential(conv(8, 8, 3, act=nn.SiLU), conv(8, 8, 3, act=nn.SiLU))
        self.merge = conv(24, 16, act=nn.SiLU)
        self.low = conv(16, 16, 3, 2, act=nn.SiLU)
        self.before, self.after = conv(16, 8, act=nn.SiLU), conv(32, 16, act=nn.SiLU)
        self.joined = conv(32, 16, act=nn.SiLU)
        self.boxes, self.scores = nn.Conv2d(16, 4 * bins, 1), nn.Conv2d(16, classes, 1)
        self.bins = bins

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Corners [B, 4, N] in pixels, scores [B, classes, N], and each image's 5 best places."""
        a, b = self.split(self.mid(self.stem(image))).chunk(2, 1)
        high = self.merge(torch.cat([a, b, b + self.bottle(b)], 1))
        x = self.before(self.low(high))
        pools = [x]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        low = self.after(torch.cat(pools, 1))
        high = self.joined(torch.cat([F.interpolate(low, scale_factor=2, mode="nearest"), high], 1))
        boxes, scores = zip(*(self._decoded(x, step) for x, step in ((high, 4), (low, 8))), strict=True)
        best = torch.cat(scores, 2).amax(1).topk(5).indices
        return torch.cat(boxes, 2), torch.cat(scores, 2), best

    def _decoded(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        batch, _, h, w = x.shape
        far = self.boxes(x).reshape(batch, 4, self.bins, h * w).softmax(2)
        far = (far * torch.arange(self.bins, dtype=x.dtype).view(1, 1, -1, 1)).sum(2)
        ys, xs = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        centre = torch.stack([xs, ys]).reshape(1, 2, h * w)
        corners = torch.cat([centre - far[:, :2], centre + far[:, 2:]], 1) * step
        return corners, self.scores(x).flatten(2).sigmoid()
