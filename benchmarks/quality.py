"""Perplexity and bits per weight with several recipes: `benchmarks/quality.py DIR TEXT [--windows 60]`.

Prints a markdown table. Windows of 512 tokens, each on its own, the first token of each as context only;
PyTorch's own f32 figure stands first.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np

import tilewright as tw
from tilewright.runtime.evaluate import evaluate, windows_of

#: what users pick between: (name, arguments of `compile`)
RECIPES = [
    ("f32", {"recipe": "f32"}),
    ("bf16", {"recipe": "bf16"}),
    ("int8, bf16 activations", {"recipe": "int8"}),
    ("int8, int8(token) activations", {"recipe": "w8a8"}),
    ("int4(group=32), bf16 activations", {"recipe": "int4"}),
    ("int4(group=32), int8(token) activations", {"recipe": "w4a8"}),
]


def pytorch(directory: Path, ids: list[int], windows: int) -> float:
    """Perplexity of the PyTorch model in float32 on the same windows."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    loss = count = 0.0
    for piece in windows_of(ids, 512, windows):
        with torch.inference_mode():
            logits = model(torch.from_numpy(piece)[None]).logits[0, :-1].double().log_softmax(-1)
        loss -= float(logits.gather(1, torch.from_numpy(piece)[1:, None]).sum())
        count += len(piece) - 1
    return math.exp(loss / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=60)
    args = parser.parse_args()
    print("| stored as | bits per weight | perplexity |\n|---|---|---|")
    reference = None
    for name, options in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.tw"
            tw.compile(args.directory, **options).save(path)
            model = tw.load(path)
            ids = model.codec.encode(args.text.read_text("utf-8"))
            if reference is None:
                reference = pytorch(args.directory, ids, args.windows)
                print(f"| PyTorch f32 | 32.00 | {reference:.3f} |", flush=True)
            quality = evaluate(lambda piece, m=model: np.asarray(m(piece)), ids, 512, args.windows)
            bits = model.manifest.bits_per_weight
            print(f"| {name} | {bits:.2f} | {quality.perplexity:.3f} |", flush=True)


if __name__ == "__main__":
    main()
