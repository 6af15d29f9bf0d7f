"""A mixture of experts beside a dense layer of the same arithmetic, both under `torch.compile`.

In: sizes. Out: a line per layer with the processor seconds of a call and GFLOP per processor second, and the
share of the dense layer's speed that the experts reach: medians of rounds in which both take turns, so that
other work on the machine meets both alike.
`python benchmarks/experts.py [--tokens 512 --experts 8 --chosen 2 --width 1024 --inner 2048 --rounds 9]`
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock


class Dense(nn.Module):
    """One expert of all tokens."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.up(x).chunk(2, -1)
        y: torch.Tensor = self.down(F.silu(gate) * up)
        return y


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("tokens", 512), ("experts", 8), ("chosen", 2), ("width", 1024), ("inner", 2048), ("rounds", 9),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    config = MixtralConfig(
        hidden_size=args.width, intermediate_size=args.inner, num_local_experts=args.experts,
        num_experts_per_tok=args.chosen,
    )  # fmt: skip
    config._experts_implementation = "grouped_mm"
    torch.manual_seed(0)
    sparse, dense = MixtralSparseMoeBlock(config).eval(), Dense(args.width, args.inner).eval()
    with torch.no_grad():
        for p in sparse.parameters():
            p.normal_(0, 0.02)
        rows = args.tokens * args.chosen
        calls: dict[str, Callable[[], object]] = {}
        for name, model, tokens in (("dense", dense, rows), ("experts", sparse, args.tokens)):
            x = torch.randn(1, tokens, args.width)
            f = torch.compile(model, backend="tilewright", options={"strict": True})
            f(x)
            calls[name] = lambda f=f, x=x: f(x)
        found: dict[str, list[float]] = {n: [] for n in calls}
        for _ in range(args.rounds):
            for name, call in calls.items():
                found[name].append(seconds(call))
    work = 6 * rows * args.width * args.inner / 1e9
    for name, all_of in found.items():
        print(f"{name}: {statistics.median(all_of):.4f} s, {work / statistics.median(all_of):.1f} GFLOP/s")
    ratios = [d / e for d, e in zip(found["dense"], found["experts"], strict=True)]
    print(f"experts reach {statistics.median(ratios):.0%} of the dense layer's speed")


if __name__ == "__main__":
    main()
