"""Speed of BERT over packed rows: `benchmarks/packing_speed.py [--recipe f32] [--batch 16] [--repeats 9]`.

The shape of BERT-base with random weights, on batches whose lengths are uniform in 16..128, padded to 128.
The model is compiled twice, with and without `pack`, and both run in turn in one process on a new batch each
time; the ratio is once by the clock and once by processor time, which other load on the machine disturbs
less. Medians. `full`: the same on a batch without padding, where packing can only cost. The results of the
tokens that the mask keeps are compared too."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import tilewright as tw

#: width, layers, heads of each shape
SHAPES = {"base": (768, 12, 12), "small": (256, 4, 4)}


def bert(shape: str) -> Any:
    """A model with random weights that returns the last hidden state."""
    import torch
    import transformers

    width, layers, heads = SHAPES[shape]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * width
    )

    class Last(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.BertModel(config, add_pooling_layer=False)

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            last: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return last

    return Last().eval()


def padded(batch: int, tokens: int, least: int, seed: int) -> tuple[Any, Any]:
    """Ids and mask of sequences whose lengths are uniform in least..tokens."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(least, tokens + 1, (batch, 1), generator=rng)
    mask = (torch.arange(tokens) < lengths).long()
    return torch.randint(1000, 30000, (batch, tokens), generator=rng) * mask, mask


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time of all threads."""
    began, used = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - began, time.process_time() - used


def measured(whole: Any, packed: Any, args: argparse.Namespace, least: int, name: str) -> str:
    """A row of the table."""
    ratios, shares, worst = list[tuple[float, float]](), list[float](), 0.0
    for seed in range(args.repeats):
        ids, mask = padded(args.batch, args.tokens, least, seed)
        a, b = timed(lambda: whole(ids, mask)), timed(lambda: packed(ids, mask))  # noqa: B023  run at once
        ratios.append((a[0] / b[0], a[1] / b[1]))
        shares.append(mask.float().mean().item())
        apart = (whole(ids, mask) - packed(ids, mask))[mask.bool()].abs().max() if not seed else worst
        worst = max(worst, float(apart))
    clock, used = (statistics.median(r[k] for r in ratios) for k in (0, 1))
    return f"| {name} | {statistics.mean(shares):.0%} | {clock:.2f} × | {used:.2f} × | {worst:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--recipe", default="f32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--least", type=int, default=16, help="tokens of the shortest sequence")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    model, example = bert(args.shape), padded(args.batch, args.tokens, args.least, 0)
    both = [
        tw.compile(model, example_inputs=example, recipe=args.recipe, pack=pack) for pack in (False, True)
    ]
    for compiled in both:
        compiled(*example)
    print("| batch | tokens kept | times as fast | by processor time | largest difference |")
    print("|---|---|---|---|---|")
    for name, least in ((f"lengths {args.least}..{args.tokens}", args.least), ("full", args.tokens)):
        print(measured(*both, args, least, name), flush=True)


if __name__ == "__main__":
    main()
