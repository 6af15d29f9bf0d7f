"""Convolutions: the share of this machine's f32 peak that their kernels reach, and PyTorch beside them.

In: nothing but the machine. Out: a table in markdown: microseconds of processor time per call, the share of
the peak measured in the same run, and the ratio to PyTorch's convolution of an image with channels last (more
than 1: faster than PyTorch). One thread; measurements take turns and the best of each is compared, so that a
busy machine disturbs all alike.

Usage: `python benchmarks/convolution.py [--only TEXT] [--rounds 9]`; with `--models [--batch 1]`, nets of
the default shapes of transformers with random weights, beside eager PyTorch (the faster of its two orders).
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import tilewright as tw
from tilewright.backends.cpp.jit import compile_kernel
from tilewright.backends.cpp.levels import resolve_levels
from tilewright.backends.cpp.target import Target
from tilewright.ir.encoding_registry import parse_encoding
from tilewright.ir.graph.builder import GraphBuilder
from tilewright.ir.graph.core import Stored
from tilewright.ir.types import tensor
from tilewright.passes.driver import run_passes
from tilewright.passes.pipelines import PLAIN, pipeline_text
from tilewright.runtime.limits import _run, built_probe

#: seconds that one measurement takes at least
SPAN = 0.02


@dataclass(frozen=True)
class Shape:
    """Channels in and out, size of the square image, window, stride, groups."""

    inputs: int
    outputs: int
    size: int
    window: int
    stride: int = 1
    groups: int = 1

    def __str__(self) -> str:
        kind = "depthwise " if self.groups == self.inputs else ""
        step = f" stride {self.stride}" if self.stride > 1 else ""
        what = f"{self.inputs}" if kind else f"{self.inputs}→{self.outputs}"
        return f"{kind}{self.window}×{self.window} {what} at {self.size}²{step}"

    @property
    def layer(self) -> nn.Conv2d:
        shape = (self.inputs, self.outputs, self.window, self.stride, self.window // 2)
        return nn.Conv2d(*shape, groups=self.groups, bias=False)

    @property
    def flops(self) -> int:
        out = (self.size + 2 * (self.window // 2) - self.window) // self.stride + 1
        return 2 * out * out * self.outputs * self.window**2 * self.inputs // self.groups


SHAPES = (
    Shape(64, 64, 56, 3), Shape(128, 128, 28, 3), Shape(256, 256, 14, 3), Shape(512, 512, 7, 3),
    Shape(128, 128, 56, 3, 2), Shape(256, 64, 56, 1), Shape(64, 256, 56, 1), Shape(512, 1024, 14, 1, 2),
    Shape(3, 64, 224, 7, 2), Shape(3, 32, 224, 3, 2), Shape(32, 32, 112, 3, 1, 32),
    Shape(96, 96, 112, 3, 2, 96), Shape(576, 576, 14, 3, 1, 576), Shape(96, 96, 56, 7, 1, 96),
)  # fmt: skip


@dataclass
class Timed:
    """Something to call; `best`: processor seconds of its fastest call."""

    call: Callable[[], object]
    best: float = math.inf
    calls: int = field(default=1)

    def measure(self) -> None:
        while (taken := self._take()) < SPAN and self.best > SPAN:
            self.calls = max(self.calls + 1, int(self.calls * SPAN / max(taken, 1e-9)))
        self.best = min(self.best, taken / self.calls)

    def _take(self) -> float:
        start = time.thread_time()
        for _ in range(self.calls):
            self.call()
        return time.thread_time() - start


# ------------------------------------------------------------------ kernels
def ours(s: Shape, level: Target) -> tuple[Callable[[], object], Callable[[], np.ndarray[Any, Any]], Any]:
    """The kernel on arrays, its result with channels first, and PyTorch's layer with the same weights."""
    layer = s.layer
    kernels = layer.weight.detach().permute(0, 2, 3, 1).reshape(s.outputs, -1).numpy()
    b = GraphBuilder("f")
    x = b.add_input("x", tensor("f32", 1, s.size, s.size, s.inputs))
    w = b.weight("w", tensor("f32", *kernels.shape), Stored("memory", "w"))
    pad = s.window // 2
    y = b.op(
        "conv", x, w, window=(s.window,) * 2, stride=(s.stride,) * 2, padding=(pad,) * 4, dilation=(1, 1),
        groups=s.groups,
    )  # fmt: skip
    b.output(y, "y")
    passes = pipeline_text((*PLAIN, "lower", "expand-encodings"), {"encode-weights": {"weights": "f32"}})
    program = run_passes(b.module(), passes).program
    (kernel,) = program.kernels
    encoding = parse_encoding("f32(layout=panel)")
    image = np.random.default_rng(0).standard_normal((s.size, s.size, s.inputs)).astype(np.float32)
    out = (s.size + 2 * pad - s.window) // s.stride + 1
    given = {"%x": image, "@w": encoding.pack(encoding.encode(kernels), kernels.shape)}
    y_array = np.zeros((out, out, s.outputs), np.float32)
    (call,) = program.plans[0].calls
    arrays = {p.name: given.get(a, y_array) for p, a in zip(kernel.params, call.args, strict=True)}
    built = compile_kernel(kernel, level.name)
    symbols = {name: int(str(d)) for name, d in call.symbols}
    pointers, sizes = built._pointers(arrays), built._symbols(symbols)

    def run() -> object:
        """`arrays` own the memory that the pointers are to."""
        return arrays and built.library.call(pointers, sizes, 1)

    return run, lambda: y_array.transpose(2, 0, 1), (layer, image)


