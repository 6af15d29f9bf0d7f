"""Memory that compiling takes: peak anonymous bytes beyond the largest tensor, whatever the model's size.

In: a shape. Out: a line of figures (or `--json`); ends with 1 if more than `--limit` is taken. The checkpoint
is written tensor by tensor; `--sparse` makes it zeros that take no room on the disk. Usage: `python
benchmarks/memory.py --shape 7b --sparse`, or `--shape 1b --weights "gptq(int4(group=128))" --samples 16`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from checkpoint import SHAPES, write_checkpoint
from watch import watch


def main() -> int:
    parser = argparse.ArgumentParser(description="Peak anonymous memory of compiling a large model.")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--recipe", default="w4a8")
    parser.add_argument("--weights", help="an encoding, with a solver: gptq(int4(group=128))")
    parser.add_argument(
        "--samples", type=int, default=0, help="calibrate on so many samples of 512 random tokens"
    )
    parser.add_argument(
        "--sparse", action="store_true", help="zeros in sparse files instead of random numbers"
    )
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="where the checkpoint lies")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoint")
    parser.add_argument("--limit", type=float, default=1.5, help="GB allowed beyond the largest tensor")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    args.work.mkdir(parents=True, exist_ok=True)
    folder = write_checkpoint(
        shape, args.work / f"llama-{args.shape}{'-sparse' if args.sparse else ''}", args.sparse
    )
    with tempfile.TemporaryDirectory(dir=args.work) as out:
        command = [
            sys.executable,
            "-c",
            "from tilewright.cli.app import main; main()",
            "compile",
            str(folder),
        ]
        if args.weights:
            command += ["--weights", args.weights]
        if args.samples:
            ids = np.random.default_rng(0).integers(0, 1000, args.samples * 512)
            np.save(f"{out}/ids.npy", ids)
            command += ["--calibrate", f"{out}/ids.npy", "--samples", str(args.samples)]
        done = watch([*command, "-o", f"{out}/model.tw", "--recipe", args.recipe])
    if not args.keep:
        shutil.rmtree(folder)
    beyond = (done.anon - shape.largest_bytes) / 1e9
    facts = {
        "shape": args.shape, "parameters": shape.parameters,
        "checkpoint_gb": round(2 * shape.parameters / 1e9, 3),
        "largest_tensor_gb": round(shape.largest_bytes / 1e9, 3), "peak_anon_gb": round(done.anon / 1e9, 3),
        "beyond_largest_gb": round(beyond, 3), "with_children_gb": round(done.anon_tree / 1e9, 3),
        "seconds": round(done.seconds, 1),
    }  # fmt: skip
    print(
        json.dumps(facts, indent=1)
        if args.json
        else ", ".join(f"{k} {v:,}" if k != "shape" else f"Llama {v}" for k, v in facts.items())
    )
    return int(beyond > args.limit)


if __name__ == "__main__":
    sys.exit(main())
