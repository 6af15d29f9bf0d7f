"""Small models of kinds that transformers does not have, each as its paper's or a public implementation's.

Each makes a module in evaluation mode and a function that draws its arguments for a batch, with weights and
running statistics that matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compiler.small_vision import Detector, UNet, mobile

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Small:
    """`make`: the module; `draw(batch)`: its arguments. `sized`: sizes of images are part of the model, and
    only the first axis of its arguments may change."""

    make: Callable[[], nn.Module]
    draw: Callable[[int], Arguments]
    sized: bool = False


def images(size: int, channels: int = 3) -> Callable[[int], Arguments]:
    return lambda batch: (torch.randn(batch, channels, size, size),)


# ------------------------------------------------------------------ diffusion
def times(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of a time step [B] -> [B, width]."""
    rates = torch.exp(-math.log(10000) * torch.arange(width // 2) / (width // 2))
    angles = t[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], -1)


class Attention(nn.Module):
    """Several heads; keys and values of `context`, by default of x."""

    def __init__(self, width: int, heads: int, of: int | None = None) -> None:
        super().__init__()
        self.heads, self.q, self.out = heads, nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.kv = nn.Linear(of or width, 2 * width, bias=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        k, v = self.kv(x if context is None else context).chunk(2, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q(x), k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out(y)  # type: ignore[no-any-return]


class DiT(nn.Module):
    """Patches of a latent through one block whose norms are shifted, scaled and gated by time and class."""

    def __init__(self, width: int = 32, patch: int = 2, size: int = 8) -> None:
        super().__init__()
        self.width, self.patch, self.side = width, patch, size // patch
        self.embed = nn.Conv2d(4, width, patch, patch)
        self.places = nn.Parameter(torch.randn(1, self.side**2, width))
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(11, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6, elementwise_affine=False) for _ in range(3))
        self.attention = Attention(width, 4)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(approximate="tanh"), nn.Linear(64, width))
        self.block, self.last = nn.Linear(width, 6 * width), nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, patch * patch * 8)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).transpose(1, 2) + self.places
        c = F.silu(self.time(times(t, 16)) + self.label(label))
        a1, b1, g1, a2, b2, g2 = self.block(c)[:, None].chunk(6, -1)
        h = h + g1 * self.attention(self.norms[0](h) * (1 + b1) + a1)
        h = h + g2 * self.mlp(self.norms[1](h) * (1 + b2) + a2)
        a, b = self.last(c)[:, None].chunk(2, -1)
        y = self.head(self.norms[2](h) * (1 + b) + a)
        p, s = self.patch, self.side
        y = y.reshape(x.shape[0], s, s, p, p, 8)
        return torch.einsum("nhwpqc->nchpwq", y).reshape(x.shape[0], 8, s * p, s * p)


class Residual(nn.Module):
    """Group norms and convolutions around a shift that depends on time."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, inner), nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, outer), nn.Conv2d(outer, outer, 3, padding=1)
        self.time, self.skip = nn.Linear(32, outer), nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(t))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))  # type: ignore[no-any-return]


class Crossed(nn.Module):
    """Attention of pixels to each other, then to a text, then a gated MLP."""

    def __init__(self, width: int, text: int) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = (
            nn.GroupNorm(4, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.own, self.cross = Attention(width, 2), Attention(width, 2, text)
        self.gate, self.down = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        h = self.enter(self.norm(x).flatten(2).transpose(1, 2))
        h = h + self.own(self.norms[0](h))
        h = h + self.cross(self.norms[1](h), text)
        a, b = self.gate(self.norms[2](h)).chunk(2, -1)
        h = self.leave(h + self.down(a * F.gelu(b)))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class Diffusion(nn.Module):
    """A U-Net of one level as Stable Diffusion has it: noise from a latent, a time and a text."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 32))
        self.enter, self.down1, self.cross1 = (
            nn.Conv2d(4, 16, 3, padding=1),
            Residual(16, 16),
            Crossed(16, 24),
        )
        self.shrink, self.middle, self.cross2 = nn.Conv2d(16, 16, 3, 2, 1), Residual(16, 16), Crossed(16, 24)
        self.grow, self.up1 = nn.Conv2d(16, 16, 3, padding=1), Residual(32, 16)
        self.norm, self.leave = nn.GroupNorm(4, 16), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        t = self.time(times(t, 16))
        high = self.cross1(self.down1(self.enter(x), t), text)
        low = self.cross2(self.middle(self.shrink(high), t), text)
        up = self.grow(F.interpolate(low, scale_factor=2.0, mode="nearest"))
        return self.leave(F.silu(self.norm(self.up1(torch.cat([up, high], 1), t))))  # type: ignore[no-any-return]


