"""Decoding many sequences that begin alike: their beginning read once for all against once for each.

In: nothing but the machine. Out: milliseconds of a step with and without a shared beginning, the part that
attention over the beginning takes, and the ratio. Both sessions are of one artifact and take turns.

Usage: `python benchmarks/shared_prefix.py [--sequences 16] [--prefix 4096] [--kv bf16] [--layers 2]
[--kv-heads 4] [--threads 2]`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from checkpoint import SHAPES, write_checkpoint

import tilewright as tw
from tilewright.recipe import resolve_recipe
from tilewright.runtime.session import Session

ROUNDS = 9


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shape = replace(SHAPES["1b"], layers=args.layers, kv_heads=args.kv_heads)
        write_checkpoint(shape, root / "model")
        context = args.prefix + 256
        recipe = {"base": "w4a8", "kv": args.kv, "context": context, "share_prefixes": True}
        tw.compile(root / "model", recipe=resolve_recipe(recipe)).save(root / "m.tw")
        model = tw.load(root / "m.tw", threads=args.threads)
        ids = np.random.default_rng(0).integers(0, model.library.vocab, args.prefix)
        with (
            model.session(args.sequences + 1) as shared,
            model.session(args.sequences) as apart,
            model.session(args.sequences) as short,
        ):
            first = shared.add()
            shared.step([(first, ids, None)])
            for _ in range(args.sequences):
                shared.fork(first)
            for s, tokens in ((apart, ids), (short, ids[:1])):
                for _ in range(args.sequences):
                    s.step([(s.add(), tokens, None)])
            shared.drop(first)
            times: dict[str, list[float]] = {"shared": [], "apart": [], "short": []}
            for _ in range(ROUNDS):
                for name, s in (("shared", shared), ("apart", apart), ("short", short)):
                    times[name].append(seconds(s))
    found = {k: 1e3 * statistics.median(v) for k, v in times.items()}
    part = {k: found[k] - found["short"] for k in ("shared", "apart")}
    print(
        f"{args.sequences} sequences over {args.prefix} tokens, kv {args.kv}, {args.layers} layers "
        f"of the 1.1B shape, {args.kv_heads} KV heads"
    )
    print(
        f"step: {found['apart']:.2f} ms apart, {found['shared']:.2f} ms shared: "
        f"{found['apart'] / found['shared']:.2f} x"
    )
    print(f"attention over the beginning: {part['apart']:.2f} ms apart, {part['shared']:.2f} ms shared: "
          f"{part['apart'] / part['shared']:.2f} x")  # fmt: skip


def seconds(s: Session) -> float:
    """Of one step with a token of every sequence."""
    work = [(seq, [seq + 1], True) for seq in s.lengths]
    began = time.perf_counter()
    s.step(work)
    return time.perf_counter() - began


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--prefix", type=int, default=4096)
    parser.add_argument("--kv", default="bf16")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
