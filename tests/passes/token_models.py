"""A small vision transformer, and the same with its tokens reduced in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf

Tensor = torch.Tensor
#: what is known at a cut: hidden states, keys [B, N, D], attention of the class token [B, N], sizes [B, N]
Cut = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
LAYERS, IMAGE, PATCH = 2, 20, 4
TOKENS = (IMAGE // PATCH) ** 2 + 1


def small_vit(seed: int = 0) -> Any:
    """26 tokens of width 32, 2 heads of 16; weights far from zero."""
    torch.manual_seed(seed)
    model = hf.ViTForImageClassification(
        hf.ViTConfig(
            hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=2, intermediate_size=48,
            image_size=IMAGE, patch_size=PATCH, num_channels=1, num_labels=5,
        )
    )  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 1, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))


@dataclass
class Reduced:
    """The model's own layers, with cuts between attention and MLP. `cuts`: by layer; `sized`: attention adds
    ln(size)."""

    model: Any
    cuts: dict[int, Cut]
    sized: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        h = self.model.vit.embeddings(x)
        sizes = torch.ones(h.shape[:2])
        with torch.no_grad():
            for n, layer in enumerate(self.model.vit.layers):
                h, keys, paid = self._attend(layer, h, sizes)
                if n in self.cuts:
                    h, sizes = self.cuts[n](h, keys, paid, sizes)
                h = h + layer.mlp(layer.layernorm_after(h))
            logits: Tensor = self.model.classifier(self.model.vit.layernorm(h)[:, 0])
        return logits

    def _attend(self, layer: Any, h: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, x = layer.attention, layer.layernorm_before(h)
        q, k, v = (p(x).unflatten(-1, (2, -1)).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if self.sized:
            scores = scores + sizes.log()[:, None, None]
        w = scores.softmax(-1)
        out = a.o_proj((w @ v).transpose(1, 2).flatten(2))
        return h + out, k.mean(1), w[:, :, 0].mean(1)


def evit(keep: float, fuse: bool) -> Cut:
    """The class token and the patches that it attends to most, in order; the others as one token."""

    def cut(h: Tensor, keys: Tensor, paid: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        k = math.ceil(keep * (h.shape[1] - 1))
        kept = paid[:, 1:].topk(k).indices.sort().values + 1
        rows = torch.arange(len(h))[:, None]
        out = [h[:, :1], h[rows, kept]]
        if fuse:
            rest = paid.clone()
            rest[:, 0] = 0
            rest[rows, kept] = 0
            out.append(((rest / rest.sum(1, keepdim=True))[..., None] * h).sum(1, keepdim=True))
        y = torch.cat(out, 1)
        return y, torch.ones(y.shape[:2])

    return cut


def tome(r: int) -> Cut:
    """Patches at even places offer themselves to those at odd places; the r best are merged."""

    def cut(h: Tensor, keys: Tensor, paid: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        unit = keys / keys.norm(dim=-1, keepdim=True)
        scores = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
        scores[:, 0] = -math.inf
        best, target = scores.max(-1)
        gone = best.argsort(-1, descending=True)[:, :r]
        rows = []
        for b in range(len(h)):
            total, sums = sizes[b].clone(), h[b] * sizes[b][:, None]
            for a in gone[b]:
                to = 2 * target[b, a] + 1
                total[to] += sizes[b, 2 * a]
                sums[to] += h[b, 2 * a] * sizes[b, 2 * a]
            kept = [n for n in range(h.shape[1]) if n % 2 or n // 2 not in gone[b].tolist()]
            rows.append((sums[kept] / total[kept][:, None], total[kept]))
        return torch.stack([y for y, _ in rows]), torch.stack([t for _, t in rows])

    return cut


def neighbours(places: int) -> Cut:
    """Runs of patches as their means."""

    def cut(h: Tensor, keys: Tensor, paid: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        free = h.shape[1] - 1
        ends = [1 + free * n // places for n in range(places + 1)]
        runs = [h[:, a:b].mean(1) for a, b in zip(ends, ends[1:], strict=False)]
        counts = torch.tensor([1.0, *(float(b - a) for a, b in zip(ends, ends[1:], strict=False))])
        return torch.stack([h[:, 0], *runs], 1), counts.expand(len(h), -1)

    return cut