# ------------------------------------------------------------------ without convolutions
class Tagger(nn.Module):
    """A bidirectional LSTM over words, a score per word and tag."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.tags = nn.Embedding(60, 12, padding_idx=0), nn.Linear(20, 7)
        self.lstm = nn.LSTM(12, 10, num_layers=2, bidirectional=True, batch_first=True, dropout=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.tags(self.lstm(self.words(ids))[0]).log_softmax(-1)  # type: ignore[no-any-return]


class Mixer(nn.Module):
    """MLPs over places and over channels in turn."""

    def __init__(self, width: int = 16, places: int = 16, layers: int = 2) -> None:
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, width, 4, 4), nn.Linear(width, 5)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers + 1))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(n, 24), nn.GELU(), nn.Linear(24, n))
            for _ in range(layers)
            for n in (places, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        for n in range(0, len(self.mlps), 2):
            x = x + self.mlps[n](self.norms[n](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.mlps[n + 1](self.norms[n + 1](x))
        return self.head(self.norms[-1](x).mean(1))  # type: ignore[no-any-return]


class NeRF(nn.Module):
    """Colours of rays [R, 3]: samples encoded by sines, an MLP with a skip, and volume rendering."""

    def __init__(self, width: int = 32, bands: int = 4) -> None:
        super().__init__()
        n, self.bands = 3 + 6 * bands, bands
        self.first = nn.Sequential(nn.Linear(n, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width + n, width), nn.ReLU())
        self.density, self.inner, self.colour = (
            nn.Linear(width, 1),
            nn.Linear(width + n, 16),
            nn.Linear(16, 3),
        )

    def encoded(self, x: Tensor) -> Tensor:
        angles = x[..., None] * 2.0 ** torch.arange(self.bands)
        return torch.cat([x, angles.sin().flatten(-2), angles.cos().flatten(-2)], -1)

    def forward(self, origin: Tensor, direction: Tensor) -> Tensor:
        far = torch.linspace(1, 3, 8)
        points = origin[:, None] + direction[:, None] * far[:, None]
        p, d = self.encoded(points), self.encoded(F.normalize(direction, dim=-1))[:, None].expand(-1, 8, -1)
        h = self.second(torch.cat([self.first(p), p], -1))
        opaque = 1 - torch.exp(-F.softplus(self.density(h).squeeze(-1)) * 0.25)
        through = torch.cumprod(torch.cat([torch.ones_like(opaque[:, :1]), 1 - opaque + 1e-10], -1), -1)
        colour = self.colour(F.relu(self.inner(torch.cat([h, d], -1)))).sigmoid()
        return ((opaque * through[:, :-1])[..., None] * colour).sum(1)


class DLRM(nn.Module):
    """Dense features and bags of ids, all pairs of them multiplied, a click's probability."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(n, width, mode="sum") for n in (20, 30, 9))
        self.bottom = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, width), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(width + 6, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense: Tensor, ids: list[Tensor], offsets: list[Tensor]) -> Tensor:
        x = self.bottom(dense)
        bags = (bag(i, o) for bag, i, o in zip(self.bags, ids, offsets, strict=True))
        every = torch.stack([x, *bags], 1)
        pairs = torch.bmm(every, every.transpose(1, 2))
        row, column = torch.tril_indices(4, 4, offset=-1)
        return self.top(torch.cat([x, pairs[:, row, column]], 1)).sigmoid()  # type: ignore[no-any-return]


class Relational(nn.Module):
    """Two R-GCN layers: the mean of neighbours per relation, each relation's matrix mixed from two bases."""

    def __init__(self, width: int = 12, relations: int = 3, bases: int = 2) -> None:
        super().__init__()
        self.bases = nn.Parameter(torch.randn(2, bases, width, width) * 0.3)
        self.mix = nn.Parameter(torch.randn(2, relations, bases))
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.relations = relations

    def forward(self, x: Tensor, edges: Tensor, kinds: Tensor) -> Tensor:
        """x [N, width], edges [2, E] from and to, kinds [E]."""
        for n, own in enumerate(self.own):
            weight = torch.einsum("rb,bio->rio", self.mix[n], self.bases[n])
            sent = torch.einsum("ei,eio->eo", x[edges[0]], weight[kinds])
            place = edges[1] * self.relations + kinds
            count = torch.zeros(x.shape[0] * self.relations).index_add(0, place, torch.ones(kinds.shape[0]))
            sent = sent / count[place].clamp(min=1)[:, None]
            x = F.relu(own(x).index_add(0, edges[1], sent))
        return x


# ------------------------------------------------------------------ arguments
def _bags(batch: int) -> Arguments:
    """Three ids in each bag of the first two features, one in the last."""
    counts = (3, 3, 1)
    ids = [torch.randint(0, n, (batch * k,)) for n, k in zip((20, 30, 9), counts, strict=True)]
    return torch.randn(batch, 5), ids, [torch.arange(batch) * k for k in counts]


def _latent(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 4, 8, 8), torch.randint(0, 1000, (batch,))


MODELS: Mapping[str, Small] = {
    "mobilenet_v2": Small(lambda: mobile(nn.ReLU6, None, 3), images(32), True),
    "mobilenet_v3": Small(lambda: mobile(nn.Hardswish, nn.Hardsigmoid, 5), images(32), True),
    "efficientnet": Small(lambda: mobile(nn.SiLU, nn.Sigmoid, 5), images(32), True),
    "unet": Small(UNet, images(16), True),
    "yolo": Small(Detector, images(32), True),
    "dit": Small(DiT, lambda b: (*_latent(b), torch.randint(0, 11, (b,))), True),
    "diffusion": Small(Diffusion, lambda b: (*_latent(b), torch.randn(b, 5, 24)), True),
    "tagger": Small(Tagger, lambda b: (torch.randint(0, 60, (b, 9)),)),
    "mixer": Small(Mixer, images(16), True),
    "nerf": Small(NeRF, lambda b: (torch.randn(4 * b, 3), torch.randn(4 * b, 3))),
    "dlrm": Small(DLRM, _bags),
    "rgcn": Small(
        Relational,
        lambda b: (torch.randn(7, 12), torch.randint(0, 7, (2, 9 * b)), torch.randint(0, 3, (9 * b,))),
    ),
}


def made(name: str) -> nn.Module:
    """The model in evaluation mode with weights and running statistics that matter; equal in every call."""
    torch.manual_seed(0)
    model = MODELS[name].make().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
                m.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model
