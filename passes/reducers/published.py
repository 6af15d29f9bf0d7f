"""Published ways to reduce tokens, each as the cuts it makes. `keep` is the share kept at every cut.

In: the options of a text. Out: cuts. A way that is not here is a class like these (docs/extending.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from tilewright.passes.reducers.base import COMPARED, SCORES, Cut, Reducer, refused, register_reducer


def quarters(layers: int) -> tuple[int, ...]:
    """The layers at a quarter, a half and three quarters of the depth: 3, 6 and 9 of 12."""
    return tuple(sorted({layers // 4, layers // 2, 3 * layers // 4}))


@register_reducer
@dataclass(frozen=True)
class Evit(Reducer):
    """The tokens that the class token attends to most are kept, the rest is fused into one token weighted by
    that attention ("Not All Patches are What You Need: Expediting Vision Transformers via Token
    Reorganizations", ICLR 2022). The fused token is the weighted mean; a fused token of an earlier cut is a
    token like others."""

    name: ClassVar[str] = "evit"

    keep: float = 0.7
    layers: tuple[int, ...] = ()
    fuse: bool = True

    def cuts(self, layers: int, tokens: int) -> tuple[Cut, ...]:
        weighted = "score" if self.fuse else ""
        return tuple(
            Cut(n, self.keep, fuse=self.fuse, mean=self.fuse, weighted=weighted)
            for n in self.places(self.layers, quarters(layers), layers)
        )


@register_reducer
@dataclass(frozen=True)
class Tome(Reducer):
    """Bipartite matching: in every layer the r tokens whose keys are most similar to one of the other half
    are merged into it, weighted by size, and attention counts a token as often as its size ("Token Merging:
    Your ViT But Faster", ICLR 2023). r=0: as many as leave `keep` of all tokens after the last layer."""

    name: ClassVar[str] = "tome"

    r: int = 0
    keep: float = 0.5
    layers: tuple[int, ...] = ()

    def cuts(self, layers: int, tokens: int) -> tuple[Cut, ...]:
        places = self.places(self.layers, tuple(range(layers)), layers)
        total = tokens - self.protect - math.ceil(self.keep * (tokens - self.protect) - 1e-9)
        shares = [
            self.r or total * (n + 1) // len(places) - total * n // len(places) for n in range(len(places))
        ]
        return tuple(
            Cut(n, less=r, mode="merge", score="keys", mean=True, weighted="size", sized=True)
            for n, r in zip(places, shares, strict=True)
            if r
        )


@register_reducer
@dataclass(frozen=True)
class Pyramid(Reducer):
    """Layers in equal stages; at the end of every stage but the last, the tokens that one token attends to
    least are dropped ("PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
    Redundancy Reduction", CVPR 2025, where it is the last token of the instruction)."""

    name: ClassVar[str] = "pyramid"

    stages: int = 4
    keep: float = 0.5
    score: str = "first"

    def check(self) -> None:
        super().check()
        _one_of(self, "score", SCORES)

    def cuts(self, layers: int, tokens: int) -> tuple[Cut, ...]:
        if self.stages > layers:
            raise refused(
                f"pyramid: {self.stages} stages of {layers} attention layers", f"at most {layers} stages"
            )
        ends = [layers * s // self.stages - 1 for s in range(1, self.stages)]
        return tuple(Cut(n, self.keep, score=self.score) for n in ends)


@register_reducer
@dataclass(frozen=True)
class CenterClip(Reducer):
    """k-medoids within segments of consecutive tokens; the medoids go on, in order ("CenterCLIP: Token
    Clustering for Efficient Text-Video Retrieval", SIGIR 2022). Distances are cosines, the first medoids are
    evenly spaced. `mean`: each cluster goes on as its mean."""

    name: ClassVar[str] = "centerclip"

    keep: float = 0.5
    segments: int = 1
    rounds: int = 3
    layers: tuple[int, ...] = ()
    score: str = "hidden"
    mean: bool = False

    def check(self) -> None:
        super().check()
        _one_of(self, "score", COMPARED)

    def cuts(self, layers: int, tokens: int) -> tuple[Cut, ...]:
        return tuple(
            Cut(n, self.keep, mode="cluster", score=self.score, segments=self.segments, rounds=self.rounds,
                mean=self.mean)
            for n in self.places(self.layers, (layers // 2,), layers)
        )  # fmt: skip


@register_reducer
@dataclass(frozen=True)
class Neighbours(Reducer):
    """Runs of neighbouring tokens become their mean, more and more of them with depth, as in progressive
    merging of long sequences ("Modality Agnostic Efficient Long Range Encoder", 2025). `sized`: attention
    counts a token as often as its size."""

    name: ClassVar[str] = "neighbours"

    keep: float = 0.5
    layers: tuple[int, ...] = ()
    sized: bool = True

    def cuts(self, layers: int, tokens: int) -> tuple[Cut, ...]:
        return tuple(
            Cut(
                n,
                self.keep,
                mode="cluster",
                score="hidden",
                segments=0,
                mean=True,
                weighted="size",
                sized=self.sized,
            )
            for n in self.places(self.layers, quarters(layers), layers)
        )


def _one_of(reducer: Reducer, option: str, words: tuple[str, ...]) -> None:
    got = getattr(reducer, option)
    if got not in words:
        raise refused(f"{reducer.name}: {option} must be one of {', '.join(words)}, got {got}")