def peers(layer: nn.Conv2d, image: np.ndarray[Any, Any]) -> tuple[Callable[[], object], torch.Tensor]:
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    net = layer.to(memory_format=torch.channels_last).eval()
    return lambda: net(x), net(x)[0].detach()


def table(shapes: Sequence[Shape], rounds: int) -> None:
    level = resolve_levels("native")[-1]
    print(f"level {level.name}\n\n| convolution | us | share of the peak | PyTorch us | ratio |")
    print("|---|---|---|---|---|")
    with built_probe() as library, torch.inference_mode():
        probe = ctypes.CDLL(str(library)).tw_limits
        for s in shapes:
            row(s, level, rounds, probe)


def row(s: Shape, level: Target, rounds: int, probe: Any) -> None:
    call, result, (layer, image) = ours(s, level)
    peer, want = peers(layer, image)
    call()
    error = float((torch.from_numpy(result().copy()) - want).abs().max() / want.abs().max())
    assert error < 1e-5, f"{s}: off by {error}"
    mine, theirs, peak = Timed(call), Timed(peer), 0.0
    for _ in range(rounds):
        peak = max(peak, _run(probe, 1, 0.01, 16).f32_gflop_s)
        mine.measure()
        theirs.measure()
    share = s.flops / mine.best / 1e9 / peak
    print(
        f"| {s} | {mine.best * 1e6:.0f} | {share:.0%} | {theirs.best * 1e6:.0f} | "
        f"{theirs.best / mine.best:.2f} |",
        flush=True,
    )


# ------------------------------------------------------------------ whole nets
NETS = {
    "ResNet-50": ("ResNetModel", "ResNetConfig"),
    "MobileNetV2": ("MobileNetV2Model", "MobileNetV2Config"),
    "ConvNeXt-tiny": ("ConvNextModel", "ConvNextConfig"),
}


class Features(nn.Module):
    """The last feature map of a model of transformers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import transformers

        model, config = NETS[name]
        self.model = getattr(transformers, model)(getattr(transformers, config)())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(x)[0]
        return out


def nets(names: Sequence[str], batch: int, rounds: int) -> None:
    print("| net | ms | PyTorch ms | ratio | largest difference |\n|---|---|---|---|---|")
    for name in names:
        torch.manual_seed(0)
        model, x = Features(name).eval(), torch.randn(batch, 3, 224, 224)
        compiled = tw.compile(model, example_inputs=(x,), recipe="f32")
        compiled.executable(1)
        with torch.inference_mode():
            want = model(x)
            off = float((torch.as_tensor(compiled(x)) - want).abs().max() / want.abs().max())
            turned = x.contiguous(memory_format=torch.channels_last)
            other = copy.deepcopy(model).to(memory_format=torch.channels_last)
            calls = [Timed(partial(f, y)) for f, y in ((compiled, x), (model, x), (other, turned))]
            for timed in calls * rounds:
                timed.measure()
        mine, peer = calls[0].best, min(c.best for c in calls[1:])
        print(f"| {name} | {mine * 1e3:.1f} | {peer * 1e3:.1f} | {peer / mine:.2f} | {off:.1e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--models", action="store_true", help="whole nets instead of single convolutions")
    parser.add_argument("--batch", type=int, default=1, help="images of a call of a net")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.models:
        return nets([n for n in NETS if args.only in n], args.batch, args.rounds)
    table([s for s in SHAPES if args.only in str(s)], args.rounds)


if __name__ == "__main__":
    main()
