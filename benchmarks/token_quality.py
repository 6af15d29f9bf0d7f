"""Accuracy of a trained vision transformer over fewer tokens: `benchmarks/token_quality.py [--write]`.

The embedded model (examples/models/tiny-vit) on the 400 images that it was not trained on, compiled as
`--recipe` says with every reducer at three shares of its tokens left behind the last cut. Operations are
those that the records of ops state, as a share of those without a reducer. The change is that of the share of
right answers, paired by image, with its standard error. `--write` puts the table into docs/tokens.md.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tilewright as tw
from tilewright.ir.graph.core import Module

ROOT = Path(__file__).resolve().parent.parent
MODEL, PAGE = ROOT / "examples" / "models" / "tiny-vit", ROOT / "docs" / "tokens.md"
MARKS = ("<!-- table: made by benchmarks/token_quality.py --write -->\n", "<!-- end of table -->\n")
SHARES = (0.75, 0.5, 0.25)
#: texts by reducer; `{each}` is the share kept at each of three cuts, `{all}` at one cut or over all layers
REDUCERS = {
    "evit": "evit(keep={each})", "evit, rest dropped": "evit(keep={each}, fuse=false)",
    "tome": "tome(keep={all})", "pyramid": "pyramid(stages=4, keep={each})",
    "centerclip": "centerclip(keep={all}, segments=4)", "neighbours": "neighbours(keep={each})",
}  # fmt: skip
HEAD = (
    "| reducer | options | tokens | operations | accuracy | change |",
    "|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Result:
    """`right`: by image; `tokens`: at the start, or behind each cut; `operations`: of one image."""

    right: NDArray[np.bool_]
    tokens: tuple[int, ...]
    operations: float

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())


def load() -> tuple[Any, Any, NDArray[np.int8]]:
    """The model in f32, its test images [400, 1, 32, 32] in -1 to 1, and their labels. They are stored as
    8 x 8 pixels of 0 to 16, and are scaled up as the model was trained on them."""
    import torch
    import transformers

    held = np.load(MODEL / "test.npz")
    model = transformers.ViTForImageClassification.from_pretrained(MODEL, dtype=torch.float32).eval()
    pixels = torch.from_numpy(held["images"].astype(np.float32))[:, None] / 8 - 1
    images = torch.nn.functional.interpolate(pixels, size=(32, 32), mode="bilinear")
    return model, images, held["labels"]


def measure(model: Any, images: Any, labels: NDArray[np.int8], recipe: str, tokens: str | None) -> Result:
    """Compile, run all images."""
    compiled = tw.compile(model, example_inputs=(images,), recipe=recipe, tokens=tokens)
    logits = np.asarray(compiled(images).logits)  # type: ignore[attr-defined]
    stage = compiled.record.stage("reduce-tokens" if tokens else "merge-linears")
    cost = float(next(iter(stage.cost().values()))) / len(images)
    return Result(logits.argmax(1) == labels, tokens_of(stage.ir), cost)


def tokens_of(ir: object) -> tuple[int, ...]:
    """Tokens behind each cut."""
    assert isinstance(ir, Module)
    counts = [op.attr("count") for g in ir.graphs for op in g.ops if op.name == "assign_tokens"]
    return tuple(int(str(n)) for n in counts)


def line(name: str, text: str, r: Result, whole: Result) -> str:
    d = r.right.astype(float) - whole.right
    error = d.std(ddof=1) / math.sqrt(len(d))
    steps = " → ".join(map(str, r.tokens)) if len(r.tokens) < 4 else f"{r.tokens[0]} … {r.tokens[-1]}"
    share = f"{100 * r.operations / whole.operations:.0f}%"
    return (
        f"| {name} | `{text}` | {steps} | {share} | {100 * r.accuracy:.2f}% | "
        f"{100 * d.mean():+.2f} ± {100 * error:.2f} |"
    )


def texts(only: str) -> list[tuple[str, str]]:
    """Reducers with their options, share by share."""
    return [
        (name, text.format(each=round(share ** (1 / 3), 3), all=share))
        for share in SHARES
        for name, text in REDUCERS.items()
        if only in name
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="f32")
    parser.add_argument("--only", default="", help="reducers whose name contains this")
    parser.add_argument("--images", type=int, default=400, help="how many images to classify")
    parser.add_argument("--write", action="store_true", help="put the table into docs/tokens.md")
    args = parser.parse_args()
    model, images, labels = load()
    images, labels = images[: args.images], labels[: args.images]
    whole = measure(model, images, labels, args.recipe, None)
    lines = [*HEAD, f"| none | | 65 | 100% | {100 * whole.accuracy:.2f}% | |"]
    print("\n".join(lines), flush=True)
    for name, text in texts(args.only):
        lines.append(line(name, text, measure(model, images, labels, args.recipe, text), whole))
        print(lines[-1], flush=True)
    if args.write:
        page = PAGE.read_text("utf-8")
        before, _, after = page.partition(MARKS[0])
        table = "\n".join(lines) + "\n"
        PAGE.write_text(before + MARKS[0] + table + MARKS[1] + after.partition(MARKS[1])[2], "utf-8")


if __name__ == "__main__":
    main()
