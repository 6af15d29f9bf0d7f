"""Speed of a vision transformer over fewer tokens: `benchmarks/token_speed.py [--recipe f32] [--repeats 9]`.

The shape of ViT-base (12 layers, width 768, 12 heads, 196 patches and a class token) with random weights. All
variants run in turn in one process; the ratio is that of each run to the run with all tokens just before it,
once by the clock and once by processor time, which other load on the machine disturbs less. Medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import tilewright as tw

#: half of the tokens kept at a quarter of the depth, the papers' own settings, and 4 stages
TEXTS = (
    "evit(keep=0.5, layers=[3])", "evit(keep=0.7)", "tome(r=13)", "pyramid(stages=4, keep=0.5)",
    "centerclip(keep=0.5, segments=4, layers=[3])",
)  # fmt: skip
#: width, layers, heads, image and patch of each shape
SHAPES = {"base": (768, 12, 12, 224, 16), "tiny": (96, 6, 4, 32, 4)}


def vit(shape: str) -> Any:
    """A model with random weights; its results do not matter here."""
    import torch
    import transformers

    width, layers, heads, image, patch = SHAPES[shape]
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, image_size=image, patch_size=patch,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).eval()


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time of all threads."""
    began, used = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - began, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--recipe", default="f32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--tokens", action="append", help="reducers to measure instead; repeatable")
    args = parser.parse_args()
    import torch

    model, size = vit(args.shape), SHAPES[args.shape][3]
    x = torch.randn(args.batch, 3, size, size)
    texts = [None, *(args.tokens or TEXTS)]
    runs: dict[str | None, Callable[[], object]] = {}
    for text in texts:
        compiled = tw.compile(model, example_inputs=(x,), recipe=args.recipe, tokens=text)
        runs[text] = lambda compiled=compiled: compiled(x)  # type: ignore[misc]
        runs[text]()
        print(f"compiled {text or 'with all tokens'}", flush=True)
    ratios: dict[str, list[tuple[float, float]]] = {t: [] for t in texts if t}
    whole = []
    for _ in range(args.repeats):
        for text in ratios:
            full, cut = timed(runs[None]), timed(runs[text])
            ratios[text].append((full[0] / cut[0], full[1] / cut[1]))
            whole.append(full[0])
    print(f"all tokens: {1000 * statistics.median(whole):.1f} ms for {args.batch}, recipe {args.recipe}")
    print("| tokens | times as fast | by processor time |\n|---|---|---|")
    for text, found in ratios.items():
        clock, used = (statistics.median(r[k] for r in found) for k in (0, 1))
        print(f"| `{text}` | {clock:.2f} × | {used:.2f} × |")


if __name__ == "__main__":
    main()
